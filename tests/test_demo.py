"""The demo: its parts, and one short run from end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from lvtp_fx.cli.timing import compiled
from lvtp_fx.decisions import Decision
from lvtp_fx.demo import Latency, latencies, predict
from lvtp_fx.pictures.examples import Rows, draw
from tests.conftest import needs_compiler


def test_latency_is_median_and_quartiles() -> None:
    assert Latency.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Latency(3.0, 2.0, 4.0)


def test_runs_take_turns() -> None:
    calls: list[str] = []

    def run(name: str) -> torch.Tensor:
        calls.append(name)
        return torch.zeros(1)

    times = latencies([lambda _: run("A"), lambda _: run("B")], torch.zeros(1), rounds=3, warm_up=1)
    assert "".join(calls) == "ABABABAB"
    assert all(0 < t.low_ms <= t.median_ms <= t.high_ms for t in times)


class Broken(nn.Module):
    """A model that Dynamo cannot take whole."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return x + 1


@needs_compiler
def test_a_model_with_graph_breaks_is_compiled_in_pieces() -> None:
    dense, pruned, how = compiled(Broken(), nn.Identity(), torch.zeros(3))
    assert torch.equal(dense(torch.zeros(3)), torch.ones(3))
    assert torch.equal(pruned(torch.zeros(3)), torch.zeros(3))
    assert how.startswith("torch.compile, the dense model in pieces (")
    assert "graph_break" in how
    assert compiled(nn.ReLU(), nn.Identity(), torch.zeros(3))[2] == "torch.compile, fullgraph"


def test_predict_goes_batch_by_batch() -> None:
    sizes: list[int] = []

    def run(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return x

    x = torch.randn(6, 3, 4, 4)
    assert torch.equal(predict(run, x.split(2)), x.argmax(1))
    assert sizes == [2, 2, 2]


@pytest.mark.parametrize("sites", [0, 2])
def test_picture_has_a_row_an_image_and_a_column_a_site(tmp_path: Path, sites: int) -> None:
    kept = [torch.arange(6 - i).expand(2, -1) for i in range(sites)]
    decisions = [Decision(f"blocks.{i}", k, torch.zeros(2, 6, dtype=torch.int64)) for i, k in enumerate(kept)]
    labels = torch.randint(0, 2, (2, 16, 24))
    rows = Rows(torch.rand(2, 3, 16, 24), labels, 1 - labels, decisions, (2, 3))
    path = tmp_path / "new" / "picture.png"
    draw(path, rows, ("a", "b"), ((255, 0, 0), (0, 0, 255)), "title")
    width, height = Image.open(path).size
    assert width == (4 + sites) * 228
    assert height < width


def demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Without a C++ compiler: that way is short, and `make demo` goes the other one."""
    command = [sys.executable, "-m", "lvtp_fx.demo", *arguments]
    environment = {**os.environ, "CXX": str(folder / "no-compiler")}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=folder, env=environment)


def test_demo_runs_and_says_what_it_measured(tmp_path: Path) -> None:
    done = demo(tmp_path, "--images", "3", "--batch-size", "2", "--rounds", "3")
    assert done.returncode == 0, done.stderr
    for part in ("4 held-out scenes", "GFLOPs", "latency_ms, median", "mIoU", "agreement with dense", "eager",
                 "verified", "written: out/demo.png"):
        assert part in done.stdout
    assert Image.open(tmp_path / "out" / "demo.png").size[0] > 1000


def test_demo_prints_one_object(tmp_path: Path) -> None:
    done = demo(tmp_path, "--images", "2", "--batch-size", "2", "--rounds", "2", "--json", "--out", "new/demo.png")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no terminal: no progress
    value = json.loads(done.stdout)
    assert value["pruned"]["miou"] > 0.8
    assert value["dense"]["median_ms"] > 0
    assert value["report"]["flops_cut"] >= 0.35
    assert Path(tmp_path / value["written"]).is_file()


def test_demo_refuses_a_cut_that_is_none(tmp_path: Path) -> None:
    done = demo(tmp_path, "--images", "1", "--flops-cut", "1.5")
    assert done.returncode == 2
    assert "LVTP201" in done.stderr
    assert "Traceback" not in done.stderr


def test_core_imports_without_the_demo_extras() -> None:
    code = ("import sys, lvtp_fx; "
            "print([m for m in ('matplotlib', 'rich', 'typer', 'timm', 'torchvision') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
