"""The models that the laws are tested on: small, with random weights at which an error would show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lvtp_fx.models.adapters import explicit_segmenter, timm_segmenter, torchvision_segmenter
from lvtp_fx.models.random_weights import randomise

HEADS = ("linear", "mask", "dpt")


@dataclass(frozen=True)
class Entry:
    """One encoder: `make(head)` makes a segmenter of it, `build` also randomises it.

    Images are square, of `size` pixels, and give at least 64 tokens. `description`: what is special about it.
    """

    name: str
    size: int
    make: Callable[[Any], nn.Module]
    description: str

    def build(self, head: str = "linear", seed: int = 0) -> nn.Module:
        """The segmenter in eval mode: [B, 3, size, size] to logits [B, 8, size, size]."""
        with torch.random.fork_rng():  # what the libraries draw is overwritten
            model = self.make(head)
        return randomise(model, seed).eval()

    def image(self, batch: int = 2, seed: int = 1) -> torch.Tensor:
        return torch.randn(batch, 3, self.size, self.size, generator=torch.Generator().manual_seed(seed))


def _timm(name: str, size: int, description: str) -> Entry:
    def make(head: Any) -> nn.Module:
        return timm_segmenter(name, head, img_size=size, depth=4, embed_dim=64, num_heads=2)

    return Entry(name, size, make, description)


def _torchvision(head: Any) -> nn.Module:
    shape = {"num_layers": 4, "num_heads": 2, "hidden_dim": 64, "mlp_dim": 128}
    return torchvision_segmenter(head, image_size=128, patch_size=16, **shape)


ZOO = {
    entry.name: entry
    for entry in (
        _timm("vit_tiny_patch16_224", 128, "the plain one"),
        _timm("deit3_small_patch16_224", 128, "LayerScale; no position embedding for the class token"),
        _timm("beit_base_patch16_224", 128, "relative position bias as a mask; no position embedding"),
        _timm("vit_small_patch14_reg4_dinov2", 112, "class token and four registers"),
        _timm("vit_small_patch16_dinov3", 128, "RoPE on patch tokens, class token and four registers"),
        _timm("eva02_tiny_patch14_224", 112, "RoPE and position embedding, SwiGLU"),
        _timm("vit_base_patch16_siglip_224", 128, "no prefix tokens"),
        Entry("torchvision_vit", 128, _torchvision, "nn.MultiheadAttention"),
        Entry("explicit_vit", 128, explicit_segmenter, "softmax(q k^T) v spelled out; no prefix tokens"),
    )
}
ZOO_FULL = tuple((name, head) for name in ZOO for head in HEADS)  # every encoder with every head
