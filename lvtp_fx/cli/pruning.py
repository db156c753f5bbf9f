"""What is pruned, as options: fields of `Config`, one by one or from a file."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from lvtp_fx.config import AIMS, STRATEGIES, Config, resolve
from lvtp_fx.errors import Code, LvtpError
from lvtp_fx.replacing import replacing

Strategy = StrEnum("Strategy", {name: name for name in STRATEGIES})  # type: ignore[misc]
_of_pruning = partial(typer.Option, rich_help_panel="Pruning")  # a heading of --help


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
