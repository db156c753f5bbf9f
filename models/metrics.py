"""Streaming segmentation metrics: mIoU over all pixels, and near class boundaries."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def boundary_band(label: torch.Tensor, distance_px: int, ignore_index: int | None = None) -> torch.Tensor:
    """Pixels within `distance_px` (Chebyshev) of a class boundary: bool [B, H, W].

    A boundary pixel has a 4-neighbour of another class; borders with ignored pixels are none. Distance 1 is the
    boundary pixels themselves.

    Args:
        label: int64 [B, H, W].

    Raises:
        ValueError: for a distance below 1.
    """
    if distance_px < 1:
        raise ValueError(f"distance_px must be at least 1, got {distance_px}")
    edge = torch.zeros_like(label, dtype=torch.bool)
    for here, there in (((slice(None), slice(1, None)), (slice(None), slice(None, -1))),
                        ((slice(None), slice(None), slice(1, None)), (slice(None), slice(None), slice(None, -1)))):
        differs = label[here] != label[there]
        if ignore_index is not None:
            differs &= (label[here] != ignore_index) & (label[there] != ignore_index)
        edge[here] |= differs
        edge[there] |= differs
    reach = distance_px - 1
    wide = F.max_pool2d(edge.float().unsqueeze(1), 2 * reach + 1, stride=1, padding=reach)
    return wide.squeeze(1) > 0


class SegmentationMeter:
    """Confusion counts over many images.

    Attributes:
        all, near: int64 [classes, classes], rows label, columns prediction; `near` counts pixels within
            `boundary_px` of a class boundary of the label.
    """

    def __init__(self, classes: int, ignore_index: int | None = None, boundary_px: int = 3) -> None:
        if classes < 1:
            raise ValueError(f"classes must be at least 1, got {classes}")
        self.classes, self.ignore_index, self.boundary_px = classes, ignore_index, boundary_px
        self.all = torch.zeros(classes, classes, dtype=torch.int64)
        self.near = torch.zeros(classes, classes, dtype=torch.int64)

    def update(self, prediction: torch.Tensor, label: torch.Tensor) -> None:
        """Add images. prediction, label: int64 [B, H, W].

        Raises:
            ValueError: for shapes that differ, or a class outside [0, classes).
        """
        if prediction.shape != label.shape or label.ndim != 3:
            raise ValueError(f"need two [B, H, W], got {tuple(prediction.shape)} and {tuple(label.shape)}")
        valid = torch.ones_like(label, dtype=torch.bool)
        if self.ignore_index is not None:
            valid = label != self.ignore_index
        band = boundary_band(label, self.boundary_px, self.ignore_index)
        self.all += self._confusion(prediction[valid], label[valid])
        self.near += self._confusion(prediction[valid & band], label[valid & band])

    def _confusion(self, prediction: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        for values in (prediction, label):
            if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < self.classes:
                raise ValueError(f"a class lies outside [0, {self.classes})")
        counts = torch.bincount(label * self.classes + prediction, minlength=self.classes**2)
        return counts.reshape(self.classes, self.classes).cpu()

    def iou_per_class(self) -> list[float]:
        """IoU of each class in [0, 1]; NaN for a class in neither labels nor predictions."""
        return _iou(self.all).tolist()

    def miou(self) -> float:
        """Mean IoU in [0, 1] over the classes that occur in labels or predictions."""
        return float(_iou(self.all).nanmean())

    def boundary_miou(self) -> float:
        """The same over the pixels near class boundaries."""
        return float(_iou(self.near).nanmean())

    def accuracy(self) -> float:
        """Share of right pixels."""
        return float(self.all.diagonal().sum() / self.all.sum())


def _iou(confusion: torch.Tensor) -> torch.Tensor:
    hit = confusion.diagonal().double()
    return hit / (confusion.sum(0) + confusion.sum(1) - hit)  # 0 / 0 is NaN: the class does not occur


def agreement(a: torch.Tensor, b: torch.Tensor, label: torch.Tensor | None = None,
              ignore_index: int | None = None) -> float:
    """Share of equal pixels of two predictions [B, H, W], ignored pixels of the label left out."""
    same = a == b
    if label is not None and ignore_index is not None:
        same = same[label != ignore_index]
    return float(same.float().mean())
