"""The models that the laws are tested on: small, random weights made large enough that an error would show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lvtp_fx.models.adapters import explicit_segmenter, timm_segmenter, torchvision_segmenter

HEADS = ("linear", "mask", "dpt")


@dataclass(frozen=True)
class Entry:
    """One model: `make(head)` builds it, `build` also randomises it. Images are square, of `size` pixels."""

    name: str
    size: int
    make: Callable[[Any], nn.Module]

    def build(self, head: str = "linear", seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return randomise(self.make(head), seed).eval()

    def image(self, batch: int = 2, seed: int = 1) -> torch.Tensor:
        return torch.randn(batch, 3, self.size, self.size, generator=torch.Generator().manual_seed(seed))


def _timm(name: str, size: int, **kwargs: Any) -> Entry:
    def make(head: Any) -> nn.Module:
        return timm_segmenter(name, head, img_size=size, depth=4, **kwargs)

    return Entry(name, size, make)


ZOO = {
    entry.name: entry
    for entry in (
        _timm("vit_tiny_patch16_224", 128, embed_dim=64, num_heads=2),
        _timm("deit3_small_patch16_224", 128, embed_dim=64, num_heads=2),
        _timm("beit_base_patch16_224", 128, embed_dim=64, num_heads=2),
        _timm("vit_small_patch14_reg4_dinov2", 112, embed_dim=64, num_heads=2),
        _timm("vit_small_patch16_dinov3", 128, embed_dim=64, num_heads=2),
        _timm("eva02_tiny_patch14_224", 112, embed_dim=64, num_heads=2),
        _timm("vit_base_patch16_siglip_224", 128, embed_dim=64, num_heads=2),
        Entry("torchvision_vit", 128, lambda head: torchvision_segmenter(
            head, image_size=128, patch_size=16, num_layers=4, num_heads=2, hidden_dim=64, mlp_dim=128)),
        Entry("explicit_vit", 128, lambda head: explicit_segmenter(head)),
    )
}


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Weights at which nothing is close to neutral: LayerScale, biases, tables and tokens are all of order one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            leaf = name.rsplit(".", 1)[-1]
            if "gamma" in leaf or (leaf == "weight" and p.ndim == 1):  # LayerScale and norms
                p.uniform_(0.5, 1.5, generator=generator)
            elif p.ndim == 1 or "pos" in leaf or "table" in leaf:
                p.normal_(0, 0.5, generator=generator)
            elif "token" in leaf:
                p.normal_(0, 1, generator=generator)
            else:
                p.normal_(0, 1.5 / p[0].numel() ** 0.5, generator=generator)
    return model
