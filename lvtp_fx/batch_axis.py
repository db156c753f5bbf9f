"""The batch axis of example inputs and of captured values."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from lvtp_fx.errors import Code, LvtpError

# A prime that no real size equals or divides: the symbolic batch size is written so in labels and costs.
BATCH_STAND_IN = 1_000_003


def fixed_size(size: int | torch.SymInt) -> int | None:
    """A size of a captured value, or None where it is free; a symbol that export found to be one number is not."""
    return int(size) if isinstance(size, int) or not size.node.expr.free_symbols else None


def is_batched(leaf: Any, batch: int) -> bool:
    """Whether an input's first axis is the batch."""
    return isinstance(leaf, torch.Tensor) and leaf.ndim > 0 and leaf.shape[0] == batch


def batch_size(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """The batch size of example inputs: axis 0 of the first floating tensor with the most axes.

    Raises:
        LvtpError: LVTP105 where there is none, or it is 0.
    """
    found = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) and t.ndim]
    found.sort(key=lambda t: (not t.is_floating_point(), -t.ndim))
    if not found or found[0].shape[0] == 0:
        raise LvtpError(
            Code.BAD_EXAMPLE, where="example_inputs", expected="a tensor with a batch of at least one",
            got="no tensor" if not found else f"shape {tuple(found[0].shape)}",
            why="the batch axis is found from the example",
            hint="lvtp_fx.transform(model, (torch.rand(1, 3, 224, 224),))",
        )
    return int(found[0].shape[0])


def normal(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs that were made in inference mode as tensors that may be traced."""

    def cloned(leaf: Any) -> Any:
        return leaf.clone() if isinstance(leaf, torch.Tensor) and leaf.is_inference() else leaf

    with torch.inference_mode(False):
        args, kwargs = pytree.tree_map(cloned, (args, kwargs))
    return args, kwargs


def at_least_two(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """export specialises a batch of 1, so an example with one image is repeated."""
    batch = batch_size(args, kwargs)
    if batch > 1:
        return args, kwargs

    def twice(leaf: Any) -> Any:
        return torch.cat([leaf, leaf]) if is_batched(leaf, batch) else leaf

    args, kwargs = pytree.tree_map(twice, (args, kwargs))
    return args, kwargs


def first_image(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same inputs for the first image of the batch alone."""
    batch = batch_size(args, kwargs)
    args, kwargs = pytree.tree_map(lambda leaf: leaf[:1] if is_batched(leaf, batch) else leaf, (args, kwargs))
    return args, kwargs
