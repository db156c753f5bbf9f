"""How alike two outputs are, and how right: what a calibration maximises."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from lvtp_fx.classes import two_planes


def reference(output: Any) -> list[torch.Tensor]:
    """What of a dense output has to be kept: class maps int64 [B, H, W] where its first floating-point tensor is
    logits [B, classes, H, W], all such tensors where it is not.

    Raises:
        ValueError: there is no such tensor.
    """
    found = _tensors(output)
    if not found:
        raise ValueError("the model's output holds no floating-point tensor")
    return [found[0].argmax(1)] if _is_logits(found[0]) else found


def likeness(output: Any, dense: list[torch.Tensor]) -> float:
    """How alike an output is to the `reference` of the dense one, in [0, 1].

    Share of pixels that are given the same class, or 1 less the largest relative error (of norms) among the tensors.
    """
    found = reference(output)
    if not found[0].is_floating_point():
        return float((found[0] == dense[0]).double().mean())
    errors = [float((x - y).double().norm() / y.double().norm().clamp_min(1e-30))
              for x, y in zip(found, dense, strict=True)]
    return max(0.0, 1 - max(errors))


def tally(output: Any, label: torch.Tensor) -> torch.Tensor:
    """Pixels counted by label and predicted class: [classes, classes] int64 on the CPU, rows the label.

    Args:
        output: its first floating-point tensor is logits [B, classes, H, W], or [B, 1, H, W] of two classes; where
            H, W are not the label's, they are resized bilinearly.
        label: integers [B, h, w]; what is outside [0, classes) is left out.

    Raises:
        ValueError: for other shapes or dtypes.
    """
    logits = next(iter(_tensors(output)), torch.zeros(0))
    if logits.ndim == 4:
        logits = two_planes(logits)
    if not _is_logits(logits) or label.ndim != 3 or len(label) != len(logits) or label.is_floating_point():
        raise ValueError(f"labels need logits [B, classes, H, W] and integers [B, h, w], got "
                         f"{list(logits.shape)} and {label.dtype} {list(label.shape)}")
    if logits.shape[-2:] != label.shape[-2:]:
        size = (label.shape[-2], label.shape[-1])
        logits = torch.nn.functional.interpolate(logits.float(), size, mode="bilinear", align_corners=False)
    classes = logits.shape[1]
    label = label.to(logits.device)
    valid = (label >= 0) & (label < classes)
    cell = label[valid].long() * classes + logits.argmax(1)[valid]
    return torch.bincount(cell, minlength=classes**2).reshape(classes, classes).cpu()


def miou(counts: torch.Tensor) -> float:
    """Mean IoU, in [0, 1], over the classes that occur in counts of `tally`; NaN where there are none."""
    hit = counts.diagonal().double()
    return float((hit / (counts.sum(0) + counts.sum(1) - hit)).nanmean())


def _is_logits(x: torch.Tensor) -> bool:
    return x.ndim == 4 and x.shape[1] > 1


def _tensors(output: Any) -> list[torch.Tensor]:
    leaves = pytree.tree_leaves(output)
    if not any(isinstance(x, torch.Tensor) for x in leaves) and hasattr(output, "__dict__"):
        leaves = pytree.tree_leaves(vars(output))  # a dataclass that pytree does not know
    return [x for x in leaves if isinstance(x, torch.Tensor) and x.is_floating_point()]
