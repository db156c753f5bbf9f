"""Pixels near class boundaries: a band around the lines of a label, and the inner contours of class masks.

All distances are Chebyshev's, what a square dilation gives, in px.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def boundary_band(label: torch.Tensor, boundary_px: int, ignore_index: int | None = None) -> torch.Tensor:
    """The pixels that lie within `boundary_px` of a class boundary.

    A boundary runs between two 4-neighbours that both have a class, and not the same one: the rim of an
    ignored region says where an annotator stopped, not where a class ends, so it is no boundary. Distance is
    counted in pixels from the line: the two pixels that touch the line are 1 px from it, so the band of a
    straight boundary is 2 * boundary_px pixels across.

    Args:
        label: [B, H, W] int64, `ignore_index` where there is no class.
        boundary_px: width of the band on each side of the line in px, >= 1.
        ignore_index: the label that means no class, None for none.

    Returns:
        [B, H, W] bool. Ignored pixels may lie in it.

    Raises:
        ValueError: `boundary_px` below 1, or `label` not [B, H, W].
    """
    _check(label, boundary_px)
    valid = valid_pixels(label, ignore_index)
    touching = torch.zeros_like(valid)
    for dim in (1, 2):
        pairs = label.shape[dim] - 1
        here, there = label.narrow(dim, 0, pairs), label.narrow(dim, 1, pairs)
        differ = (here != there) & valid.narrow(dim, 0, pairs) & valid.narrow(dim, 1, pairs)
        for start in (0, 1):
            touching.narrow(dim, start, pairs).logical_or_(differ)
    return _largest(touching.float(), boundary_px - 1) > 0


def contour_region(classes: torch.Tensor, valid: torch.Tensor, boundary_px: int) -> torch.Tensor:
    """The pixels of each class's mask within `boundary_px` of the mask's own contour, for all classes at once.

    A pixel of a mask is in its region where some counted pixel outside of the mask is at most `boundary_px` away: what
    eroding the mask `boundary_px` times with a 3 x 3 square takes away. As each pixel is in one mask, that is where the
    largest or the smallest class around it is not its own. What is beyond the image and what is not counted is neither
    in nor out of a mask, so neither the image's rim nor that of an ignored region is a contour. (The original of
    boundary IoU takes the image's rim for a contour, which gives every class that reaches it pixels for nothing.)

    Args:
        classes: [B, H, W] int64 >= 0, the class of each pixel: a label or a prediction.
        valid: [B, H, W] bool, the pixels that count. The values of `classes` elsewhere do not matter.
        boundary_px: depth of the region in px, >= 1.

    Returns:
        [B, H, W] bool, false where a pixel does not count.

    Raises:
        ValueError: `boundary_px` below 1, `classes` not [B, H, W], or other shapes.
    """
    _check(classes, boundary_px)
    if valid.shape != classes.shape:
        raise ValueError(f"valid is {list(valid.shape)}, classes is {list(classes.shape)}")
    values = classes.float()  # exact for up to 2**24 classes
    nothing = torch.full_like(values, -torch.inf)
    largest = _largest(values.where(valid, nothing), boundary_px)
    smallest = -_largest((-values).where(valid, nothing), boundary_px)
    return ((largest != values) | (smallest != values)) & valid


def boundary_iou_counts(
    prediction: torch.Tensor, label: torch.Tensor, valid: torch.Tensor, boundary_px: int, classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels in the intersection and in the union of label and prediction near the contours, for each class.

    Boundary IoU (Cheng et al., CVPR 2021, arXiv 2103.16562): of a class's two masks only what lies within `boundary_px`
    of the mask's own contour counts. Its ratio is taken once over the sums of a data set.

    Args:
        prediction, label: [B, H, W] int64 in [0, classes) where `valid`.
        valid: [B, H, W] bool, the pixels that count. boundary_px: >= 1. classes: C.

    Returns:
        Intersection and union, [C] int64 each, on the CPU.
    """
    regions = [contour_region(of, valid, boundary_px) for of in (label, prediction)]
    both = regions[0] & regions[1] & (label == prediction)
    wanted, claimed, shared = (
        torch.bincount(of[where], minlength=classes).cpu()
        for of, where in ((label, regions[0]), (prediction, regions[1]), (label, both)))
    return shared, wanted + claimed - shared


def valid_pixels(label: torch.Tensor, ignore_index: int | None) -> torch.Tensor:
    """Where a label has a class, bool of its shape."""
    return torch.ones_like(label, dtype=torch.bool) if ignore_index is None else label != ignore_index


def _largest(values: torch.Tensor, reach: int) -> torch.Tensor:
    """The largest of the values [B, H, W] at most `reach` away; rows, then columns, since a square is their product."""
    for window, pad in (((2 * reach + 1, 1), (reach, 0)), ((1, 2 * reach + 1), (0, reach))):
        values = F.max_pool2d(values.unsqueeze(1), window, stride=1, padding=pad).squeeze(1)
    return values


def _check(classes: torch.Tensor, boundary_px: int) -> None:
    if boundary_px < 1:
        raise ValueError(f"boundary_px must be >= 1, got {boundary_px}")
    if classes.ndim != 3:
        raise ValueError(f"label must be [B, H, W], got {list(classes.shape)}")
