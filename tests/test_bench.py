"""`bench/accuracy.py` as people start it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench" / "accuracy.py"
SHARED = Path(os.environ.get("LVTP_FX_SHARED", Path(__file__).parents[2] / "shared"))


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def figures(tmp_path: Path, *arguments: object) -> list[dict[str, object]]:
    done = bench(*arguments, "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr
    assert "boundary mIoU (3 px)" in done.stdout
    rows: list[dict[str, object]] = json.loads((tmp_path / "figures.json").read_text())["rows"]
    return rows


def test_scenes_need_no_arguments_but_may_have_them(tmp_path: Path) -> None:
    dense, pruned, same = figures(tmp_path, "--limit", 6, "--flops-cut", 0.35, "--flops-cut", 0)
    assert dense["agreement"] == same["agreement"] == 1
    assert dense["miou"] == same["miou"]
    assert dense["gflops"] == same["gflops"]
    assert pruned["gflops"] <= 0.66 * dense["gflops"]  # type: ignore[operator]
    assert pruned["agreement"] > 0.8  # type: ignore[operator]


@pytest.mark.skipif(not (SHARED / "camvid").is_dir(), reason="CamVid is not at hand (LVTP_FX_SHARED)")
def test_camvid_with_settings_and_strategies(tmp_path: Path) -> None:
    rows = figures(
        tmp_path, "--data", SHARED / "camvid", "--checkpoint", SHARED / "checkpoints/camvid_vit_tiny_352x480",
        "--limit", 4, "--strategy", "lvtp", "--strategy", "grid", "--set", "restore=copy",
    )
    assert [row["name"] for row in rows] == ["dense", "lvtp, cut 0.35", "grid, cut 0.35"]
    assert [row["config"].get("restore") for row in rows] == [None, "copy", "copy"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("arguments", "message"), [
    (("--data", "nowhere"), "nowhere is missing: expected a folder with meta.json"),
    (("--checkpoint", "nowhere"), "nowhere is no checkpoint"),
    (("--limit", 1, "--set", "restore"), "--set takes field=value"),
    (("--limit", 1, "--strategy", "best"), "LVTP201 config-out-of-range at Config.strategy"),
])
def test_what_the_user_can_put_right_is_no_traceback(arguments: tuple[object, ...], message: str) -> None:
    done = bench(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
