"""Options that several commands share, as dataclasses: `command` makes one option of each field."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, cast

import torch
import typer

from lvtp_fx.cli.output import step
from lvtp_fx.models.adapters import Head
from lvtp_fx.models.decoders import HEADS
from lvtp_fx.models.named import Named, load_named
from lvtp_fx.models.predict import Predictor
from lvtp_fx.models.preprocess import Size
from lvtp_fx.models.request import FORMS, Request, bad_device
from lvtp_fx.ranks import own_device, reproducible

HeadName = StrEnum("HeadName", {name: name for name in HEADS})  # type: ignore[misc]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else, to stdout.")]
Images = Annotated[list[Path] | None, typer.Option(
    metavar="PATH", help="An image, or a folder of images; may be repeated.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Take only the first images.")]


class Dtype(StrEnum):
    """Float types that a model can be run in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float64 = "float64"


def size_of(text: str) -> Size:
    """`352x480` is height and width, `224` both.

    Raises:
        typer.BadParameter: it is neither.
    """
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise typer.BadParameter(f"expected HEIGHTxWIDTH or SIDE in px, got {text!r}")
    return int(sides[0]), int(sides[-1])


_of_model = partial(typer.Option, rich_help_panel="Model")  # a heading of --help
_of_windows = partial(typer.Option, rich_help_panel="Windows")


@dataclass(frozen=True)
class ModelOptions:
    """Which model, at which size, where."""

    model: Annotated[str, typer.Argument(metavar="MODEL", help=f"{FORMS}.", show_default=False)]
    size: Annotated[str | None, _of_model(
        metavar="HxW", help="Input size in px, HEIGHTxWIDTH or one side; without it the model's own.")] = None
    head: Annotated[HeadName | None, _of_model(
        help="Decoder of a timm: or torchvision: backbone, linear without it.")] = None
    classes: Annotated[int | None, _of_model(min=1, help="Classes of that decoder, 8 without it.")] = None
    weights: Annotated[Path | None, _of_model(
        metavar="FILE", help="State dict of that backbone, or of it and its decoder (.safetensors, .pth); random "
        "weights without it.")] = None
    device: Annotated[str, _of_model(
        help="Where it runs, e.g. cuda; under torchrun that is a GPU for each process.")] = "cpu"
    dtype: Annotated[Dtype | None, _of_model(
        metavar="TYPE", help=f"Float type it runs in: {', '.join(Dtype)}; the first without it.")] = None

    def load(self, runs: bool = True) -> Named:
        """The model.

        Args:
            runs: it is to compute something, and not looked at alone.

        Raises:
            LvtpError, ImportError: as `load_named`. LvtpError: LVTP106 where it runs on a device without data.
        """
        if runs and self.device.partition(":")[0] == "meta":
            raise bad_device(self.device, "its tensors hold no data")
        return load_named(Request(
            self.model, size_of(self.size) if self.size else None, cast(Head | None, self.head and self.head.value),
            self.classes, self.weights, own_device(self.device),
            getattr(torch, self.dtype.value) if self.dtype else None))

    def load_shared(self) -> Named:
        """The model, for work that several processes share: each computes what one alone would, to the last bit.

        Raises:
            LvtpError, ImportError: as `load`.
        """
        with step(f"load {self.model}"):
            named = self.load()
            reproducible(torch.device(named.device))
        return named


@dataclass(frozen=True)
class WindowOptions:
    """How images get into a model of another size."""

    stride: Annotated[int | None, _of_windows(
        min=1, help="Move a window of the model's size over each image by this many px; without it the whole image is "
        "resized to the model's size.")] = None
    short_side: Annotated[int | None, _of_windows(
        min=1, help="With --stride: resize each image's short side to this many px first.")] = None
    batch: Annotated[int, _of_windows(min=1, help="With --stride: windows that are run at a time.")] = 1

    def given(self) -> dict[str, int | None]:
        """What a predictor is made with, by its own names.

        Raises:
            typer.BadParameter: a batch of whole images.
        """
        if self.batch > 1 and self.stride is None:
            raise typer.BadParameter("only together with --stride: whole images go one at a time", param_hint="--batch")
        return {"stride": self.stride, "short_side": self.short_side, "batch_size": self.batch}

    def predictor(self, named: Named) -> Predictor:
        """The dense model's.

        Raises:
            typer.BadParameter: what does not go with the model's size.
        """
        try:
            return named.predictor(**self.given())
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
