"""The models that `bench/train.py` trains, and how each starts from the weights of another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lvtp_fx.models.adapters import EncoderSegmenter
from lvtp_fx.models.camvid import CamVid
from lvtp_fx.models.checkpoint import Spec, TimmLinear
from lvtp_fx.models.timm_encoders import TimmEncoder

IMAGENET = {"scale": "0-255", "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}


@dataclass(frozen=True)
class Kind:
    """One model.

    Attributes:
        kwargs: of `timm.create_model`, as JSON knows them; `img_size` is [height, width] in pixels.
        head: key of `lvtp_fx.models.decoders.HEADS`.
        read: (height, width) that photographs are read at before they are scaled and cropped; above `img_size`
            where they have the detail, so that enlarging them shows it.
        timm_name: name of the encoder.
    """

    kwargs: dict[str, Any]
    head: str
    read: tuple[int, int] = (352, 480)
    timm_name: str = "vit_tiny_patch16_224"


KINDS = {
    # LayerScale starts at one, not near zero: weights that were trained without it fit.
    "mask": Kind({"img_size": [352, 480], "reg_tokens": 4, "no_embed_class": True, "init_values": 1.0}, "mask"),
    "patch8": Kind({"img_size": [176, 240], "patch_size": 8}, "linear"),
}


def card_of(kind: Kind, data: CamVid, start: Spec | None) -> dict[str, Any]:
    """What `lvtp_fx.models.checkpoint.build` needs; images are normalised as the model to start from has seen them."""
    norm = IMAGENET if start is None else {
        "scale": f"0-{start.scale:.0f}", "mean": list(start.mean), "std": list(start.std)}
    return {"what": "", "timm_name": kind.timm_name, "timm_kwargs": kind.kwargs, "head": kind.head,
            "img_size": kind.kwargs["img_size"], "classes": data.classes, "ignore_index": data.ignore_index,
            "normalize": norm}


def warm_start(model: nn.Module, source: nn.Module) -> list[str]:
    """Copy into `model` what fits of another by name and shape; returns the names of what stays as it was.

    A larger patch kernel is summed over blocks of pixels, so that an image shrunk as much gives about the same
    embedding. A position embedding with a row for the class token fits one without: the row is added to the token.

    Raises:
        ValueError: nothing fits.
    """
    mine, theirs = model.state_dict(), _named_alike(source)
    _resample_patches(theirs, mine)
    _fold_class_row(theirs, mine)
    taken = {name: value for name, value in theirs.items() if name in mine and value.shape == mine[name].shape}
    if not taken:
        raise ValueError("--init holds no weights that fit: it must be a timm encoder of the same width")
    model.load_state_dict({**mine, **taken})
    return _in_short(sorted(mine.keys() - taken.keys()))


def _named_alike(source: nn.Module) -> dict[str, torch.Tensor]:
    """Its weights, by the names that `timm_segmenter` gives them."""
    if isinstance(source, TimmLinear):
        prefixes = {"enc.": "encoder.model.", "head.": "head.proj."}
        return {prefixes[part + "."] + rest: value for name, value in source.state_dict().items()
                for part, _, rest in [name.partition(".")]}
    if isinstance(source, EncoderSegmenter) and isinstance(source.encoder, TimmEncoder):
        return dict(source.state_dict())
    return {}


def _resample_patches(theirs: dict[str, torch.Tensor], mine: dict[str, torch.Tensor]) -> None:
    name = "encoder.model.patch_embed.proj.weight"
    if name in theirs and name in mine:
        ratio, rest = divmod(theirs[name].shape[-1], mine[name].shape[-1])
        if ratio > 1 and not rest:
            theirs[name] = F.avg_pool2d(theirs[name], ratio) * ratio**2


def _fold_class_row(theirs: dict[str, torch.Tensor], mine: dict[str, torch.Tensor]) -> None:
    name, token = "encoder.model.pos_embed", "encoder.model.cls_token"
    if name in theirs and token in theirs and name in mine and theirs[name].shape[1] == mine[name].shape[1] + 1:
        theirs[token] = theirs[token] + theirs[name][:, :1]
        theirs[name] = theirs[name][:, 1:]


def _in_short(names: list[str]) -> list[str]:
    """Names, those that differ only by the block's number once."""
    short = (".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names)
    return list(dict.fromkeys(short))
