"""The oracle under attentions whose batch, rows or keys do not lie as usual."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lvtp_fx
from lvtp_fx.models.random_weights import randomise
from tests.tiny import Attention, C, D, H, N, PreNorm, TinyViT, fused, picture


class HeadsFirst(nn.Module):
    """Heads outside of the batch: in one axis with it, or in one of their own."""

    def __init__(self, merged: bool) -> None:
        super().__init__()
        self.merged, self.qkv, self.proj = merged, nn.Linear(C, 3 * C), nn.Linear(C, C)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, H, D)).permute(2, 3, 0, 1, 4)  # [H, B, N, D] each
        if self.merged:
            y = F.scaled_dot_product_attention(*(t.flatten(0, 1) for t in (q, k, v))).unflatten(0, (H, x.shape[0]))
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        out: torch.Tensor = self.proj(y.permute(1, 2, 0, 3).flatten(2))
        return out


class OneToken(nn.Module):
    """`nn.MultiheadAttention` with a key more: of zeros, or one that is trained."""

    def __init__(self, zero: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(C, H, batch_first=True, add_zero_attn=zero, add_bias_kv=not zero)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.attention(x, x, x, need_weights=False)[0]
        return out


class Reading(TinyViT):
    """A register reads all tokens after each block, by an attention of one query, and is added to them."""

    def __init__(self) -> None:
        super().__init__([PreNorm(Attention(fused)) for _ in range(3)])
        self.register, self.q, self.kv = nn.Parameter(torch.zeros(1, 1, C)), nn.Linear(C, C), nn.Linear(C, 2 * C)

    def features(self, image: torch.Tensor) -> torch.Tensor:
        x = self.embed(image)
        read = self.register.expand(image.shape[0], -1, -1)
        for block in self.blocks:
            x = block(x)
            k, v = self.kv(x).chunk(2, dim=-1)
            read = read + F.scaled_dot_product_attention(self.q(read), k, v)
            x = x + read
        out: torch.Tensor = self.norm(x)
        return out


def blocks(*attentions: nn.Module) -> nn.Module:
    return TinyViT([PreNorm(attention) for attention in attentions])


class Pooled(nn.Module):
    """Keys of a smaller grid, with a bias for each pair; renormalised, as spelled-out attention may be."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused, self.pool, self.bias = fused, nn.Conv2d(C, C, 2, 2), nn.Parameter(torch.zeros(N, N // 4))
        self.q, self.kv = nn.Linear(C, C), nn.Linear(C, 2 * C)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fewer = self.pool(x.transpose(1, 2).unflatten(2, (8, 8))).flatten(2).transpose(1, 2)
        k, v = self.kv(fewer).chunk(2, dim=-1)
        if self.fused:
            return F.scaled_dot_product_attention(self.q(x), k, v, self.bias)
        attention = (self.q(x) @ k.mT * C**-0.5 + self.bias).softmax(-1)
        return attention / (attention.sum(-1, keepdim=True) + 1e-6) @ v


MODELS: dict[str, Callable[[], nn.Module]] = {
    "heads and batch in one axis": lambda: blocks(*(HeadsFirst(merged=True) for _ in range(3))),
    "heads before the batch": lambda: blocks(*(HeadsFirst(merged=False) for _ in range(3))),
    "a key of zeros": lambda: blocks(Attention(fused), OneToken(zero=True), Attention(fused)),
    "a key that is trained": lambda: blocks(Attention(fused), OneToken(zero=False), Attention(fused)),
    "one query": Reading,
    "keys of another grid": lambda: blocks(Attention(fused), Pooled(fused=True), Attention(fused)),
    "keys of another grid, spelled out": lambda: blocks(Attention(fused), Pooled(fused=False), Attention(fused)),
}


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("name", MODELS)
def test_oracle_agrees(name: str, batch: int) -> None:
    model = randomise(MODELS[name](), seed=0).eval()
    fast = lvtp_fx.transform(model, (picture(),), keep_ratio=0.5, sites=(0,), rounds=1)
    assert lvtp_fx.verify(model, fast, (picture(batch),)).max_error < 5e-6
    assert len(lvtp_fx.decisions(fast, picture(batch))[0].kept[0]) == 32
