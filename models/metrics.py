"""Segmentation quality: IoU over all pixels and near class boundaries, and agreement of two predictions."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def boundary_band(label: torch.Tensor, boundary_px: int, ignore_index: int | None = None) -> torch.Tensor:
    """The pixels that lie within `boundary_px` of a class boundary.

    A boundary runs between two 4-neighbours that both have a class, and not the same one: the rim of an
    ignored region says where an annotator stopped, not where a class ends, so it is no boundary. Distance is
    Chebyshev's (what a square dilation gives), counted in pixels from the line: the two pixels that touch the
    line are 1 px from it, so the band of a straight boundary is 2 * boundary_px pixels across.

    Args:
        label: [B, H, W] int64, `ignore_index` where there is no class.
        boundary_px: width of the band on each side of the line in px, >= 1.
        ignore_index: the label that means no class, None for none.

    Returns:
        [B, H, W] bool. Ignored pixels may lie in it.

    Raises:
        ValueError: `boundary_px` below 1, or `label` not [B, H, W].
    """
    if boundary_px < 1:
        raise ValueError(f"boundary_px must be >= 1, got {boundary_px}")
    if label.ndim != 3:
        raise ValueError(f"label must be [B, H, W], got {list(label.shape)}")
    valid = _valid(label, ignore_index)
    touching = torch.zeros_like(valid)
    for dim in (1, 2):
        pairs = label.shape[dim] - 1
        here, there = label.narrow(dim, 0, pairs), label.narrow(dim, 1, pairs)
        differ = (here != there) & valid.narrow(dim, 0, pairs) & valid.narrow(dim, 1, pairs)
        for start in (0, 1):
            touching.narrow(dim, start, pairs).logical_or_(differ)
    reach = boundary_px - 1
    grown = F.max_pool2d(touching.unsqueeze(1).float(), 2 * reach + 1, stride=1, padding=reach)
    return grown.squeeze(1) > 0


class SegmentationMeter:
    """Streaming IoU, over all pixels and over those near class boundaries.

    The counts are exact, so neither the order nor the size of the batches matters. A class with no pixel in
    the labels nor in the predictions is left out of the means: it was never asked for and never claimed.

    Attributes:
        confusion, boundary_confusion: [C, C] int64 on the CPU, rows the label, columns the prediction; of all
            pixels, and of those in `boundary_band`. Ignored pixels are in neither.
        agreeing, compared: pixels whose prediction equals the reference it was compared with, and all that
            were compared.
    """

    def __init__(self, classes: int, ignore_index: int | None = None, boundary_px: int = 3) -> None:
        """Args:
            classes: number of classes C, >= 1.
            ignore_index: label of the pixels to leave out, None for none.
            boundary_px: width of the band in px, >= 1.

        Raises:
            ValueError: `classes` or `boundary_px` below 1.
        """
        for name, value in (("classes", classes), ("boundary_px", boundary_px)):
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        self.classes, self.ignore_index, self.boundary_px = classes, ignore_index, boundary_px
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64)
        self.boundary_confusion = torch.zeros(classes, classes, dtype=torch.int64)
        self.agreeing = self.compared = 0

    def update(
        self, prediction: torch.Tensor, label: torch.Tensor, reference: torch.Tensor | None = None
    ) -> None:
        """Count one batch.

        Args:
            prediction: [B, H, W] int64 in [0, C).
            label: [B, H, W] int64 in [0, C), or `ignore_index`.
            reference: [B, H, W] int64, another model's prediction to count the agreement with.

        Raises:
            ValueError: shapes differ, or a counted pixel's class is out of range; nothing is counted then.
        """
        if prediction.shape != label.shape:
            raise ValueError(f"prediction is {list(prediction.shape)}, label is {list(label.shape)}")
        band = boundary_band(label, self.boundary_px, self.ignore_index)
        valid = _valid(label, self.ignore_index)
        self._check("prediction", prediction[valid])
        self._check("label", label[valid])
        if reference is not None:
            agreeing, compared = _agreeing(prediction, reference, valid)
            self.agreeing, self.compared = self.agreeing + agreeing, self.compared + compared
        cell = label * self.classes + prediction
        self.confusion += self._counts(cell[valid])
        self.boundary_confusion += self._counts(cell[valid & band])

    def miou(self) -> float:
        """Mean IoU over the classes seen, in [0, 1]; NaN before any pixel."""
        return float(_iou(self.confusion).nanmean())

    def boundary_miou(self) -> float:
        """The same over the pixels near class boundaries; NaN where there are none."""
        return float(_iou(self.boundary_confusion).nanmean())

    def iou_per_class(self) -> list[float]:
        """IoU of each class, in [0, 1]; NaN for a class never seen."""
        return [float(value) for value in _iou(self.confusion)]

    def pixel_accuracy(self) -> float:
        """Share of right pixels, in [0, 1]; NaN before any pixel."""
        return float(self.confusion.trace().double() / self.confusion.sum())

    def agreement(self) -> float:
        """Share of pixels, in [0, 1], equal to the references; NaN where there were none."""
        return self.agreeing / self.compared if self.compared else float("nan")

    def _check(self, name: str, values: torch.Tensor) -> None:
        if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < self.classes:
            raise ValueError(f"{name} must be in [0, {self.classes}) where it is not ignored, "
                             f"got {int(values.min())} to {int(values.max())}")

    def _counts(self, cell: torch.Tensor) -> torch.Tensor:
        return torch.bincount(cell, minlength=self.classes**2).reshape(self.classes, self.classes).cpu()


def agreement(
    a: torch.Tensor, b: torch.Tensor, label: torch.Tensor | None = None, ignore_index: int | None = None
) -> float:
    """Share of pixels, in [0, 1], on which two predictions are equal.

    Args:
        a, b: [B, H, W] int64 predictions.
        label: [B, H, W] int64; with `ignore_index`, its ignored pixels are left out. None counts every pixel.

    Returns:
        The share; NaN where no pixel is left.

    Raises:
        ValueError: shapes differ.
    """
    if label is not None and label.shape != a.shape:
        raise ValueError(f"shapes differ: {list(a.shape)} and {list(label.shape)}")
    valid = torch.ones_like(a, dtype=torch.bool) if label is None else _valid(label, ignore_index)
    agreeing, compared = _agreeing(a, b, valid)
    return agreeing / compared if compared else float("nan")


def _agreeing(a: torch.Tensor, b: torch.Tensor, valid: torch.Tensor) -> tuple[int, int]:
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {list(a.shape)} and {list(b.shape)}")
    equal = (a == b)[valid]
    return int(equal.sum()), equal.numel()


def _valid(label: torch.Tensor, ignore_index: int | None) -> torch.Tensor:
    return torch.ones_like(label, dtype=torch.bool) if ignore_index is None else label != ignore_index


def _iou(confusion: torch.Tensor) -> torch.Tensor:
    hit = confusion.diagonal().double()
    return hit / (confusion.sum(0) + confusion.sum(1) - hit)  # 0 / 0 is NaN: the class was never seen
