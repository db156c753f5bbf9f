"""A plain ViT segmenter, written as people write them by hand."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class SegmenterConfig:
    """Shape of a `Segmenter`.

    Attributes:
        img_size: height and width in pixels, a multiple of `patch_size`.
        patch_size: pixels a token covers along each axis.
        classes: number of classes.
        C: channels, a multiple of `heads`.
        depth: number of blocks.
        heads: attention heads of a block.
        mlp_ratio: width of the MLP over C.

    Raises:
        ValueError: for values below 1, or that are not such multiples.
    """

    img_size: int = 192
    patch_size: int = 8
    classes: int = 7
    C: int = 128
    depth: int = 8
    heads: int = 4
    mlp_ratio: int = 4

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if self.img_size % self.patch_size:
            raise ValueError(f"img_size {self.img_size} is no multiple of patch_size {self.patch_size}")
        if self.C % self.heads:
            raise ValueError(f"C {self.C} is no multiple of heads {self.heads}")

    @property
    def grid(self) -> int:
        """Tokens along each axis."""
        return self.img_size // self.patch_size


class Block(nn.Module):
    """Pre-norm transformer block on [B, N, C]."""

    def __init__(self, C: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.qkv, self.proj = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.mlp = nn.Sequential(nn.Linear(C, mlp_ratio * C), nn.GELU(), nn.Linear(mlp_ratio * C, C))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(attended.transpose(1, 2).reshape(B, N, C))
        out: torch.Tensor = x + self.mlp(self.norm2(x))
        return out


class Segmenter(nn.Module):
    """Image [B, 3, S, S], normalised by `normalize`, to logits [B, classes, S, S].

    One class token is a prefix; each patch token predicts the logits of its own pixels (a linear head and a
    pixel shuffle).
    """

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config, C = config, config.C
        self.img_size = config.img_size
        self.embed = nn.Conv2d(3, C, config.patch_size, config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, C))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid**2, C))
        self.blocks = nn.Sequential(*(Block(C, config.heads, config.mlp_ratio) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(C)
        self.head = nn.Linear(C, config.classes * config.patch_size**2)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(image).flatten(2).transpose(1, 2) + self.pos_embed
        tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        tokens = self.head(self.norm(self.blocks(tokens))[:, 1:])
        planes = tokens.transpose(1, 2).unflatten(2, (self.config.grid, self.config.grid))
        return F.pixel_shuffle(planes, self.config.patch_size)


def normalize(image: torch.Tensor) -> torch.Tensor:
    """Images [B, 3, H, W] in [0, 1] to the scale that `Segmenter` was trained on, [-2, 2]."""
    return (image - 0.5) / 0.25
