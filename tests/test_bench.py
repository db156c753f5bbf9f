"""`bench/accuracy.py` and `bench/calibration.py` as people start them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tests.tiny_checkpoint import write_tiny

BENCH = Path(__file__).parents[1] / "bench" / "accuracy.py"
SHARED = Path(os.environ.get("LVTP_FX_SHARED", Path(__file__).parents[2] / "shared"))
PYTHON = (sys.executable,)
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
PNG = b"\x89PNG"
MERGING = "bipartite (ToMe-like)"  # a rival for encoders of any depth

sys.path.append(str(BENCH.parent))

import calibration  # noqa: E402
from accuracy import main  # noqa: E402


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def bench(
    folder: Path, *arguments: object, launcher: tuple[str, ...] = (), command: Callable[..., None] = main
) -> Done:
    """Run it in a folder, where it leaves what it writes: as a command, or without a launcher in this process."""
    texts = [str(argument) for argument in arguments]
    if not launcher:
        app = typer.Typer()
        app.command()(command)
        with chdir(folder):
            result = CliRunner().invoke(app, texts)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Done(result.exit_code, result.stdout, result.stderr)
    done = subprocess.run([*launcher, str(BENCH), *texts], capture_output=True, text=True, check=False, timeout=300,
                          cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return Done(done.returncode, done.stdout, done.stderr)


def figures(folder: Path, *arguments: object, launcher: tuple[str, ...] = ()) -> dict[str, Any]:
    done = bench(folder, *arguments, "--json", "figures.json", launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert "boundary mIoU (3 px)" in done.stdout
    found: dict[str, Any] = json.loads((folder / "figures.json").read_text())
    return found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two checkpoints."""
    one, two = (write_tiny(tmp_path_factory.mktemp(f"tiny{seed}"), seed) for seed in (0, 1))
    return one, two


def test_scenes_need_no_arguments_but_may_have_them(tmp_path: Path) -> None:
    found = figures(tmp_path, "--limit", 3, "--flops-cut", 0.35, "--flops-cut", 0, "--density")
    dense, pruned, same = found["checkpoints"][0]["rows"]
    assert dense["agreement"] == same["agreement"] == 1
    assert dense["miou"] == same["miou"]
    assert dense["gflops"] == same["gflops"]
    assert set(same["change"]["boundary_iou"].values()) == {0}
    assert pruned["gflops"] <= 0.66 * dense["gflops"]
    assert pruned["agreement"] > 0.8
    assert pruned["change"]["miou"]["value"] == pytest.approx(100 * (pruned["miou"] - dense["miou"]))
    assert dense["density"]["kept_share"][:3] == [1, 1, 1]
    assert pruned["density"]["kept_share"][0] > pruned["density"]["kept_share"][2]  # edges keep more tokens
    kept = sum(s * n for s, n in zip(*(pruned["density"][k] for k in ("kept_share", "tokens")), strict=True) if n)
    assert round(kept) == 3 * pruned["kept"][-1]
    assert (tmp_path / "out/accuracy.png").read_bytes().startswith(PNG)
    assert "### bundled, cut 0.35" in (tmp_path / "out/accuracy.md").read_text()


def test_processes_and_interruptions_do_not_change_a_digit(tmp_path: Path, tiny: tuple[Path, Path]) -> None:
    """One process writes the same bytes as two under torchrun that go on where another run was stopped."""
    options = ("--checkpoint", tiny[0], "--strategy", "lvtp", "--strategy", MERGING, "--flops-cut", 0.2, "--density")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, stopped):
        folder.mkdir()
    found = figures(whole, *options, "--limit", 6, launcher=PYTHON)
    assert found["checkpoints"][0]["rows"][1]["agreement"] < 1  # there are digits to differ in
    figures(stopped, *options, "--limit", 2)
    done = bench(stopped, *options, "--limit", 6, "--json", "figures.json", launcher=TORCHRUN)
    assert "4/4" in done.stderr, done.stderr  # images that were left, two for each process
    for path in ("figures.json", "out/accuracy.md"):
        assert (stopped / path).read_bytes() == (whole / path).read_bytes()


def test_several_checkpoints_have_a_mean_and_a_refused_cut_has_a_row(tmp_path: Path, tiny: tuple[Path, Path]) -> None:
    found = figures(tmp_path, "--checkpoint", tiny[0], "--checkpoint", tiny[1], "--strategy", "lvtp",
                    "--strategy", MERGING, "--flops-cut", 0.2, "--flops-cut", 0.95, "--limit", 2, "--resamples", 20,
                    "--set", "restore=copy", "--gallery", "gallery.png", "--gallery-cut", 0.2)
    rows = [one["rows"] for one in found["checkpoints"]]
    assert [row["strategy"] for row in rows[0]] == ["dense", "lvtp", MERGING, "lvtp", MERGING]
    assert all(row["config"]["restore"] == "copy" for row in rows[0][1:])
    lvtp, merging, refused = (found["mean"][i] for i in (0, 1, 2))
    changes = [one[1]["change"]["miou"]["value"] for one in rows]
    assert lvtp["change"]["miou"]["value"] == pytest.approx(sum(changes) / 2)
    apart = merging["change"]["miou"]["value"] - lvtp["change"]["miou"]["value"]
    assert merging["minus_lvtp"]["miou"]["value"] == pytest.approx(apart)
    assert rows[0][3]["refused"].startswith("LVTP2")
    assert rows[0][3]["miou"] is None
    assert refused["refused"] == "refused on 2 of 2 checkpoints"
    assert (tmp_path / "gallery.png").read_bytes().startswith(PNG)
    assert rows[0][3]["refused"].splitlines()[0] in (tmp_path / "out/accuracy.md").read_text()


def test_calibration_compares_with_the_default_on_other_images(tmp_path: Path, tiny: tuple[Path, Path]) -> None:
    done = bench(tmp_path, "--checkpoint", tiny[0], "--images", 3, "--passes", 15, "--limit", 2, "--flops-cut", 0.2,
                 "--resamples", 20, "--json", "figures.json", command=calibration.main)
    assert done.returncode == 0, done.stderr
    dense, default, calibrated = json.loads((tmp_path / "figures.json").read_text())
    assert [row["strategy"] for row in (dense, default, calibrated)] == ["dense", "lvtp", "lvtp calibrated"]
    assert f"cut 0.2: sites={tuple(calibrated['config']['sites'])}" in done.stdout
    assert 0.2 <= calibrated["flops_cut"] < 0.23
    assert 0.2 <= default["flops_cut"] < 0.23


def test_calibration_is_not_judged_on_the_images_that_it_saw(tmp_path: Path, tiny: tuple[Path, Path]) -> None:
    done = bench(tmp_path, "--data", tmp_path, "--checkpoint", tiny[0], "--split", "val", command=calibration.main)
    assert done.returncode == 2
    assert "--calibrate-on val is --split" in done.stderr


@pytest.mark.skipif(not (SHARED / "camvid").is_dir(), reason="CamVid is not at hand (LVTP_FX_SHARED)")
def test_camvid_with_settings_and_strategies(tmp_path: Path) -> None:
    found = figures(
        tmp_path, "--data", SHARED / "camvid", "--checkpoint", SHARED / "checkpoints/camvid_vit_tiny_352x480",
        "--limit", 2, "--strategy", "lvtp", "--strategy", "grid", "--set", "restore=copy",
    )
    rows = found["checkpoints"][0]["rows"]
    assert [row["strategy"] for row in rows] == ["dense", "lvtp", "grid"]
    assert [row["aim"] for row in rows] == ["", "cut 0.35", "cut 0.35"]
    assert [row["config"].get("restore") for row in rows] == [None, "copy", "copy"]


@pytest.mark.parametrize(("arguments", "message"), [
    (("--data", "nowhere"), "nowhere is missing: expected a folder with meta.json"),
    (("--checkpoint", "nowhere"), "nowhere is no checkpoint"),
    (("--limit", 1, "--set", "restore"), "--set takes field=value"),
    (("--limit", 1, "--set", "restore=best"), "LVTP201 config-out-of-range at Config.restore"),
    (("--limit", 1, "--strategy", "best"), "--strategy 'best' is unknown; known are all, lvtp"),
    (("--limit", 1, "--gallery-cut", 0.5), "--gallery-cut 0.5 is none of the cuts"),
])
def test_what_the_user_can_put_right_is_no_traceback(
    tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    done = bench(tmp_path, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
