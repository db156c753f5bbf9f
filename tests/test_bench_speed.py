"""`bench/latency.py`, `bench/parts.py` and `bench/scaling.py` on a tiny model: that they measure, not what."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

sys.path.append(str(Path(__file__).parents[1] / "bench"))

import key_weights
import latency
import parts
import scaling

TINY = ("--model", "vit_tiny_patch16_224", "--size", "96", "--turns", "3")
PNG = b"\x89PNG"


def run(command: Callable[..., None], out: Path, *arguments: str, model: tuple[str, ...] = TINY) -> str:
    app = typer.Typer()
    app.command()(command)
    done = CliRunner().invoke(app, [*model, *arguments, "--out", str(out)])
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
    assert min(fast["dense_ms"], fast["pruned_ms"]) > 0
    lines = [line for line in text.splitlines() if "vit_tiny" in line]
    assert f"{fast['ratio']:.2f}x [" in lines[0]
    assert f"{fast['ratio'] * fast['gflops_pruned'] / fast['gflops_dense']:.2f} |" in lines[0]  # the efficiency
    assert "LVTP202" in lines[1]
    assert out.with_suffix(".png").read_bytes().startswith(PNG)


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
