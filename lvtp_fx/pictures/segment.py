"""Classes that a model predicts, whatever form its output has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

NO_CLASSES = "the model returns no floating tensor [B, classes, height, width]"


def dense_output(model: nn.Module, images: torch.Tensor) -> Any:
    """The output of a model in eval mode, without gradients; the model's modes are put back."""
    with _evaluating(model), torch.no_grad():
        return model(images)


def labels(output: Any) -> torch.Tensor | None:
    """Predicted classes [B, h, w] int64, on the CPU, and None where the output holds no logits.

    Args:
        output: a tensor, or a nest or an object of tensors; its first floating 4-D tensor [B, classes, h, w] is taken
            for the logits. With one class, positive logits are class 1 and others class 0.
    """
    logits = next((t for t in _tensors(output) if t.ndim == 4 and t.is_floating_point() and 0 not in t.shape), None)
    if logits is None:
        return None
    found = logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(1)
    return found.long().cpu()


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, torch.Tensor):
            yield leaf
        elif hasattr(leaf, "__dict__"):  # an output class that pytree does not know
            yield from (value for value in vars(leaf).values() if isinstance(value, torch.Tensor))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    with suppress(NotImplementedError):  # modules of torch.export: their mode is that of their capture
        model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
