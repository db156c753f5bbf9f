"""timm's plain ViTs: one model for each architecture, whatever its size."""

from __future__ import annotations

import re
from typing import Any

import timm
import torch
from coverage_check import Model
from torch import nn

# One flat stream of tokens from the patch embedding to the last norm.
FAMILIES = ("vision_transformer", "deit", "beit", "eva", "naflexvit", "vision_transformer_relpos",
            "vision_transformer_hybrid", "deepseek_vit", "gemma4_vit", "qwen3_vit")


class Final(nn.Module):
    """A linear layer on the final patch tokens."""

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__()
        self.encoder = timm.create_model(name, pretrained=False, num_classes=0, **kwargs)
        self.prefix = getattr(self.encoder, "num_prefix_tokens", 0)
        self.head = nn.LazyLinear(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.encoder.forward_features(x)
        if isinstance(tokens, dict):
            tokens = tokens["patches"]
        if tokens.ndim == 4:
            return self.head(tokens.movedim(1, -1))
        return self.head(tokens[:, self.prefix :])


class Taps(nn.Module):
    """The planes of four blocks, joined, and a convolution."""

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__()
        self.encoder = timm.create_model(name, pretrained=False, num_classes=0, **kwargs)
        self.head = nn.LazyConv2d(8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        planes = self.encoder.forward_intermediates(x, indices=4, output_fmt="NCHW", intermediates_only=True)
        return self.head(torch.cat(planes, dim=1))


def sized(name: str) -> tuple[dict[str, Any], tuple[int, int]]:
    """Keyword arguments that make a model small (four blocks, 8 x 12 patches) and its image size, or the model's own
    where it does not take them."""
    with torch.device("meta"):
        whole = timm.create_model(name, pretrained=False, num_classes=0)
        native = tuple((whole.pretrained_cfg.get("input_size") or (3, 224, 224))[-2:])
        patches = [getattr(m, "patch_size", None) for m in whole.modules()]
        patch = next((p for p in patches if isinstance(p, tuple)), None)
        size = (8 * patch[0], 12 * patch[1]) if patch else None
        for kwargs, image in (({"depth": 4, "img_size": size}, size), ({"depth": 4}, native), ({}, native)):
            if image is None:
                continue
            try:
                timm.create_model(name, pretrained=False, num_classes=0, **kwargs)
            except (TypeError, AssertionError, ValueError, RuntimeError):
                continue
            return kwargs, image
    return {}, native


def _model(name: str, wrapper: type[nn.Module]) -> Model:
    memo: dict[str, Any] = {}

    def small() -> tuple[dict[str, Any], tuple[int, int]]:
        return memo.setdefault("small", sized(name))

    def inputs(batch: int) -> dict[str, Any]:
        return {"x": torch.randn(batch, 3, *small()[1], generator=torch.Generator().manual_seed(batch))}

    def make() -> nn.Module:
        model = wrapper(name, **small()[0]).eval()
        with torch.no_grad():
            model(**inputs(1))  # the lazy layer
        return model

    return Model(f"{name} {wrapper.__name__.lower()}", make, inputs)


def fingerprint(model: nn.Module) -> frozenset[object]:
    """What an architecture is made of: types, switches and kinds of parameters of its modules, numbers left out."""
    parts: set[object] = set()
    for path, module in model.named_modules():
        switches = tuple(sorted((k, v) for k, v in vars(module).items()
                                if isinstance(v, (bool, str)) and k != "training" and not k.startswith("_")))
        parameters = tuple(k for k, p in module._parameters.items() if p is not None)
        parts.add((re.sub(r"\d+", "*", path), type(module).__name__, switches, parameters))
    return frozenset(parts)


def distinct() -> list[str]:
    """The smallest model of each architecture among the families of the installed timm."""
    smallest: dict[frozenset[object], tuple[int, str]] = {}
    for family in FAMILIES:
        for name in timm.list_models(module=family):
            with torch.device("meta"):
                model = timm.create_model(name, pretrained=False, num_classes=0)
            size = sum(p.numel() for p in model.parameters()), name
            key = fingerprint(model)
            smallest[key] = min(size, smallest.get(key, size))
    return sorted(name for _, name in smallest.values())
