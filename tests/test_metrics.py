"""The meter against torchmetrics, the boundary band against a loop."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from lvtp_fx.models.boundary import boundary_band
from lvtp_fx.models.metrics import SegmentationMeter, agreement

IGNORE = 5
CLASSES = 5


def labels(seed: int, B: int = 2, H: int = 13, W: int = 17, ignored: bool = True) -> torch.Tensor:
    """Labels [B, H, W] with regions, not noise; class 4 never occurs, so that one class is absent."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, CLASSES - 1, (B, 1, 4, 5), generator=generator)
    label = torch.nn.functional.interpolate(coarse.float(), (H, W)).long()[:, 0]
    if ignored:
        label[torch.rand(label.shape, generator=generator) < 0.1] = IGNORE
    return label


def guesses(seed: int, label: torch.Tensor) -> torch.Tensor:
    """Predictions that are right two times in three, never class 4."""
    generator = torch.Generator().manual_seed(seed + 1)
    noise = torch.randint(0, CLASSES - 1, label.shape, generator=generator)
    wrong = (torch.rand(label.shape, generator=generator) < 1 / 3) | (label == IGNORE)
    return torch.where(wrong, noise, label)


def band_by_loop(label: torch.Tensor, boundary_px: int, ignore_index: int | None) -> torch.Tensor:
    """The definition, pixel by pixel: some touching pair of two classes has an end within boundary_px - 1."""
    H, W = label.shape
    touching = []
    for y in range(H):
        for x in range(W):
            for v, u in ((y + 1, x), (y, x + 1), (y - 1, x), (y, x - 1)):
                if 0 <= v < H and 0 <= u < W:
                    a, b = int(label[y, x]), int(label[v, u])
                    if a != b and ignore_index not in (a, b):
                        touching.append((y, x))
    band = torch.zeros(H, W, dtype=torch.bool)
    for y in range(H):
        for x in range(W):
            band[y, x] = any(max(abs(y - v), abs(x - u)) <= boundary_px - 1 for v, u in touching)
    return band


@pytest.mark.parametrize("boundary_px", [1, 2, 3])
@pytest.mark.parametrize("ignore_index", [None, IGNORE])
def test_band_matches_its_definition(boundary_px: int, ignore_index: int | None) -> None:
    label = labels(0)
    band = boundary_band(label, boundary_px, ignore_index)
    expected = torch.stack([band_by_loop(image, boundary_px, ignore_index) for image in label])
    assert torch.equal(band, expected)


def test_straight_boundary_has_a_band_of_twice_its_width() -> None:
    label = (torch.arange(20) >= 10).long().expand(1, 6, 20)
    assert boundary_band(label, 3)[0].sum(1).tolist() == [6] * 6


def test_rim_of_an_ignored_region_is_no_boundary() -> None:
    label = torch.zeros(1, 8, 8, dtype=torch.int64)
    label[0, 2:5, 2:5] = IGNORE
    assert not boundary_band(label, 3, IGNORE).any()


@pytest.mark.parametrize("ignored", [False, True])
def test_meter_matches_torchmetrics(ignored: bool) -> None:
    options = {"num_classes": CLASSES, "ignore_index": IGNORE}
    per_class = MulticlassJaccardIndex(average="none", **options)
    mean = MulticlassJaccardIndex(average="macro", **options)
    near = MulticlassJaccardIndex(average="macro", **options)
    accuracy = MulticlassAccuracy(average="micro", **options)
    meter = SegmentationMeter(CLASSES, IGNORE, boundary_px=2)
    for seed in range(3):
        label = labels(seed, ignored=ignored)
        prediction = guesses(seed, label)
        meter.update(prediction, label)
        for oracle in (per_class, mean, accuracy):
            oracle.update(prediction, label)
        near.update(prediction, label.where(boundary_band(label, 2, IGNORE), torch.tensor(IGNORE)))
    assert meter.miou() == pytest.approx(float(mean.compute()))
    assert meter.boundary_miou() == pytest.approx(float(near.compute()))
    assert meter.pixel_accuracy() == pytest.approx(float(accuracy.compute()))
    assert meter.iou_per_class()[:4] == pytest.approx(per_class.compute()[:4].tolist())
    assert math.isnan(meter.iou_per_class()[4])  # absent from labels and predictions


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), order=st.permutations(range(4)))
def test_order_and_batches_do_not_matter(seed: int, order: list[int]) -> None:
    label = labels(seed, B=4)
    prediction = guesses(seed, label)
    whole, parts = SegmentationMeter(CLASSES, IGNORE), SegmentationMeter(CLASSES, IGNORE)
    whole.update(prediction, label)
    for i in order:
        parts.update(prediction[i : i + 1], label[i : i + 1])
    assert torch.equal(whole.confusion, parts.confusion)
    assert torch.equal(whole.boundary_confusion, parts.boundary_confusion)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_meter_properties(seed: int) -> None:
    label = labels(seed)
    prediction = guesses(seed, label)
    meter = SegmentationMeter(CLASSES, IGNORE)
    meter.update(prediction, label)
    assert 0 <= meter.miou() <= 1
    assert int(meter.confusion.sum()) == int((label != IGNORE).sum())
    assert (meter.boundary_confusion <= meter.confusion).all()
    assert meter.pixel_accuracy() == pytest.approx(agreement(prediction, label, label, IGNORE))
    perfect = SegmentationMeter(CLASSES, IGNORE)
    perfect.update(label.where(label != IGNORE, torch.tensor(0)), label)
    assert perfect.miou() == perfect.pixel_accuracy() == 1


def test_predictions_on_ignored_pixels_do_not_count() -> None:
    label = torch.tensor([[[0, 1, IGNORE]]])
    meter = SegmentationMeter(CLASSES, IGNORE)
    meter.update(torch.tensor([[[0, 1, 99]]]), label)
    assert meter.miou() == 1


def test_nothing_seen_is_nan() -> None:
    meter = SegmentationMeter(CLASSES, IGNORE)
    assert math.isnan(meter.miou())
    assert math.isnan(meter.boundary_miou())
    assert math.isnan(meter.pixel_accuracy())
    assert math.isnan(agreement(*[torch.zeros(0, 2, 2)] * 2))


def test_agreement_leaves_ignored_pixels_out() -> None:
    a, b = torch.tensor([[[0, 1, 2]]]), torch.tensor([[[0, 2, 1]]])
    assert agreement(a, b) == pytest.approx(1 / 3)
    assert agreement(a, b, torch.tensor([[[0, 1, IGNORE]]]), IGNORE) == pytest.approx(1 / 2)


def test_agreement_with_a_reference_adds_up_over_batches() -> None:
    label = labels(0, B=4)
    prediction, reference = guesses(0, label), guesses(7, label)
    meter = SegmentationMeter(CLASSES, IGNORE)
    assert math.isnan(meter.agreement())
    for part in (slice(0, 1), slice(1, 4)):
        meter.update(prediction[part], label[part], reference[part])
    assert meter.agreement() == pytest.approx(agreement(prediction, reference, label, IGNORE))


def test_meters_add_up() -> None:
    label = labels(0, B=4)
    prediction, reference = guesses(0, label), guesses(7, label)
    whole, first, second = (SegmentationMeter(CLASSES, IGNORE) for _ in range(3))
    whole.update(prediction, label, reference)
    first.update(prediction[:1], label[:1], reference[:1])
    second.update(prediction[1:], label[1:], reference[1:])
    first.add(second)
    for name, value in vars(whole).items():
        assert torch.equal(torch.as_tensor(getattr(first, name)), torch.as_tensor(value)), name


def test_refusals_say_what_was_wrong() -> None:
    meter = SegmentationMeter(2)
    zeros, twos = torch.zeros(1, 2, 2, dtype=torch.int64), torch.full((1, 2, 2), 2)
    with pytest.raises(ValueError, match=r"prediction must be in \[0, 2\)"):
        meter.update(twos, zeros)
    with pytest.raises(ValueError, match=r"label must be in \[0, 2\)"):
        meter.update(zeros, twos)
    assert int(meter.confusion.sum()) == 0
    with pytest.raises(ValueError, match=r"label is \[1, 2, 1\]"):
        meter.update(zeros, zeros[..., :1])
    with pytest.raises(ValueError, match="boundary_px must be >= 1"):
        boundary_band(zeros, 0)
    with pytest.raises(ValueError, match=r"\[B, H, W\]"):
        boundary_band(zeros[0], 3)
    with pytest.raises(ValueError, match="classes must be >= 1"):
        SegmentationMeter(0)
    with pytest.raises(ValueError, match="shapes differ"):
        agreement(zeros, zeros[..., :1])
