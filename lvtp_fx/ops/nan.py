"""What is not a number, replaced."""

from __future__ import annotations

import torch


def without_nan(x: torch.Tensor, value: float) -> torch.Tensor:
    """x with `value` where it is not a number: where it does not equal itself, which Inductor asks eight numbers at a
    time on a CPU, and `isnan` one by one."""
    return x.masked_fill(x != x, value)
