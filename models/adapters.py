"""Segmenters from encoders that users already have: timm, torchvision, hand-written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
import torch.nn.functional as F
from torch import nn

from lvtp_fx.models.backbones import torchvision_backbone
from lvtp_fx.models.decoders import HEADS, Level
from lvtp_fx.models.timm_encoders import timm_encoder

Head = Literal["linear", "mask", "dpt"]


class TokenEncoder(Protocol):
    """An encoder that gives its final tokens, and tokens after chosen blocks.

    Attributes:
        C, grid: channels, and rows and columns of the final tokens.
        levels: the same of the tokens after each of its `depth` blocks; of a hierarchical encoder they differ.
    """

    C: int
    grid: tuple[int, int]
    img_size: tuple[int, int]
    depth: int
    levels: tuple[Level, ...]

    def tokens(self, image: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] to [B, N, C], final norm applied, prefix dropped."""

    def taps(self, image: torch.Tensor, blocks: Sequence[int]) -> list[torch.Tensor]:
        """[B, N, C] after each of `blocks`."""


class EncoderSegmenter(nn.Module):
    """An encoder and a decoder: [B, 3, H, W] to logits [B, classes, H, W].

    Raises:
        ValueError: for an unknown head, no class, or too few blocks for the head.
    """

    def __init__(self, encoder: TokenEncoder, head: Head, classes: int) -> None:
        super().__init__()
        if head not in HEADS:
            raise ValueError(f"head must be one of {', '.join(HEADS)}, got {head!r}")
        if classes < 1:
            raise ValueError(f"classes must be >= 1, got {classes}")
        self.encoder = cast(Any, encoder)
        self.img_size = encoder.img_size
        self.tap_blocks = _taps(encoder.levels) if head == "dpt" else []
        levels = [encoder.levels[i] for i in self.tap_blocks] or [(encoder.C, encoder.grid)]
        self.head = HEADS[head](levels, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if self.tap_blocks:
            planes = self.head(self.encoder.taps(image, self.tap_blocks))
        else:
            planes = self.head(self.encoder.tokens(image))
        return F.interpolate(planes, size=self.img_size, mode="bilinear", align_corners=False)


def _taps(levels: Sequence[Level]) -> list[int]:
    """Blocks that the dpt head taps: of one grid four, spread evenly; of several the last of each, four at most."""
    grids = [grid for _, grid in levels]
    if len(set(grids)) > 1:
        return sorted({grid: i for i, grid in enumerate(grids)}.values())[-4:]
    if len(grids) < 4:
        raise ValueError(f"the dpt head taps four blocks, the encoder has {len(grids)}")
    return [len(grids) * (i + 1) // 4 - 1 for i in range(4)]


class TorchvisionEncoder(nn.Module):
    """torchvision's VisionTransformer (nn.MultiheadAttention), with random weights or those of a local file.

    Keyword arguments are its own, or those of the model that `name` names ("vit_b_16").

    Raises:
        ImportError: torchvision is not installed.
        FileNotFoundError, RuntimeError: as `torchvision_backbone`.
        ValueError: torchvision has no such model, or it is no VisionTransformer.
    """

    def __init__(self, name: str | None = None, weights: Path | None = None, **kwargs: Any) -> None:
        super().__init__()
        try:
            from torchvision.models import VisionTransformer
        except ImportError as error:
            raise ImportError("torchvision models need the extra: pip install 'lvtp_fx[models]'") from error
        model = VisionTransformer(**kwargs) if name is None else torchvision_backbone(name, weights, **kwargs)
        if not isinstance(model, VisionTransformer):
            raise ValueError(f"{name} is no VisionTransformer with one grid of patch tokens")
        self.model = cast(Any, model)
        self.C, self.depth = self.model.hidden_dim, len(self.model.encoder.layers)
        side = self.model.image_size // self.model.patch_size
        self.grid, self.img_size = (side, side), (self.model.image_size, self.model.image_size)
        self.levels: tuple[Level, ...] = ((self.C, self.grid),) * self.depth

    def _embedded(self, image: torch.Tensor) -> torch.Tensor:
        x = self.model._process_input(image)
        x = torch.cat([self.model.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        out: torch.Tensor = x + self.model.encoder.pos_embedding
        return out

    def tokens(self, image: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.model.encoder.ln(self.model.encoder.layers(self._embedded(image)))[:, 1:]
        return out

    def taps(self, image: torch.Tensor, blocks: Sequence[int]) -> list[torch.Tensor]:
        x, taps = self._embedded(image), []
        for i, layer in enumerate(self.model.encoder.layers):
            x = layer(x)
            if i in blocks:
                taps.append(x[:, 1:])
        return taps


class _ExplicitBlock(nn.Module):
    def __init__(self, C: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.q, self.k, self.v, self.proj = (nn.Linear(C, C) for _ in range(4))
        self.up, self.down = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, N, C = x.shape
        y = self.norm1(x)
        q, k, v = (layer(y).view(B, N, self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        attention = (q @ k.transpose(-2, -1) / (C // self.heads) ** 0.5).softmax(dim=-1)
        x = x + self.proj((attention @ v).transpose(1, 2).reshape(B, N, C))
        out: torch.Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return out


class ExplicitEncoder(nn.Module):
    """A hand-written ViT with attention spelled out as softmax(q k^T) v, and no prefix token."""

    def __init__(
        self, img_size: int = 128, patch_size: int = 16, C: int = 64, depth: int = 4, heads: int = 2
    ) -> None:
        super().__init__()
        if img_size % patch_size or C % heads:
            raise ValueError(f"img_size {img_size} is no multiple of patch_size {patch_size}, "
                             f"or C {C} none of heads {heads}")
        side = img_size // patch_size
        self.C, self.depth, self.grid, self.img_size = C, depth, (side, side), (img_size, img_size)
        self.levels: tuple[Level, ...] = ((C, self.grid),) * depth
        self.embed = nn.Conv2d(3, C, patch_size, patch_size)
        self.position = nn.Parameter(torch.randn(1, side * side, C) * 0.02)
        self.blocks = nn.ModuleList(_ExplicitBlock(C, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(C)

    def tokens(self, image: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.norm(self.taps(image, [self.depth - 1])[0])
        return out

    def taps(self, image: torch.Tensor, blocks: Sequence[int]) -> list[torch.Tensor]:
        x, taps = self.embed(image).flatten(2).transpose(1, 2) + self.position, []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in blocks:
                taps.append(x)
        return taps


def timm_segmenter(name: str, head: Head = "linear", classes: int = 8, **kwargs: Any) -> EncoderSegmenter:
    """A timm backbone and a decoder, in eval mode; keyword arguments are `timm_encoder`'s. The decoder is random."""
    return EncoderSegmenter(timm_encoder(name, **kwargs), head, classes).eval()


def torchvision_segmenter(head: Head = "linear", classes: int = 8, **kwargs: Any) -> EncoderSegmenter:
    """torchvision's VisionTransformer and a decoder, in eval mode; keyword arguments are `TorchvisionEncoder`'s."""
    return EncoderSegmenter(TorchvisionEncoder(**kwargs), head, classes).eval()


def explicit_segmenter(head: Head = "linear", classes: int = 8, **kwargs: Any) -> EncoderSegmenter:
    """The hand-written ViT with a decoder, in eval mode."""
    return EncoderSegmenter(ExplicitEncoder(**kwargs), head, classes).eval()
