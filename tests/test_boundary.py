"""Boundary IoU against its definition, pixel by pixel and class by class."""

from __future__ import annotations

import math
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lvtp_fx.models.boundary import boundary_iou_counts, contour_region
from lvtp_fx.models.metrics import SegmentationMeter

IGNORE = 5
CLASSES = 5
Mask = list[list[bool]]


def drawn(seed: int, H: int, W: int) -> torch.Tensor:
    """Classes [1, H, W]: regions and some noise, class 4 nowhere."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, CLASSES - 1, (1, 1, 2, 3), generator=generator)
    regions = torch.nn.functional.interpolate(coarse.float(), (H, W)).long()[:, 0]
    noise = torch.randint(0, CLASSES - 1, (1, H, W), generator=generator)
    return noise.where(torch.rand(1, H, W, generator=generator) < 0.05, regions)


def region_by_loop(classes: torch.Tensor, valid: torch.Tensor, of: int, px: int, rim: bool = False) -> Mask:
    """The mask's pixels with a counted pixel that is not in the mask at most px away, or with the rim, the outside."""
    H, W = classes.shape

    def ends(y: int, x: int) -> bool:
        for v in range(y - px, y + px + 1):
            for u in range(x - px, x + px + 1):
                inside = 0 <= v < H and 0 <= u < W
                if (inside and bool(valid[v, u]) and int(classes[v, u]) != of) or (rim and not inside):
                    return True
        return False

    return [[bool(valid[y, x]) and int(classes[y, x]) == of and ends(y, x) for x in range(W)] for y in range(H)]


def counts_by_loop(
    prediction: torch.Tensor, label: torch.Tensor, valid: torch.Tensor, px: int
) -> tuple[list[int], list[int]]:
    shared, either = [], []
    for of in range(CLASSES):
        a, b = (list(chain(*region_by_loop(x[0], valid[0], of, px))) for x in (label, prediction))
        shared.append(sum(p and q for p, q in zip(a, b, strict=True)))
        either.append(sum(p or q for p, q in zip(a, b, strict=True)))
    return shared, either


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), px=st.integers(1, 3), H=st.integers(1, 11), W=st.integers(1, 13),
       ignored=st.sampled_from([0.0, 0.1, 1.0]))
def test_counts_match_the_definition(seed: int, px: int, H: int, W: int, ignored: float) -> None:
    label, prediction = drawn(seed, H, W), drawn(seed + 1, H, W)
    if ignored == 0.1:  # a region at the rim, and single pixels
        label[0, : H // 2, : W // 3] = IGNORE
    label[torch.rand(label.shape, generator=torch.Generator().manual_seed(seed)) < ignored] = IGNORE
    valid = label != IGNORE
    prediction[~valid] = 99  # what is predicted where nothing counts must not matter, nor be a class
    shared, either = boundary_iou_counts(prediction, label, valid, px, CLASSES)
    assert (shared.tolist(), either.tolist()) == counts_by_loop(prediction, label, valid, px)


def test_regions_of_a_square_on_a_plain() -> None:
    """By hand: a square of 8 at depth 2 is a ring of 8 * 8 - 4 * 4; the plain around it, one of 12 * 12 - 8 * 8."""
    classes = torch.zeros(1, 20, 20, dtype=torch.int64)
    classes[0, 6:14, 6:14] = 1
    region = contour_region(classes, torch.ones_like(classes, dtype=torch.bool), 2)
    assert int((region & (classes == 1)).sum()) == 8 * 8 - 4 * 4
    assert int((region & (classes == 0)).sum()) == 12 * 12 - 8 * 8


def test_neither_the_rim_nor_an_ignored_region_is_a_contour() -> None:
    """One class that ends at nothing but the image and pixels without a class has no contour, unlike the original's."""
    classes, valid = torch.zeros(1, 9, 9, dtype=torch.int64), torch.ones(1, 9, 9, dtype=torch.bool)
    valid[0, 3:5] = False
    assert not contour_region(classes, valid, 3).any()
    assert any(chain(*region_by_loop(classes[0], valid[0], 0, 3, rim=True)))


def test_meter_adds_up_over_images_before_it_divides() -> None:
    meter = SegmentationMeter(CLASSES, IGNORE, boundary_px=2)
    totals = [[0] * CLASSES, [0] * CLASSES]
    for seed in range(3):
        label, prediction = drawn(seed, 9, 11), drawn(seed + 10, 9, 11)
        label[0, seed] = IGNORE
        meter.update(prediction, label)
        for total, found in zip(totals, counts_by_loop(prediction, label, label != IGNORE, 2), strict=True):
            total[:] = [a + b for a, b in zip(total, found, strict=True)]
    shares = [a / b for a, b in zip(*totals, strict=True) if b]
    assert len(shares) == CLASSES - 1  # class 4 is nowhere and does not count
    assert meter.boundary_iou() == pytest.approx(sum(shares) / len(shares))


def test_a_perfect_prediction_is_one_and_nothing_seen_is_nan() -> None:
    label = drawn(0, 12, 12)
    meter = SegmentationMeter(CLASSES, IGNORE)
    assert math.isnan(meter.boundary_iou())
    meter.update(torch.zeros_like(label), torch.zeros_like(label))
    assert math.isnan(meter.boundary_iou())  # one mask over everything has no contour
    meter.update(label, label)
    assert meter.boundary_iou() == 1


def test_an_edge_that_is_off_costs_boundary_iou_more_than_iou() -> None:
    label = (torch.arange(40) >= 20).long().expand(1, 40, 40)
    prediction = (torch.arange(40) >= 21).long().expand(1, 40, 40)
    meter = SegmentationMeter(2)
    meter.update(prediction, label)
    assert meter.boundary_iou() == pytest.approx(2 / 4)  # of three columns each, two are shared
    assert meter.miou() == pytest.approx((20 / 21 + 19 / 20) / 2)


def test_refusals_say_what_was_wrong() -> None:
    zeros = torch.zeros(1, 4, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="boundary_px must be >= 1"):
        contour_region(zeros, zeros == 0, 0)
    with pytest.raises(ValueError, match=r"valid is \[1, 4, 3\]"):
        contour_region(zeros, (zeros == 0)[..., :3], 1)
