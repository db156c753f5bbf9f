"""How alike two outputs are, and how right: what a calibration maximises."""

from __future__ import annotations

from typing import Any

import torch

from lvtp_fx.classes import find_logits, find_planes, floats


def reference(output: Any) -> list[torch.Tensor]:
    """What of a dense output has to be kept: class maps int64 [B, H, W] where it holds planes of two classes or more
    (`lvtp_fx.classes.find_planes`), all its floating-point tensors where not.

    Raises:
        ValueError: there is no such tensor.
    """
    found, planes = list(floats(output)), find_planes(output)
    if not found:
        raise ValueError("the model's output holds no floating-point tensor")
    return [planes.argmax(1)] if planes is not None and planes.shape[1] > 1 else found


def likeness(output: Any, dense: list[torch.Tensor]) -> float:
    """How alike an output is to the `reference` of the dense one, in [0, 1].

    Share of pixels that are given the same class, or 1 less the largest relative error (of norms) among the tensors; 0
    where a tensor is not a number.
    """
    found = reference(output)
    if not found[0].is_floating_point():
        return float((found[0] == dense[0]).double().mean())
    errors = [float((x - y).double().norm() / y.double().norm().clamp_min(1e-30))
              for x, y in zip(found, dense, strict=True)]
    worst = float(torch.tensor(errors, dtype=torch.float64).max())  # a NaN is not lost, as it is by Python's max
    return max(0.0, 1 - worst)


def tally(output: Any, label: torch.Tensor) -> torch.Tensor:
    """Pixels counted by label and predicted class: [classes, classes] int64 on the CPU, rows the label.

    Args:
        output: holds logits [B, classes, H, W] (`lvtp_fx.classes.find_logits`); where H, W are not the label's, they
            are resized bilinearly.
        label: integers [B, h, w]; what is outside [0, classes) is left out.

    Raises:
        ValueError: for other shapes or dtypes.
    """
    logits = find_logits(output)
    if logits is None or label.ndim != 3 or len(label) != len(logits) or label.is_floating_point():
        shapes = [list(x.shape) for x in floats(output)] if logits is None else list(logits.shape)
        raise ValueError(f"labels need logits [B, classes, H, W] and integers [B, h, w], got "
                         f"{shapes} and {label.dtype} {list(label.shape)}")
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
