"""Refuse an input that the captured graph was not made for: `lvtp.check_input` and `check_constant`."""

from __future__ import annotations

import torch
from torch.fx.node import has_side_effect

from lvtp_fx.errors import Code, LvtpError
from lvtp_fx.ops.registry import op


@op("check_input(Tensor(a) x, str name, int[] shape, str device, ScalarType dtype) -> Tensor(a)")
def check_input(x: torch.Tensor, name: str, shape: list[int], device: str, dtype: torch.dtype) -> torch.Tensor:
    """Returns x. `shape` has -1 for free axes; `device` is a device type, or "" for any; one floating dtype may stand
    for another, since a graph can be moved to it.

    Raises:
        LvtpError: LVTP401 for another shape or kind of dtype, LVTP402 where the graph holds tensors of another device.
    """
    got = list(x.shape)
    if len(got) != len(shape) or any(want not in (-1, size) for want, size in zip(shape, got, strict=True)):
        wanted = [("any" if want == -1 else str(want)) for want in shape]
        first = len(got) == len(shape) and all(w in (-1, s) for w, s in zip(shape[1:], got[1:], strict=True))
        raise LvtpError(
            Code.BAD_INPUT, where=f"input {name!r}", expected=f"shape [{', '.join(wanted)}]", got=f"shape {got}",
            why="the graph was captured for that first axis: its batch is fixed, as the report's notes say" if first
            else "the token grid and the position tables were captured for that size",
            hint=("pass that many" if first else "resize the input") + ", or call lvtp_fx.transform again with an "
            "example of this size; lvtp_fx.BySize(model) does so for every size that it meets",
        )
    if x.dtype != dtype and not (x.is_floating_point() and dtype.is_floating_point):
        raise LvtpError(
            Code.BAD_INPUT, where=f"input {name!r}", expected=f"a tensor of {dtype}", got=f"one of {x.dtype}",
            why="what the model does with another kind of numbers (scale them, say) is not in the graph",
            hint="convert the input, or call lvtp_fx.transform again with an example of this dtype",
        )
    if device and x.device.type != device:
        raise LvtpError(
            Code.DEVICE_BAKED_IN, where=f"input {name!r}", expected=f"a tensor on {device}", got=str(x.device),
            why="the captured graph creates tensors on the device that it was captured on",
            hint="move the model first, then call lvtp_fx.transform on it",
        )
    return x


@has_side_effect  # no dead code, though nothing uses it
def check_constant(value: object, name: str, captured: object) -> None:
    """Refuse another value of an input that is no tensor: the graph was captured for one.

    Raises:
        LvtpError: LVTP401.
    """
    other = isinstance(value, torch.Tensor) or isinstance(value, bool) is not isinstance(captured, bool)
    if other or value != captured:
        got = f"a tensor {list(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
        raise LvtpError(
            Code.BAD_INPUT, where=f"input {name!r}", expected=repr(captured), got=got,
            why="an input that is no tensor is fixed in the graph, as Python read it when it was captured",
            hint="call lvtp_fx.transform again with this value; lvtp_fx.BySize(model) does so for every value it meets",
        )
