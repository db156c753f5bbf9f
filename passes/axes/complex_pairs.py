"""Rules for pairs of channels taken as complex numbers, as some write rotary positions."""

from __future__ import annotations

import torch
from torch import fx

from lvtp_fx.passes.axes.flow import Flow, Reader, Rule, tensors
from lvtp_fx.passes.axes.label import mixed, plain

aten = torch.ops.aten


def as_complex(node: fx.Node, reader: Reader) -> Flow:
    """`view_as_complex`: the last axis, of length 2, goes into the numbers."""
    x = tensors(node)[0]
    label = reader.label(x)
    what = mixed(label[-1:])
    if what:
        return Flow(reader.unknown(node.meta["val"]), {}, f"pairs of {what} become complex numbers")
    return Flow(label[:-1], {x: label})


def as_real(node: fx.Node, reader: Reader) -> Flow:
    """`view_as_real`: an axis of length 2 behind the others."""
    x = tensors(node)[0]
    label = reader.label(x)
    return Flow((*label, plain(2)), {x: label})


RULES: dict[object, Rule] = {
    aten.view_as_complex.default: as_complex,
    aten.view_as_real.default: as_real,
}
