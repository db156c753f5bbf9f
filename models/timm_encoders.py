"""Encoders of timm: of one grid of tokens, and of feature maps, which may be of several sizes."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from lvtp_fx.models.backbones import takes_image_size, timm_backbone
from lvtp_fx.models.decoders import Level


def timm_encoder(name: str, weights: Path | None = None, **kwargs: Any) -> TimmEncoder | TimmMaps:
    """timm's model `name` as an encoder, with random weights or those of a local file.

    Keyword arguments are timm's, and `img_size`, which a model of any size need not know.

    Raises:
        ImportError: timm is not installed.
        FileNotFoundError, RuntimeError: as `timm_backbone`, or the model cannot run on images of that size.
        TypeError: the model does not take one of the arguments.
        ValueError: it gives no feature maps.
    """
    img_size = kwargs.get("img_size")
    if not takes_image_size(name):
        kwargs.pop("img_size", None)
    model = timm_backbone(name, weights, **kwargs)
    needed = ("blocks", "num_prefix_tokens", "patch_embed.grid_size", "patch_embed.img_size")
    if all(_has(model, path) for path in needed):
        return TimmEncoder(model)
    if not all(_has(model, path) for path in ("feature_info", "forward_intermediates")):
        raise ValueError(f"{name} gives no feature maps (forward_intermediates)")
    return TimmMaps(model, img_size or cast(Any, model).pretrained_cfg["input_size"][-2:])


class TimmEncoder(nn.Module):
    """A timm model that keeps one grid of patch tokens through all blocks."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = cast(Any, model)
        self.C, self.depth = self.model.num_features, len(self.model.blocks)
        self.grid: tuple[int, int] = tuple(self.model.patch_embed.grid_size)
        self.levels: tuple[Level, ...] = ((self.C, self.grid),) * self.depth
        self.img_size: tuple[int, int] = tuple(self.model.patch_embed.img_size)

    def tokens(self, image: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.model.forward_features(image)[:, self.model.num_prefix_tokens :]
        return out

    def taps(self, image: torch.Tensor, blocks: Sequence[int]) -> list[torch.Tensor]:
        out: list[torch.Tensor] = self.model.forward_intermediates(
            image, indices=list(blocks), output_fmt="NLC", intermediates_only=True, norm=True)
        return out


class TimmMaps(nn.Module):
    """A timm model seen by its feature maps: hierarchical, convolutional, or a ViT that knows no grid.

    Args:
        img_size: (height, width) in px, or one number for both.

    Raises:
        RuntimeError, AssertionError: the model cannot run on such images; it is run once, on zeros.
    """

    def __init__(self, model: nn.Module, img_size: int | Sequence[int]) -> None:
        super().__init__()
        self.model = cast(Any, model)
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.img_size = (height, width)
        training = model.training
        model.eval()
        self.norm = True
        with torch.no_grad():
            try:
                maps = self._maps(torch.zeros(1, 3, height, width), None)
            except AssertionError:  # some of timm's models (Hiera) give their maps without a last norm only
                self.norm = False
                maps = self._maps(torch.zeros(1, 3, height, width), None)
        model.train(training)
        self.levels: tuple[Level, ...] = tuple((m.shape[1], (m.shape[2], m.shape[3])) for m in maps)
        self.depth = len(self.levels)
        self.C, self.grid = self.levels[-1]

    def tokens(self, image: torch.Tensor) -> torch.Tensor:
        return self.taps(image, [self.depth - 1])[0]

    def taps(self, image: torch.Tensor, blocks: Sequence[int]) -> list[torch.Tensor]:
        return [planes.flatten(2).transpose(1, 2) for planes in self._maps(image, list(blocks))]

    def _maps(self, image: torch.Tensor, indices: list[int] | None) -> list[torch.Tensor]:
        maps: list[torch.Tensor] = self.model.forward_intermediates(
            image, indices=indices, output_fmt="NCHW", intermediates_only=True, norm=self.norm)
        return maps


def _has(model: object, path: str) -> bool:
    try:
        return attrgetter(path)(model) is not None
    except AttributeError:
        return False
