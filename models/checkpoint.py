"""Load a trained segmenter from a folder with `model.safetensors` and `model.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from lvtp_fx.models.segmenter import Segmenter, SegmenterConfig


@dataclass(frozen=True)
class Spec:
    """What a checkpoint expects and predicts.

    Attributes:
        img_size: (height, width) in pixels. classes: number of classes. ignore_index: label to leave out, or None.
        scale: 255.0 or 1.0, what images in [0, 1] are multiplied by before `mean` and `std` are applied.
        what: one line on the model.
    """

    img_size: tuple[int, int]
    classes: int
    ignore_index: int | None
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    what: str = ""

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] in [0, 1] to the model's input, same shape, float32."""
        mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (images * self.scale - mean) / std


class TimmLinear(nn.Module):
    """A timm encoder and a linear layer on its final patch tokens: [B, 3, H, W] to logits [B, classes, H, W]."""

    def __init__(self, name: str, kwargs: Mapping[str, Any], img_size: tuple[int, int], classes: int) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise ImportError("this checkpoint is a timm model: pip install 'lvtp_fx[models]'") from error
        self.enc = timm.create_model(name, pretrained=False, **kwargs)
        self.head = nn.Linear(self.enc.num_features, classes)
        self.img_size, self.prefix = img_size, self.enc.num_prefix_tokens
        self.grid: tuple[int, int] = tuple(self.enc.patch_embed.grid_size)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = self.head(self.enc.forward_features(image)[:, self.prefix :])
        planes = tokens.transpose(1, 2).unflatten(2, self.grid)
        return F.interpolate(planes, self.img_size, mode="bilinear", align_corners=False)


def load_checkpoint(folder: str | Path) -> tuple[nn.Module, Spec]:
    """The model, in eval mode on the CPU, and its spec.

    Raises:
        FileNotFoundError: where the folder or one of its files is missing.
        ValueError: where model.json describes neither kind of model.
    """
    folder = Path(folder)
    for name in ("model.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is no checkpoint: it has no {name}")
    card = json.loads((folder / "model.json").read_text())
    height, width = card["img_size"]
    norm = card["normalize"]
    spec = Spec((height, width), card["classes"], card["ignore_index"], 255.0 if norm["scale"] == "0-255" else 1.0,
                tuple(norm["mean"]), tuple(norm["std"]), card["what"])
    model: nn.Module
    if "segmenter" in card:
        model = Segmenter(SegmenterConfig(**card["segmenter"]))
    elif "timm_name" in card:
        kwargs = {k: tuple(v) if isinstance(v, list) else v for k, v in card["timm_kwargs"].items()}
        model = TimmLinear(card["timm_name"], kwargs, spec.img_size, spec.classes)
    else:
        raise ValueError(f"{folder / 'model.json'} names neither 'segmenter' nor 'timm_name'")
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval(), spec


def load_bundled() -> tuple[nn.Module, Spec]:
    """The segmenter that comes with the package, trained on procedural scenes."""
    with resources.as_file(resources.files("lvtp_fx.models") / "checkpoint") as folder:
        return load_checkpoint(folder)
