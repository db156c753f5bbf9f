"""What is counted of one image and one model: a row of whole numbers, so that sums are exact in any order."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from accuracy_density import BINS

from lvtp_fx.models.metrics import SegmentationMeter, mean_iou, mean_ratio

STATISTICS = ("miou", "boundary_miou", "boundary_iou")


def fields(classes: int) -> dict[str, tuple[int, ...]]:
    """Parts of a row, in order, and their shapes. The first four are those of `SegmentationMeter`.

    agreeing, compared: pixels predicted as by the dense model, and all that count.
    kept, tokens: living grid tokens after the last site and all of them, by distance to the nearest class boundary.
    wrong, pixels: pixels predicted wrongly and all that count, by the same distance.
    """
    C = classes
    return {"confusion": (C, C), "boundary_confusion": (C, C), "boundary_intersection": (C,), "boundary_union": (C,),
            "agreeing": (), "compared": (), "kept": (BINS,), "tokens": (BINS,), "wrong": (BINS,), "pixels": (BINS,)}


def pack(meter: SegmentationMeter, density: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The counts of one image: int64 [F]."""
    parts = [torch.as_tensor(density[name] if name in density else getattr(meter, name)).reshape(-1)
             for name in fields(meter.classes)]
    return torch.cat(parts)


def unpack(rows: torch.Tensor, classes: int) -> dict[str, torch.Tensor]:
    """The parts of rows or of totals, [..., F], each with its own shape behind the leading axes.

    Raises:
        ValueError: the rows have another length.
    """
    shapes = fields(classes)
    lengths = [prod(shape) for shape in shapes.values()]
    if rows.shape[-1] != sum(lengths):
        raise ValueError(f"a row of {classes} classes has {sum(lengths)} counts, got {rows.shape[-1]}")
    parts = zip(shapes.items(), rows.split(lengths, -1), strict=True)
    return {name: part.reshape(rows.shape[:-1] + shape) for (name, shape), part in parts}


def statistics(totals: torch.Tensor, classes: int) -> dict[str, torch.Tensor]:
    """`STATISTICS` of totals [..., F], shares in [0, 1], float64 [...] each."""
    parts = unpack(totals, classes)
    return {"miou": mean_iou(parts["confusion"]), "boundary_miou": mean_iou(parts["boundary_confusion"]),
            "boundary_iou": mean_ratio(parts["boundary_intersection"], parts["boundary_union"])}
