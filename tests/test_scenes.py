"""Procedural scenes: seeded, within their ranges, smooth in their regions and detailed at their edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lvtp_fx.models.boundary import boundary_band
from lvtp_fx.models.scenes import CLASS_NAMES, PALETTE, make_batch, make_scene


def surviving(name: str, labels: torch.Tensor, side: int) -> float:
    """Share of a class's pixels that are the centre of a square of the class, `side` pixels wide."""
    mask = (labels == CLASS_NAMES.index(name)).float()
    eroded = -torch.nn.functional.max_pool2d(-mask, side, stride=1, padding=side // 2)
    return float(eroded.sum() / mask.sum())


def test_same_seed_gives_the_same_scene_and_another_seed_another() -> None:
    first, same, other = make_scene(7, 64), make_scene(7, 64), make_scene(8, 64)
    assert torch.equal(first.image, same.image)
    assert torch.equal(first.label, same.label)
    assert not torch.equal(first.image, other.image)
    assert not torch.equal(first.label, other.label)


def test_scenes_neither_use_nor_move_the_global_generators() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first = make_scene(3, 32)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(make_scene(3, 32).image, first.image)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2 * 10**9), size=st.integers(32, 96))
def test_shapes_types_and_ranges(seed: int, size: int) -> None:
    scene = make_scene(seed, size)
    assert (scene.image.shape, scene.image.dtype) == ((3, size, size), torch.float32)
    assert (scene.label.shape, scene.label.dtype) == ((size, size), torch.int64)
    assert 0 <= scene.image.min() < scene.image.max() <= 1
    assert 0 <= scene.label.min() < scene.label.max() < len(CLASS_NAMES)


def test_a_batch_is_its_scenes() -> None:
    images, labels = make_batch([5, 3], 48)
    assert images.shape == (2, 3, 48, 48)
    for i, seed in enumerate((5, 3)):
        scene = make_scene(seed, 48)
        assert torch.equal(images[i], scene.image)
        assert torch.equal(labels[i], scene.label)


def test_every_class_occurs_in_most_scenes_and_has_its_own_colour() -> None:
    _, labels = make_batch(range(60), 64)
    scenes_with = [(labels == c).flatten(1).any(1).sum().item() for c in range(len(CLASS_NAMES))]
    assert min(scenes_with) > 30, dict(zip(CLASS_NAMES, scenes_with, strict=True))
    assert len(set(PALETTE)) == len(CLASS_NAMES)


def test_regions_are_large_and_boundaries_few() -> None:
    _, labels = make_batch(range(20))
    near = boundary_band(labels, 3).float().mean((1, 2))
    assert (near > 0.02).all()
    assert near.mean() < 0.3
    noise = torch.randint(0, 7, labels.shape, generator=torch.Generator().manual_seed(0))
    assert boundary_band(noise, 3).float().mean() > 0.99  # what has no regions is all boundary


def test_images_change_where_classes_do() -> None:
    images, labels = make_batch(range(20))
    steps = (images[..., 1:] - images[..., :-1]).abs().mean(1)
    edge = labels[..., 1:] != labels[..., :-1]
    assert steps[edge].mean() > 3 * steps[~edge].mean()
    shifted = edge.roll(20, -1)  # the same edges elsewhere do not show
    assert steps[shifted].mean() < 2 * steps[~shifted].mean()


def test_thin_structures_are_thin_and_nothing_else_is() -> None:
    """At 192 px a pole is at most 5.4 px wide, a wire or a fence post 2.7 px."""
    _, labels = make_batch(range(16))
    assert surviving("thin", labels, 1) == 1
    assert surviving("thin", labels, 7) < 0.01
    assert all(surviving(name, labels, 7) > 0.3 for name in CLASS_NAMES if name != "thin")


def test_too_small_a_size_is_refused() -> None:
    assert make_scene(0, 32).label.shape == (32, 32)
    with pytest.raises(ValueError, match="at least 32 pixels a side, got 31"):
        make_scene(0, 31)
    with pytest.raises(ValueError, match="at least 32 pixels a side, got 8"):
        make_batch([0, 1], 8)
