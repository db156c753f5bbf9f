"""Maps of the sites: the right value at the right place, on a grid that is not square."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import fx

import lvtp_fx
from lvtp_fx.capture import Capture, capture
from lvtp_fx.decisions import observe
from lvtp_fx.errors import LvtpError
from lvtp_fx.models.adapters import timm_segmenter
from lvtp_fx.models.random_weights import randomise
from lvtp_fx.pictures.maps import op_name, site_maps
from lvtp_fx.pictures.views import CELL, make_views

ROWS, COLUMNS, PATCH = 6, 10, 16


@pytest.fixture(scope="module")
def wide() -> SimpleNamespace:
    """A segmenter on a grid of 6 x 10, pruned at two sites, and three images."""
    model = timm_segmenter("vit_tiny_patch16_224", "linear", 5, img_size=(ROWS * PATCH, COLUMNS * PATCH), depth=4,
                           embed_dim=64, num_heads=2)
    model = randomise(model, 0).eval()
    x = torch.randn(3, 3, ROWS * PATCH, COLUMNS * PATCH, generator=torch.Generator().manual_seed(0))
    captured = capture(model, (x,), {})
    return SimpleNamespace(model=model, x=x, captured=captured, fast=pruned(captured))


def pruned(captured: Capture, **options: object) -> fx.GraphModule:
    return lvtp_fx.transform(captured, sites=(0, 2), keep_ratio=0.6, **options)


def test_living_and_owner_are_the_decisions(wide: SimpleNamespace) -> None:
    output, maps = site_maps(wide.fast, wide.x)
    assert torch.equal(output, wide.fast(wide.x))
    for found, decided in zip(maps, lvtp_fx.decisions(wide.fast, wide.x), strict=True):
        assert found.living.shape == found.owner.shape == (3, ROWS, COLUMNS)
        assert found.living.flatten(1).nonzero()[:, 1].view(3, -1).tolist() == decided.kept.tolist()
        assert torch.equal(found.owner.flatten(1), decided.owner)
        living = found.living.flatten(1).gather(1, found.owner.flatten(1))
        assert living.all()


def test_entropy_stands_where_its_token_does(wide: SimpleNamespace) -> None:
    names = [node.name for node in wide.fast.graph.nodes if op_name(node) == "entropy"]
    assert len(names) == 2
    _, decided, values = observe(wide.fast, wide.x, names)
    _, (first, second) = site_maps(wide.fast, wide.x)
    # The op standardises already: at the first site its values are the map, in reading order.
    torch.testing.assert_close(first.scores["entropy"].flatten(1), values[names[0]], atol=1e-4, rtol=0)
    for i in range(3):
        full = second.scores["entropy"][i]
        assert torch.equal(~full.isnan(), first.living[i])
        for value, place in zip(values[names[1]][i], decided[0].kept[i].tolist(), strict=True):
            assert abs(float(full[place // COLUMNS, place % COLUMNS]) - float(value)) < 1e-3


def test_edges_are_where_the_image_has_them(wide: SimpleNamespace) -> None:
    x = torch.zeros(1, 3, ROWS * PATCH, COLUMNS * PATCH)
    # A square inside the token in row 1, column 7.
    x[:, :, PATCH + 4 : 2 * PATCH - 4, 7 * PATCH + 4 : 8 * PATCH - 4] = 1
    for site in site_maps(wide.fast, x)[1]:
        edges = site.scores["edges"][0]
        assert divmod(int(edges.argmax()), COLUMNS) == (1, 7)
        assert int((edges > 0).sum()) == 1


@pytest.mark.parametrize(("options", "there", "absent"), [
    ({}, {"entropy", "edges"}, {}),
    ({"strategy": "random"}, set(), {"entropy": "'random'", "edges": "'random'"}),
    ({"strategy": "shannon"}, {"entropy"}, {"edges": "'shannon'"}),
    ({"strategy": "edges"}, {"edges"}, {"entropy": "'edges'"}),
    ({"strategy": "fused"}, {"received"}, {"entropy": "'fused'", "edges": "'fused'"}),
    ({"strategy": "mutual"}, set(), {"entropy": "'mutual'", "edges": "'mutual'"}),
    ({"entropy_weight": 0}, {"edges"}, {"entropy": "entropy_weight"}),
    ({"reduce": "select", "restore": "frozen"}, {"entropy", "edges"}, {}),
], ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value))
def test_what_a_strategy_does_not_compute_is_left_out_with_a_reason(
    wide: SimpleNamespace, options: dict[str, object], there: set[str], absent: dict[str, str]
) -> None:
    views = make_views(wide.model, pruned(wide.captured, **options), wide.x)
    for site in views.sites:
        assert set(site.pictures) == there | {"living", "owners"}
    assert set(views.absent) == set(absent)
    for name, why in absent.items():
        assert why in views.absent[name]


def test_nothing_pruned_is_no_site_and_no_difference(wide: SimpleNamespace) -> None:
    views = make_views(wide.model, lvtp_fx.transform(wide.captured, flops_cut=0), wide.x)
    assert views.sites == []
    assert views.agreement == [1.0] * 3
    assert not any(picture.any() for picture in views.fixed["difference"])


def test_agreement_and_difference_count_the_same_pixels(wide: SimpleNamespace) -> None:
    views = make_views(wide.model, wide.fast, wide.x)
    dense, fast = (run(wide.x).argmax(1) for run in (wide.model, wide.fast))
    for i, share in enumerate(views.agreement):
        assert share == pytest.approx(float((dense[i] == fast[i]).float().mean()))
        assert np.array_equal(views.fixed["difference"][i][..., 3] > 0, (dense[i] != fast[i]).numpy())
    assert min(views.agreement) < 1  # else this looked at nothing


def test_living_tokens_are_clear_and_dropped_ones_dark(wide: SimpleNamespace) -> None:
    maps, views = site_maps(wide.fast, wide.x)[1], make_views(wide.model, wide.fast, wide.x)
    for site, view in zip(maps, views.sites, strict=True):
        assert view.kept == int(site.living[0].sum())
        for living, pixels in zip(site.living.numpy(), view.pictures["living"], strict=True):
            assert np.array_equal(pixels[..., 3] == 0, living)
            assert pixels[~living, :3].max() < 20


def test_owners_show_groups_and_frame_their_owners(wide: SimpleNamespace) -> None:
    views = make_views(wide.model, wide.fast, wide.x[:1])
    site = site_maps(wide.fast, wide.x[:1])[1][0]
    pixels = views.sites[0].pictures["owners"][0]
    assert pixels.shape == (ROWS * CELL, COLUMNS * CELL, 4)
    sizes = torch.bincount(site.owner.flatten(), minlength=ROWS * COLUMNS)
    for place, owner in enumerate(site.owner.flatten().tolist()):
        row, column = divmod(place, COLUMNS)
        cell = pixels[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
        framed = (cell[0] == 255).all()
        assert framed == (place == owner and sizes[owner] > 1)
        assert (cell[CELL // 2, CELL // 2, 3] > 0) == (sizes[owner] > 1)
        at = [part * CELL + CELL // 2 for part in divmod(owner, COLUMNS)]
        assert np.array_equal(cell[CELL // 2, CELL // 2, :3], pixels[at[0], at[1], :3])


def test_large_images_are_shown_smaller_and_any_range_is_stretched() -> None:
    model = torch.nn.Conv2d(3, 2, 1)
    x = torch.linspace(-5, 9, 2048).expand(1, 3, 100, 2048)
    views = make_views(model, None, x)
    assert views.images[0].shape == (50, 1024, 3)
    assert views.fixed["dense"][0].shape == (50, 1024, 3)
    assert (views.images[0].min(), views.images[0].max()) == (0, 255)


def test_maps_need_a_transformed_module(wide: SimpleNamespace) -> None:
    with pytest.raises(LvtpError, match="LVTP302"):
        site_maps(wide.model, wide.x)
