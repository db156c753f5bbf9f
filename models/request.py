"""How a model is asked for, and what is said where it cannot be had."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lvtp_fx.errors import Code, LvtpError
from lvtp_fx.example_inputs import infer_image
from lvtp_fx.models.adapters import Head
from lvtp_fx.models.checkpoint import Spec
from lvtp_fx.models.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess, Size, SpecPreprocess

FORMS = ("bundled, timm:NAME, torchvision:NAME, hf:FOLDER, a folder (checkpoint or transformers), a .pt2 file, "
         "or package.module:function")


@dataclass(frozen=True)
class Request:
    """How a model is asked for.

    Attributes:
        name: one of `FORMS`.
        size: (height, width) of its input in px; None for its own.
        head, classes: of the decoder that a timm or torchvision backbone gets; None for "linear" and 8.
        weights: a state dict for such a backbone, or for it and its decoder; None for random weights.
        device, dtype: where and as what the model runs; None for float32, or what an exported program was made of.
    """

    name: str
    size: Size | None = None
    head: Head | None = None
    classes: int | None = None
    weights: Path | None = None
    device: str = "cpu"
    dtype: torch.dtype | None = None


def guessed(request: Request, size: Size | None, why: str) -> tuple[Preprocess, tuple[str, ...]]:
    """ImageNet's mean and standard deviation, and a note that says so.

    Raises:
        LvtpError: LVTP103 without a size.
    """
    if size is None:
        raise LvtpError(
            Code.SHAPE_NOT_INFERABLE, where=request.name, expected="an image size",
            got="none that the model's attributes say", why="the token grid is fixed when the graph is captured",
            hint="--size HEIGHTxWIDTH")
    note = f"images are normalised by ImageNet's mean and deviation: {why}"
    return SpecPreprocess(Spec(size, 0, None, 1.0, IMAGENET_MEAN, IMAGENET_STD)), (note,)


def inferred_size(model: nn.Module) -> Size | None:
    """What the model's attributes say, or None."""
    try:
        height, width = infer_image(model).shape[2:]
    except LvtpError:
        return None
    return height, width


def only_own_size(request: Request, own: Size) -> None:
    """Refuse another size than the model's.

    Raises:
        LvtpError: LVTP106.
    """
    if request.size not in (None, own):
        raise bad_model(request.name, f"{own[0]}x{own[1]}, which it was trained for", f"{request.size}",
                        "its position embedding has that size", "leave --size out")


def bad_device(device: str, error: Exception | str) -> LvtpError:
    """LVTP106."""
    return bad_model(device, "a device of this machine", str(error).splitlines()[0], "the model runs there", "cpu")


def bad_model(where: str, expected: str, got: str, why: str, hint: str) -> LvtpError:
    """LVTP106."""
    return LvtpError(Code.BAD_MODEL, where=where, expected=expected, got=got, why=why, hint=hint)
