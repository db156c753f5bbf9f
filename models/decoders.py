"""Decoders that turn tokens into logits: linear, Segmenter's mask transformer, a DPT-like head.

Each is made of the levels, (channels, (rows, columns)), of the tokens that it reads; of one level, it is called with
those tokens alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from lvtp_fx.models.segmenter import Block

Level = tuple[int, tuple[int, int]]  # channels of tokens, and their (rows, columns)


def as_planes(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """[B, N, C] to [B, C, rows, columns]."""
    planes: torch.Tensor = tokens.transpose(1, 2).unflatten(2, grid)  # type: ignore[no-untyped-call]
    return planes


class LinearHead(nn.Module):
    """One linear layer a token: [B, N, C] to [B, classes, rows, columns]."""

    def __init__(self, levels: Sequence[Level], classes: int) -> None:
        super().__init__()
        ((C, self.grid),) = levels
        self.proj = nn.Linear(C, classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return as_planes(self.proj(tokens), self.grid)


class MaskTransformerHead(nn.Module):
    """Class embeddings attend together with the patch tokens; masks are scalar products of the two.

    After Segmenter (arXiv 2105.05633, section 3.2). [B, N, C] to [B, classes, rows, columns].
    """

    def __init__(self, levels: Sequence[Level], classes: int, depth: int = 2, heads: int = 2) -> None:
        super().__init__()
        ((C, self.grid),) = levels
        self.classes = classes
        self.embed = nn.Linear(C, C)
        self.queries = nn.Parameter(torch.randn(1, classes, C) * 0.02)
        self.blocks = nn.Sequential(*(Block(C, heads, 4) for _ in range(depth)))
        self.norm, self.mask_norm = nn.LayerNorm(C), nn.LayerNorm(classes)
        self.patch_proj, self.class_proj = nn.Linear(C, C, bias=False), nn.Linear(C, C, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.embed(tokens), self.queries.expand(tokens.shape[0], -1, -1)], dim=1)
        x = self.norm(self.blocks(x))
        patches = F.normalize(self.patch_proj(x[:, : -self.classes]), dim=-1)
        classes = F.normalize(self.class_proj(x[:, -self.classes :]), dim=-1)
        return as_planes(self.mask_norm(patches @ classes.transpose(1, 2)), self.grid)


class _Refine(nn.Module):
    """Residual convolution unit."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.second(F.relu(self.first(F.relu(x))))
        return out


class DPTHead(nn.Module):
    """Tokens tapped at several depths, as planes of several strides, fused from coarse to fine.

    After DPT (arXiv 2103.13413, section 3). [B, N, C] of each level to [B, classes, rows, columns] at the finest one.
    Four levels of one grid are resampled to four strides, the finest of 4 * rows by 4 * columns; levels of several
    grids keep their own.
    """

    def __init__(self, levels: Sequence[Level], classes: int, width: int = 32) -> None:
        super().__init__()
        self.grids = [grid for _, grid in levels]
        channels = [C for C, _ in levels]
        if len(set(self.grids)) == 1:
            first, second, third, last = channels
            layers: list[nn.Module] = [
                nn.ConvTranspose2d(first, width, 4, 4), nn.ConvTranspose2d(second, width, 2, 2),
                nn.Conv2d(third, width, 1), nn.Conv2d(last, width, 3, 2, 1),
            ]
        else:
            layers = [nn.Conv2d(C, width, 1) for C in channels]
        self.resample = nn.ModuleList(layers)
        self.refine = nn.ModuleList(_Refine(width) for _ in layers)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, taps: Sequence[torch.Tensor]) -> torch.Tensor:
        planes = [as_planes(tap, grid) for tap, grid in zip(taps, self.grids, strict=True)]
        levels = [layer(plane) for layer, plane in zip(self.resample, planes, strict=True)]
        x = self.refine[-1](levels[-1])
        for level, refine in zip(reversed(levels[:-1]), reversed(self.refine[:-1]), strict=True):
            x = F.interpolate(x, size=level.shape[-2:], mode="bilinear", align_corners=False)
            x = refine(x + level)
        out: torch.Tensor = self.head(x)
        return out


HEADS: dict[str, Callable[[Sequence[Level], int], nn.Module]] = {
    "linear": LinearHead, "mask": MaskTransformerHead, "dpt": DPTHead,
}
