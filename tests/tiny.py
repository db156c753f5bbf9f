"""A small hand-written ViT whose attention is given as a function: one model for each way to write attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lvtp_fx.capture import Capture, capture
from lvtp_fx.config import Config
from lvtp_fx.models.random_weights import randomise
from lvtp_fx.passes import pipeline
from lvtp_fx.plan import Plan

B, N, C, H = 2, 64, 32, 2
D = C // H
SIDE = 32  # pixels; patches of 4 give a grid of 8 x 8

# (the attention module, q, k, v [B, H, N, D]) -> the attended values, in the same shape
Form = Callable[["Attention", torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Attention(nn.Module):
    """Self-attention on [B, N, C]; what the forms need lies ready as parameters and buffers."""

    scale = D**-0.5

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        self.qkv, self.proj = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.q_norm, self.k_norm = nn.LayerNorm(D), nn.LayerNorm(D)
        self.dropout = nn.Dropout(0.5)
        self.temperature = nn.Parameter(torch.ones(H, 1, 1))
        self.bias_table = nn.Parameter(torch.zeros(H, N, N))
        self.heads_mix = nn.Parameter(torch.zeros(H, H, 1, 1))
        generator = torch.Generator().manual_seed(0)
        allowed = torch.rand(N, N, generator=generator) > 0.3
        self.allowed: torch.Tensor
        self.register_buffer("allowed", allowed | torch.eye(N, dtype=torch.bool))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).reshape(x.shape[0], -1, 3, H, D).permute(2, 0, 3, 1, 4)
        out: torch.Tensor = self.proj(self.form(self, q, k, v).transpose(1, 2).reshape(x.shape))
        return out


def fused(m: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v)


class PreNorm(nn.Module):
    """x + attention(norm(x)), x + mlp(norm(x))."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attention = nn.LayerNorm(C), nn.LayerNorm(C), attention
        self.mlp = nn.Sequential(nn.Linear(C, 2 * C), nn.GELU(), nn.Linear(2 * C, C))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        out: torch.Tensor = x + self.mlp(self.norm2(x))
        return out


class Embed(nn.Module):
    """Image [B, 3, 32, 32] to tokens [B, 64, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pos_embed = nn.Conv2d(3, C, 4, 4), nn.Parameter(torch.zeros(1, N, C))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.conv(image).flatten(2).transpose(1, 2) + self.pos_embed
        return out


class TinyViT(nn.Module):
    """Patch embedding, blocks, norm, and a linear head on the grid: image to [B, 5, 8, 8]."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.embed, self.blocks = Embed(), nn.ModuleList(blocks)
        self.norm, self.head = nn.LayerNorm(C), nn.Linear(C, 5)

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """[B, N, C], after the norm."""
        x = self.embed(image)
        for block in self.blocks:
            x = block(x)
        out: torch.Tensor = self.norm(x)
        return out

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.features(image)).transpose(1, 2).unflatten(2, (8, 8))
        return out


def vit(form: Form, depth: int = 3) -> nn.Module:
    return randomise(TinyViT([PreNorm(Attention(form)) for _ in range(depth)]), seed=0).eval()


def picture(batch: int = B, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def captured(model: nn.Module, *args: torch.Tensor) -> Capture:
    """To transform and to verify it: capturing is what takes the time."""
    return capture(model.eval(), args or (picture(),), {})


def analyse(model: nn.Module, *args: torch.Tensor, **options: Any) -> Plan:
    """The plan after attention, labels and trunk were found."""
    return pipeline.run(pipeline.analysis(), pipeline.start(captured(model, *args), Config(**options)))
