"""How long a call takes, on any device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree


def accelerators(inputs: Any) -> set[torch.device]:
    """The devices of all tensors in `inputs` whose calls return before the work is done: all but the CPU."""
    found = {leaf.device for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor)}
    return {device for device in found if device.type != "cpu"}


def stopped_ms(run: Callable[..., Any], *inputs: Any, devices: set[torch.device]) -> float:
    """Milliseconds of `run(*inputs)`, until the devices have done what they were given."""
    _wait(devices)
    start = time.perf_counter()
    run(*inputs)
    _wait(devices)
    return 1e3 * (time.perf_counter() - start)


def _wait(devices: set[torch.device]) -> None:
    for device in devices:
        torch.accelerator.synchronize(device)
