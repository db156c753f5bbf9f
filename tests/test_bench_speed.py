"""`bench/latency.py`, `bench/parts.py` and `bench/scaling.py` on a tiny model: that they measure, not what."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

sys.path.append(str(Path(__file__).parents[1] / "bench"))

import front
import key_weights
import latency
import latency_run
import latency_table
import parts
import plots
import scaling
from matplotlib.figure import Figure

from lvtp_fx.models.checkpoint import load_checkpoint
from tests.tiny_checkpoint import write_tiny

TINY = ("--model", "vit_tiny_patch16_224", "--size", "96", "--turns", "3")
PNG = b"\x89PNG"


def run(command: Callable[..., None], out: Path, *arguments: str, model: tuple[str, ...] = TINY) -> str:
    app = typer.Typer()
    app.command()(command)
    done = CliRunner().invoke(app, [*model, *arguments, "--out", str(out)], env={"COLUMNS": "1000"})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return out.read_text()


def test_latency_measures_pruned_against_dense_and_shows_refusals(tmp_path: Path) -> None:
    out = tmp_path / "latency.md"
    text = run(latency.main, out, "--depth", "2", "--flops-cut", "0.2", "--flops-cut", "0.9")
    figures = json.loads(out.with_suffix(".json").read_text())
    fast, refused = figures["rows"]
    assert f"torch {torch.__version__}" in figures["title"]
    assert refused["refused"].startswith("LVTP202")
    assert 0.15 < 1 - fast["gflops_pruned"] / fast["gflops_dense"] < 0.25
    assert 0 < fast["ratio_low"] <= fast["ratio"] <= fast["ratio_high"]
    assert min(fast["dense_ms"], fast["pruned_ms"], fast["compile_s_dense"], fast["compile_s_pruned"]) > 0
    lines = [line for line in text.splitlines() if "vit_tiny" in line]
    assert f"{fast['ratio']:.2f}x [" in lines[0]
    assert f"{fast['ratio'] * fast['gflops_pruned'] / fast['gflops_dense']:.2f} |" in lines[0]  # the efficiency
    assert "LVTP202" in lines[1]
    assert out.with_suffix(".png").read_bytes().startswith(PNG)


def test_a_checkpoint_is_timed_at_its_own_size(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    case = latency_run.Case(str(tmp_path), None, 2, "float32")
    model, x = case.build("cpu")
    spec = load_checkpoint(tmp_path)[1]
    assert x.shape == (2, 3, *spec.img_size)
    assert model(x).shape[1] == spec.classes
    assert latency_table.cells(latency_run.Measured(case, "lvtp", 0.2, refused="LVTP"))[:2] == [tmp_path.name, "own"]


def rows(strategy: str, *, speeds: tuple[float, ...], changes: tuple[float, ...]) -> tuple[list[Any], list[Any]]:
    """Of the accuracy bench and of the latency bench, at cuts of 20 and 60 %."""
    cuts = (0.2, 0.6)
    accurate = [{"strategy": strategy, "aim": f"cut {cut:g}",
                 "change": {name: {"value": change} for name in ("miou", "boundary_miou", "boundary_iou")}}
                for cut, change in zip(cuts, changes, strict=True)]
    case = {"model": "a/folder", "batch": 1, "dtype": "float32"}
    timed = [{"case": case, "strategy": strategy, "aim": cut, "ratio": speed, "refused": ""}
             for cut, speed in zip(cuts, speeds, strict=True)]
    return accurate, timed


def test_front_joins_accuracy_and_latency(tmp_path: Path) -> None:
    accurate, timed = rows("lvtp", speeds=(1.1, 2.0), changes=(0.5, -1.0))
    for part, more in zip((accurate, timed), rows("other", speeds=(1.2, 1.9), changes=(0.1, -1.5)), strict=True):
        part += more
    accurate.append({"strategy": "dense", "aim": "", "change": {}})
    timed += [{**timed[0], "refused": "LVTP202"}, {**timed[0], "strategy": "not evaluated"}]
    (tmp_path / "accuracy.json").write_text(json.dumps({"checkpoints": [{"name": "folder", "rows": accurate}]}))
    (tmp_path / "latency.json").write_text(json.dumps({"title": "on this machine", "rows": timed}))
    given = ("--accuracy", str(tmp_path / "accuracy.json"), "--latency", str(tmp_path / "latency.json"))
    text = run(front.main, tmp_path / "front.md", *given, model=())
    assert text.splitlines()[-4:] == [
        "| folder | 20% | lvtp | 1.10x | +0.50 / +0.50 / +0.50 |  |",
        "| folder | 20% | other | 1.20x | +0.10 / +0.10 / +0.10 |  |",
        "| folder | 60% | lvtp | 2.00x | -1.00 / -1.00 / -1.00 |  |",
        "| folder | 60% | other | 1.90x | -1.50 / -1.50 / -1.50 | lvtp, 60% |",
    ]
    assert (tmp_path / "front.png").read_bytes().startswith(PNG)
    for name, value in (("batch", 4), ("dtype", "bfloat16")):
        other = {**timed[0], "case": {**timed[0]["case"], name: value}}
        (tmp_path / "latency.json").write_text(json.dumps({"title": "on this machine", "rows": [*timed, other]}))
        with pytest.raises(AssertionError, match=f"it holds more than one {name}: {timed[0]['case'][name]}, {value}"):
            run(front.main, tmp_path / "front.md", *given, model=())
    (tmp_path / "latency.json").write_text(json.dumps({"title": "on this machine", "rows": []}))
    with pytest.raises(AssertionError, match="the two files share no model"):
        run(front.main, tmp_path / "front.md", *given, model=())


def test_a_checkpoint_has_a_depth_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="is a checkpoint, which has a depth of its own"):
        run(latency.main, tmp_path / "latency.md", "--depth", "2", model=("--model", str(tmp_path)))


def test_what_was_not_timed_is_null_in_json() -> None:
    row = latency_run.Measured(latency_run.Case("vit", 96, 1, "float32"), "lvtp", 0.2)
    text = json.dumps(latency.figures([row], "title"), allow_nan=False)
    assert json.loads(text)["rows"][0]["inserted_ms"] is None


def test_plots_mark_points_as_they_are_read_and_wrap_long_titles() -> None:
    ax = Figure().subplots()
    ax.plot([0, 1], [-30, 1.5])
    plots.scale_points(ax)
    ax.figure.draw_without_rendering()
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "-20", "-10", "-5", "-2", "-1", "-0.5", "0", "+0.5", "+1", "+2"]
    title = "a title of many words " * 12
    assert [len(line) <= 104 for line in plots.wrapped(title, 8).splitlines()] == [True] * 3


def test_the_front_is_drawn_with_its_whole_title(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, _: shown.append(figure))
    points = [front.Point("m", "lvtp", cut, 1.2, (-cut, 0.0, 0.0)) for cut in (0.2, 0.6)]
    front.plot(tmp_path / "front.png", points, "Accuracy against latency on this machine. " * 6)
    [figure] = shown
    figure.draw_without_rendering()
    box = figure._suptitle.get_window_extent()  # type: ignore[attr-defined]
    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert "$" not in "".join(label.get_text() for label in figure.axes[0].get_yticklabels())


def test_parts_tells_the_inserted_kernels_from_the_models(tmp_path: Path) -> None:
    text = run(parts.main, tmp_path / "parts.md", "--depth", "2", "--flops-cut", "0.2")
    rows = {cells[1].strip(): cells for line in text.splitlines() if len(cells := line.split("|")) > 3}
    for kind in ("linear layers", "attention", "convolutions", "norms and the like"):
        assert float(rows[kind][2]) > 0
        assert float(rows[kind][3]) > 0
    assert float(rows["inserted"][2]) == 0
    assert float(rows["inserted"][3]) > 0
    assert "| lvtp.entropy |" in text


def test_kernels_of_the_dense_graph_are_not_inserted() -> None:
    dense = {"aten::addmm": 4.0, "cpp_fused_gelu_view": 1.0, "aten::_scaled_dot_product_flash_attention_for_cpu": 2.0}
    assert parts.by_kind(dense, dense) == {"linear layers": 4.0, "norms and the like": 1.0, "attention": 2.0}
    pruned = {"aten::addmm": 3.0, "aten::sort": 0.5, "cpp_fused_add_scatter": 0.25}
    assert parts.by_kind(pruned, dense) == {"linear layers": 3.0, "inserted": 0.75}


def test_scaling_times_growth_and_passes(tmp_path: Path) -> None:
    out = tmp_path / "scaling.md"
    text = run(scaling.main, out, "--blocks", "2", "--depth", "2", "--depth", "4", "--no-large", "--flops-cut", "0.2")
    figures = json.loads(out.with_suffix(".json").read_text())
    assert figures["growth"][0]["inserted_ms"] > 0
    short, long = figures["passes"]
    assert short["nodes"] < long["nodes"]
    assert 0 < short["passes_s"] < short["transform_s"]
    assert 0 < short["export_s"] < short["capture_s"]
    assert "| 36 | " in text
    assert "Slope of log passes over log nodes" in text
    assert out.with_suffix(".png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_slope_is_the_power(power: float) -> None:
    x = [256, 1024, 4096]
    assert scaling.slope(x, [3 * n**power for n in x]) == pytest.approx(power)


def test_keys_count_the_same_in_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--tokens", "40", "--heads", "2", "--turns", "3")
    text = run(key_weights.main, tmp_path / "forms.md", *arguments, model=())
    cells = text.splitlines()[-1].split("|")
    assert cells[1:3] == [" float32 ", " 40 "]
    assert all(float(cell.strip(" x")) > 0 for cell in cells[3:7])
    monkeypatch.setattr(key_weights, "FORMS", {**key_weights.FORMS, "channel": key_weights.plain})
    with pytest.raises(AssertionError, match="not close"):
        run(key_weights.main, tmp_path / "forms.md", *arguments, model=())
