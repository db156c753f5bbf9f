"""Masks that mask nothing are folded away at capture; what might mask something stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lvtp_fx.capture import capture

B, H, N, D = 2, 2, 20, 8
Tensor = torch.Tensor
aten = torch.ops.aten
# (q, k, v [B, H, N, D], bias [1, H, N, N], flags [N] bool) -> attended
Form = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


class Masked(nn.Module):
    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form, self.bias = form, nn.Parameter(torch.randn(1, H, N, N, generator=torch.Generator().manual_seed(0)))
        self.flags: Tensor
        self.register_buffer("flags", torch.ones(N, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        return self.form(x, x * 2, x + 1, self.bias, self.flags)


def seen(x: Tensor) -> Tensor:
    """All True, [B, 1, N, N], as transformers builds it from positions."""
    return (torch.arange(N)[None, None, :, None] >= 0).expand(x.shape[0], 1, N, N)


def nothing(x: Tensor) -> Tensor:
    return torch.where(seen(x), 0.0, float("-inf"))


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT * D**-0.5


FOLDED: dict[str, Form] = {
    "fused, all True": lambda q, k, v, *_: F.scaled_dot_product_attention(q, k, v, seen(q)),
    "fused, all True by name": lambda q, k, v, *_: F.scaled_dot_product_attention(q, k, v, attn_mask=seen(q)),
    "fused, zeros": lambda q, k, v, *_: F.scaled_dot_product_attention(q, k, v, nothing(q)),
    "fused, ones of the batch's size": lambda q, k, v, *_: F.scaled_dot_product_attention(
        q, k, v, q.new_ones(q.shape[0], 1, N, N).bool() & seen(q)),
    "fused, a constant that softmax does not see": lambda q, k, v, *_: F.scaled_dot_product_attention(
        q, k, v, torch.full((N, N), 3.0)),
    "spelled out, added": lambda q, k, v, *_: (scores(q, k) + nothing(q)).softmax(-1) @ v,
    "spelled out, added first": lambda q, k, v, *_: (nothing(q) + scores(q, k)).softmax(-1) @ v,
    "spelled out, filled": lambda q, k, v, *_: scores(q, k).masked_fill(~seen(q), float("-inf")).softmax(-1) @ v,
    "spelled out, where": lambda q, k, v, *_: torch.where(seen(q), scores(q, k), -1e9).softmax(-1) @ v,
    "positions looked up in a mask of ones": lambda q, k, v, *_: F.scaled_dot_product_attention(
        q, k, v, torch.ones(N, dtype=torch.bool)[torch.arange(N)][None, :].expand(N, N)),
}
KEPT: dict[str, Form] = {
    "one key is masked": lambda q, k, v, *_: F.scaled_dot_product_attention(
        q, k, v, (torch.arange(N) != 3).expand(N, N)),
    "every key is masked": lambda q, k, v, *_: F.scaled_dot_product_attention(
        q, k, v, torch.zeros(N, N, dtype=torch.bool)),
    "a buffer, which may be loaded": lambda q, k, v, _, flags: F.scaled_dot_product_attention(
        q, k, v, flags.expand(N, N)),
    "a bias": lambda q, k, v, bias, _: F.scaled_dot_product_attention(q, k, v, bias),
    "minus infinity": lambda q, k, v, *_: F.scaled_dot_product_attention(q, k, v, torch.full((N, N), -torch.inf)),
}


def masks(form: Form) -> tuple[nn.Module, list[object], list[object]]:
    """The captured graph, the masks of its fused attention, and its ops."""
    module = capture(Masked(form), (torch.randn(B, H, N, D),), {}).module
    nodes = list(module.graph.nodes)
    fused = [n for n in nodes if n.target is aten.scaled_dot_product_attention.default]
    found = [n.args[3] if len(n.args) > 3 else n.kwargs.get("attn_mask") for n in fused]
    return module, found, [n.target for n in nodes]


@pytest.mark.parametrize("name", FOLDED)
def test_folded(name: str) -> None:
    module, found, targets = masks(FOLDED[name])
    assert [m for m in found if m is not None] == []
    assert not {aten.where.self, aten.where.ScalarOther, aten.masked_fill.Scalar, aten.arange.default} & set(targets)
    x = torch.randn(3, H, N, D)
    torch.testing.assert_close(module(x), Masked(FOLDED[name])(x))


@pytest.mark.parametrize("name", KEPT)
def test_kept(name: str) -> None:
    module, found, _ = masks(KEPT[name])
    assert [m for m in found if m is None] == []
    x = torch.randn(3, H, N, D)
    torch.testing.assert_close(module(x), Masked(KEPT[name])(x), equal_nan=True)


def test_of_a_sum_only_the_bias_is_left() -> None:
    """transformers adds the True of its mask to a bias, as 1: softmax does not see it."""
    module, (mask,), _ = masks(lambda q, k, v, bias, _: F.scaled_dot_product_attention(q, k, v, bias + seen(q)))
    assert mask.op == "get_attr"  # type: ignore[attr-defined]
    x = torch.randn(3, H, N, D)
    model = Masked(lambda q, k, v, bias, _: F.scaled_dot_product_attention(q, k, v, bias))
    assert torch.equal(module(x), model(x))
