"""Run by the interpreter of an environment that holds the built wheel: is it whole, and does it work?"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

import lvtp_fx
from lvtp_fx.models.checkpoint import load_bundled
from lvtp_fx.pictures import page, views

folder = Path(sys.argv[1])
package = Path(lvtp_fx.__file__).parent
assert package.is_relative_to(folder), f"lvtp_fx comes from {package}, not from the wheel"
for name in ("passes", "models", "tests", "bench"):
    assert importlib.util.find_spec(name) is None, f"the wheel installs a top-level {name}"
assert (package / "py.typed").is_file(), "the wheel has no py.typed"
model, spec = load_bundled()
x = spec.preprocess(torch.rand(2, 3, *spec.img_size))
fast = lvtp_fx.transform(model, (x,), flops_cut=0.3)
assert fast(x).shape == model(x).shape
assert "lvtp_fx" in torch._dynamo.list_backends(), "torch finds no backend of that name"
assert "blocks.0" in page.render("bundled", fast.report, views.Views()), "the page lacks a block"
print(f"{package.relative_to(folder)}: the bundled segmenter, {fast.report.flops_cut:.1%} fewer FLOPs")
