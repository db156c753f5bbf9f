"""The heads: sizes, what reaches which place, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lvtp_fx.models.decoders import HEADS, DPTHead, LinearHead, MaskTransformerHead, as_planes
from lvtp_fx.models.random_weights import randomise

C, CLASSES, GRID = 8, 3, (4, 6)
N = GRID[0] * GRID[1]


def head_and_input(name: str, grid: tuple[int, int] = GRID) -> tuple[nn.Module, Any]:
    head = randomise(HEADS[name]([(C, grid)] * (4 if name == "dpt" else 1), CLASSES), 0)
    taps = [torch.randn(2, grid[0] * grid[1], C, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    return head, taps if name == "dpt" else taps[0]


def test_planes_are_in_reading_order() -> None:
    tokens = torch.arange(N).view(1, N, 1).float() + torch.tensor([0.0, 100.0])
    planes = as_planes(tokens, GRID)
    assert planes.shape == (1, 2, *GRID)
    assert planes[0, :, 1, 2].tolist() == [8, 108]
    with pytest.raises(RuntimeError, match="unflatten"):
        as_planes(tokens, (5, 5))


@pytest.mark.parametrize("grid", [GRID, (5, 7), (1, 1)])
@pytest.mark.parametrize(("name", "scale"), [("linear", 1), ("mask", 1), ("dpt", 4)])
def test_shapes(name: str, scale: int, grid: tuple[int, int]) -> None:
    head, x = head_and_input(name, grid)
    planes = head(x)
    assert planes.shape == (2, CLASSES, scale * grid[0], scale * grid[1])
    assert planes.isfinite().all()


@pytest.mark.parametrize("name", HEADS)
def test_every_weight_takes_part(name: str) -> None:
    head, x = head_and_input(name)
    planes = head(x)
    (planes * torch.randn(planes.shape, generator=torch.Generator().manual_seed(9))).sum().backward()
    for weight, p in head.named_parameters():
        assert p.grad is not None, weight
        assert p.grad.abs().sum() > 0, weight


@torch.no_grad()
def test_linear_head_is_one_layer_a_token() -> None:
    head, x = head_and_input("linear")
    assert isinstance(head, LinearHead)
    assert torch.allclose(head(x)[:, :, 2, 3], head.proj(x[:, 2 * GRID[1] + 3]), atol=1e-6)


def changed(head: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, token: int) -> torch.Tensor:
    """[rows, columns] bool: where the head's planes change with a token."""
    other = x.clone()
    other[:, token] += torch.linspace(-1, 1, C)
    return (head(x) - head(other)).abs().amax((0, 1)) > 1e-6


@torch.no_grad()
def test_tokens_meet_in_the_mask_head_only() -> None:
    linear, x = head_and_input("linear")
    mask, _ = head_and_input("mask")
    own = torch.zeros(GRID, dtype=torch.bool)
    own[1, 1] = True
    assert torch.equal(changed(linear, x, GRID[1] + 1), own)
    assert changed(mask, x, GRID[1] + 1).all()


@torch.no_grad()
def test_mask_head_does_not_mind_the_order_of_the_tokens() -> None:
    head, x = head_and_input("mask")
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(head(x[:, order]).flatten(2), head(x).flatten(2)[:, :, order], atol=1e-5)
    assert not torch.allclose(head(x[:, order]), head(x), atol=1e-2)


@torch.no_grad()
def test_mask_head_compares_classes_pixel_by_pixel() -> None:
    head, x = head_and_input("mask")
    assert isinstance(head, MaskTransformerHead)
    before = head(x)
    head.mask_norm.reset_parameters()
    assert torch.allclose(head(x).mean(1), torch.zeros(2, *GRID), atol=1e-5)
    head.queries[0, 0] += torch.linspace(-1, 1, C)
    assert not torch.allclose(head(x), before, atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("tap", range(4))
def test_dpt_head_uses_each_tap_at_its_place(tap: int) -> None:
    head, taps = head_and_input("dpt", (6, 6))
    other = [t.clone() for t in taps]
    other[tap][:, 0] += 1  # the top left token
    moved = (head(taps) - head(other)).abs().amax((0, 1))
    assert moved[:4, :4].max() > 1e-3
    assert moved[:4, :4].mean() > moved[-4:, -4:].mean()


def test_dpt_head_takes_four_taps() -> None:
    head, taps = head_and_input("dpt")
    assert isinstance(head, DPTHead)
    with pytest.raises(ValueError, match="zip"):
        head(taps[:3])
