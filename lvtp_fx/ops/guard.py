"""`lvtp.check_input`: refuse an input that the captured graph was not made for."""

from __future__ import annotations

import torch

from lvtp_fx.errors import Code, LvtpError
from lvtp_fx.ops.registry import op


@op("check_input(Tensor(a) x, str name, int[] shape, str device) -> Tensor(a)")
def check_input(x: torch.Tensor, name: str, shape: list[int], device: str) -> torch.Tensor:
    """Returns x. `shape` has -1 for free axes; `device` is a device type, or "" for any.

    Raises:
        LvtpError: LVTP401 for another shape, LVTP402 where the graph holds tensors of another device.
    """
    got = list(x.shape)
    if len(got) != len(shape) or any(want not in (-1, size) for want, size in zip(shape, got, strict=True)):
        wanted = [("any" if want == -1 else str(want)) for want in shape]
        raise LvtpError(
            Code.BAD_INPUT, where=f"input {name!r}", expected=f"shape [{', '.join(wanted)}]", got=f"shape {got}",
            why="the token grid and the position tables were captured for that size",
            hint="resize the input, or call lvtp_fx.transform again with an example of this size; "
            "lvtp_fx.BySize(model) does so for every size that it meets",
        )
    if device and x.device.type != device:
        raise LvtpError(
            Code.DEVICE_BAKED_IN, where=f"input {name!r}", expected=f"a tensor on {device}", got=str(x.device),
            why="the captured graph creates tensors on the device that it was captured on",
            hint="move the model first, then call lvtp_fx.transform on it",
        )
    return x
