"""Segmentation quality: IoU of all pixels, near class boundaries and of boundaries; agreement of two predictions."""

from __future__ import annotations

import torch

from lvtp_fx.models.boundary import boundary_band, boundary_iou_counts, valid_pixels

BOUNDARY_PX = 3  # how near a boundary is, in px, where nothing else is asked for


class SegmentationMeter:
    """Streaming IoU, over all pixels, over those near class boundaries, and of the boundaries themselves.

    The counts are exact, so neither the order nor the size of the batches matters. A class with no pixel in
    the labels nor in the predictions is left out of the means: it was never asked for and never claimed.

    Attributes:
        confusion, boundary_confusion: [C, C] int64 on the CPU, rows the label, columns the prediction; of all
            pixels, and of those in `boundary_band`. Ignored pixels are in neither.
        boundary_intersection, boundary_union: [C] int64 on the CPU, of `boundary_iou_counts`.
        agreeing, compared: pixels whose prediction equals the reference it was compared with, and all that
            were compared.
    """

    def __init__(self, classes: int, ignore_index: int | None = None, boundary_px: int = BOUNDARY_PX) -> None:
        """Args:
            classes: number of classes C, >= 1.
            ignore_index: label of the pixels to leave out, None for none.
            boundary_px: width of the band, and depth of the contours of boundary IoU, in px, >= 1. (Its authors
                take 2 % of the diagonal, 12 px at 352 x 480: there small things are boundary all over.)

        Raises:
            ValueError: `classes` or `boundary_px` below 1.
        """
        for name, value in (("classes", classes), ("boundary_px", boundary_px)):
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        self.classes, self.ignore_index, self.boundary_px = classes, ignore_index, boundary_px
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64)
        self.boundary_confusion = torch.zeros(classes, classes, dtype=torch.int64)
        self.boundary_intersection = torch.zeros(classes, dtype=torch.int64)
        self.boundary_union = torch.zeros(classes, dtype=torch.int64)
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
        valid = valid_pixels(label, self.ignore_index)
        self._check("prediction", prediction[valid])
        self._check("label", label[valid])
        if reference is not None:
            agreeing, compared = _agreeing(prediction, reference, valid)
            self.agreeing, self.compared = self.agreeing + agreeing, self.compared + compared
        cell = label * self.classes + prediction
        self.confusion += self._counts(cell[valid])
        self.boundary_confusion += self._counts(cell[valid & band])
        shared, either = boundary_iou_counts(prediction, label, valid, self.boundary_px, self.classes)
        self.boundary_intersection += shared
        self.boundary_union += either

    def add(self, other: SegmentationMeter) -> None:
        """Count what another meter, of the same classes, has counted."""
        self.confusion += other.confusion
        self.boundary_confusion += other.boundary_confusion
        self.boundary_intersection += other.boundary_intersection
        self.boundary_union += other.boundary_union
        self.agreeing, self.compared = self.agreeing + other.agreeing, self.compared + other.compared

    def miou(self) -> float:
        """Mean IoU over the classes seen, in [0, 1]; NaN before any pixel."""
        return float(mean_iou(self.confusion))

    def boundary_miou(self) -> float:
        """The same over the pixels near class boundaries; NaN where there are none."""
        return float(mean_iou(self.boundary_confusion))

    def boundary_iou(self) -> float:
        """Mean boundary IoU over the classes whose masks have a contour, in [0, 1]; NaN where none has."""
        return float(mean_ratio(self.boundary_intersection, self.boundary_union))

    def iou_per_class(self) -> list[float]:
        """IoU of each class, in [0, 1]; NaN for a class never seen."""
        return [float(value) for value in iou(self.confusion)]

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
    valid = torch.ones_like(a, dtype=torch.bool) if label is None else valid_pixels(label, ignore_index)
    agreeing, compared = _agreeing(a, b, valid)
    return agreeing / compared if compared else float("nan")


def _agreeing(a: torch.Tensor, b: torch.Tensor, valid: torch.Tensor) -> tuple[int, int]:
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {list(a.shape)} and {list(b.shape)}")
    equal = (a == b)[valid]
    return int(equal.sum()), equal.numel()


def iou(confusion: torch.Tensor) -> torch.Tensor:
    """IoU of each class, float64 [..., C] in [0, 1], of counts [..., C, C]; NaN for a class never seen."""
    hit = confusion.diagonal(dim1=-2, dim2=-1).double()
    return hit / (confusion.sum(-2) + confusion.sum(-1) - hit)


def mean_iou(confusion: torch.Tensor) -> torch.Tensor:
    """Its mean over the classes seen, float64 [...]."""
    return iou(confusion).nanmean(-1)


def mean_ratio(intersection: torch.Tensor, union: torch.Tensor) -> torch.Tensor:
    """Mean over the last axis of intersections over unions, counts [..., C], where there is a union: float64 [...]."""
    return (intersection.double() / union).nanmean(-1)
