"""The commands are run on a small model of the user's, and on images in files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from lvtp_fx.cli.main import app
from tests.cli.helpers import COLOURS, Call

MODULE = """
import sys
import torch
from lvtp_fx.models.checkpoint import Spec
from lvtp_fx.models.random_weights import randomise
from lvtp_fx.models.segmenter import Segmenter, SegmenterConfig

def model():
    made = randomise(Segmenter(SegmenterConfig(img_size=32, patch_size=4, classes=5, C=32, depth=2, heads=2)), seed=0)
    return made.eval(), Spec((32, 32), 5, 4, 1.0, (0.5,) * 3, (0.25,) * 3)

def model_alone():
    return model()[0]

def large():
    return Segmenter(SegmenterConfig(img_size=32, patch_size=4, classes=257, C=32, depth=2, heads=2)).eval()

def convolution():
    return torch.nn.Conv2d(3, 2, 1)

def broken():
    return 1 / 0

def leaving():
    raise SystemExit(7)

class Talking(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = model()[0]

    def forward(self, image):
        print("talks in forward")
        sys.stdout.buffer.write(b"")
        return self.inner(image)

def talking():
    print("talks")
    return Talking(), model()[1]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a module with models, three photos, and a labelled set of four images with five classes."""
    (tmp_path / "users_own.py").write_text(MODULE)
    rng = np.random.default_rng(0)
    for i in range(3):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 48 + i, 3), dtype=np.uint8)).save(tmp_path / f"photos/p{i}.png")
    for kind in ("images", "labels"):
        (tmp_path / "set" / kind / "val").mkdir(parents=True)
    meta = {"classes": list("abcde"), "num_classes": 5, "ignore_index": 255, "palette": COLOURS}
    (tmp_path / "set/meta.json").write_text(json.dumps(meta))
    (tmp_path / "set/val.txt").write_text("0 1 2 3")
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)).save(tmp_path / f"set/images/val/{i}.jpg")
        label = np.kron(rng.integers(0, 5, (5, 7), dtype=np.uint8), np.ones((8, 8), np.uint8))
        Image.fromarray(label).save(tmp_path / f"set/labels/val/{i}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "users_own", raising=False)
    return tmp_path


@pytest.fixture
def call(folder: Path) -> Call:
    """Run a command in this process; what it must not raise is raised here."""

    def run(*arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return run
