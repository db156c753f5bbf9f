"""What a compiler keeps on disk is not taken for a graph whose ops have changed since."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lvtp_fx
from lvtp_fx import models, passes
from tests.conftest import needs_compiler

RUN = """
import torch, lvtp_fx
from torch._dynamo.utils import counters
from lvtp_fx.models.segmenter import Segmenter, SegmenterConfig
torch.manual_seed(0)
config = SegmenterConfig(img_size=32, patch_size=8, C=8, depth=2, heads=2, classes=2)
x = torch.rand(1, 3, 32, 32)
fast = lvtp_fx.transform(Segmenter(config).eval(), (x,), keep_ratio=0.5, sites=(0,))
with torch.no_grad():
    torch.testing.assert_close(torch.compile(fast)(x), fast(x))
    print(counters["aot_autograd"]["autograd_cache_hit"], float(fast(x).double().sum()))
"""


def run(package: Path, cache: Path) -> tuple[int, float]:
    """Compile with the package of a folder: hits of the cache, and the sum of the output. Fails where the compiled
    graph does not compute what the graph computes."""
    environment = os.environ | {"PYTHONPATH": str(package), "TORCHINDUCTOR_CACHE_DIR": str(cache),
                                "TORCHINDUCTOR_FX_GRAPH_CACHE": "1", "TORCHINDUCTOR_AUTOGRAD_CACHE": "1"}
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, check=False, timeout=300,
                          env=environment, cwd=package)
    assert done.returncode == 0, done.stderr[-2000:]
    hits, total = done.stdout.split()
    return int(hits), float(total)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, to be edited."""
    for module in (lvtp_fx, models, passes):
        target = (tmp_path / "copy").joinpath(*module.__name__.split("."))
        shutil.copytree(module.__path__[0], target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    return tmp_path / "copy"


@needs_compiler
def test_an_op_that_has_changed_is_compiled_anew(package: Path, tmp_path: Path) -> None:
    first, total = run(package, tmp_path / "cache")
    assert first == 0
    assert run(package, tmp_path / "cache") == (1, total)  # nothing has changed: taken from the cache
    source = package / "lvtp_fx/ops/space.py"
    text = source.read_text()
    old = "(old + torch.gather(now"
    assert text.count(old) == 1
    source.write_text(text.replace(old, "(old - torch.gather(now"))
    hits, other = run(package, tmp_path / "cache")
    assert hits == 0
    assert other != total
