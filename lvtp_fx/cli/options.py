"""Options that several commands share, as dataclasses: `command` makes one option of each field."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer

from lvtp_fx.cli.output import step
from lvtp_fx.config import AIMS, STRATEGIES, Config, resolve
from lvtp_fx.errors import Code, LvtpError
from lvtp_fx.models.adapters import Head
from lvtp_fx.models.decoders import HEADS
from lvtp_fx.models.named import Named, load_named
from lvtp_fx.models.predict import Predictor
from lvtp_fx.models.preprocess import Size
from lvtp_fx.models.request import FORMS, Request, bad_device
from lvtp_fx.ranks import own_device, reproducible
from lvtp_fx.replacing import replacing

Strategy = StrEnum("Strategy", {name: name for name in STRATEGIES})  # type: ignore[misc]
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
_of_pruning = partial(typer.Option, rich_help_panel="Pruning")


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
class PruningOptions:
    """Fields of `Config`: from a file, then single ones on top."""

    flops_cut: Annotated[float | None, _of_pruning(
        metavar="SHARE", help="Share of the FLOPs to save, in [0, 1); 0.35 without it.")] = None
    latency_cut: Annotated[float | None, _of_pruning(
        metavar="SHARE", help="Instead: share of the time to save, as a short probe measures it, in (0, 1).")] = None
    keep_ratio: Annotated[str | None, _of_pruning(
        metavar="SHARES",
        help="Instead: share of its tokens that each site keeps, e.g. 0.7, or one a site: 0.8,0.7,0.6.")] = None
    sites: Annotated[str | None, _of_pruning(
        metavar="BLOCKS", help="Blocks after which tokens are dropped: auto, every, or indices, e.g. 0,3,6.")] = None
    strategy: Annotated[Strategy | None, _of_pruning(
        metavar="NAME", help=f"What says which tokens live on: {', '.join(STRATEGIES)}; the first without it.")] = None
    config: Annotated[Path | None, _of_pruning(
        metavar="FILE", help="JSON file of these and other fields of Config, as `lvtp-fx calibrate` writes it.")] = None
    set_: Annotated[list[str] | None, _of_pruning(
        "--set", metavar="NAME=VALUE",
        help="Any other field of Config, e.g. restore=copy or cell=[3,3]; may be repeated.")] = None

    def overrides(self) -> dict[str, Any]:
        """The fields that were given on the command line.

        Raises:
            typer.BadParameter: a value that cannot be read, or several that say how much is pruned.
        """
        given: dict[str, Any] = {}
        for text in self.set_ or ():
            name, equals, value = text.partition("=")
            if not equals:
                raise typer.BadParameter(f"expected NAME=VALUE, got {text!r}", param_hint="--set")
            given[name] = _value(value)
        if self.flops_cut is not None:
            given["flops_cut"] = self.flops_cut
        if self.latency_cut is not None:
            given["latency_cut"] = self.latency_cut
        if self.keep_ratio is not None:
            given["keep_ratio"] = _numbers(self.keep_ratio, float, "--keep-ratio")
        if sum(given.get(name) is not None for name in AIMS) > 1:
            raise typer.BadParameter("give one of --flops-cut, --latency-cut and --keep-ratio")
        if self.sites is not None:
            given["sites"] = self.sites if self.sites in ("auto", "every") else _listed(self.sites)
        if self.strategy is not None:
            given["strategy"] = self.strategy.value
        return given

    def load(self) -> Config:
        """The configuration.

        Raises:
            LvtpError: LVTP201 for a file that holds none, an unknown field or a value out of range.
            typer.BadParameter: a value that cannot be read.
        """
        base = read_config(self.config) if self.config is not None else None
        return resolve(base, self.overrides())


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


def read_config(path: Path) -> Config:
    """A `Config` from a JSON object of its fields; those that are not in it keep their defaults.

    Raises:
        LvtpError: LVTP201. OSError: the file cannot be read.
    """
    try:
        given = json.loads(path.read_text(encoding="utf-8"))  # UnicodeDecodeError is a ValueError, too
        if not isinstance(given, dict):
            raise ValueError(f"it holds a {type(given).__name__}")
    except ValueError as error:
        raise LvtpError(
            Code.CONFIG_OUT_OF_RANGE, where=str(path), expected="a JSON object of fields of Config", got=str(error),
            why="the graph is built from it", hint='{"flops_cut": 0.5, "sites": [0, 3, 6]}, or what calibrate wrote',
        ) from error
    return resolve(None, given)


def write_config(path: Path, config: Config) -> None:
    """Write the fields that `read_config` reads back; the folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft:
        draft.write_text(json.dumps({f.name: getattr(config, f.name) for f in fields(config)}, indent=1) + "\n")


def _value(text: str) -> Any:
    """JSON, or a word."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _listed(text: str) -> tuple[Any, ...]:
    numbers = _numbers(text, int, "--sites")
    return numbers if isinstance(numbers, tuple) else (numbers,)


def _numbers(text: str, kind: type, option: str) -> Any:
    """One number, or a tuple of those between commas."""
    try:
        numbers = tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"expected numbers between commas, got {text!r}", param_hint=option) from None
    return numbers[0] if len(numbers) == 1 else numbers
