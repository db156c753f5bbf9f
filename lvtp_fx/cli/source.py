"""Images that a command goes through: with labels, of a data set, or without, of files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from lvtp_fx.errors import Code, LvtpError
from lvtp_fx.models.datasets import Labelled, open_dataset
from lvtp_fx.models.images import find_images, read_image
from lvtp_fx.models.palette import Palette

DATA = "Labelled images: camvid:DIR, voc:DIR, cityscapes:DIR, ade20k:DIR, or scenes:COUNT (drawn)."
SPLIT = "Part of the data; without it the validation split."
Data = Annotated[str | None, typer.Option(help=DATA)]
Split = Annotated[str | None, typer.Option(help=SPLIT)]


@dataclass(frozen=True)
class Source:
    """Images by number, with their names, which differ; a label with each image, or None."""

    ids: tuple[str, ...]
    data: Labelled | Files


class Files:
    """Images without labels, of which nothing else is known either."""

    classes: int | None = None
    ignore_index: int | None = None
    class_names: tuple[str, ...] = ()
    colours: Palette | None = None

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __getitem__(self, index: int) -> tuple[torch.Tensor, None]:
        return read_image(self.paths[index]), None


def check_given(data: str | None, images: Sequence[Path] | None, of_data: Mapping[str, object]) -> None:
    """Whether it is clear what to go through.

    Args:
        of_data: options that say nothing of images without labels, with what was given.

    Raises:
        typer.BadParameter: both are given, neither is, or an option would be ignored.
    """
    if (data is None) == (not images):
        raise typer.BadParameter("give either --data or --images", param_hint="--data")
    for option, value in of_data.items():
        if value and data is None:
            raise typer.BadParameter("only together with --data", param_hint=option)


def check_classes(data: Labelled | Files, classes: int) -> None:
    """Whether its labels are those of a model of `classes`, as far as the data say it.

    Raises:
        LvtpError: LVTP105.
    """
    if isinstance(data, Labelled) and data.classes not in (None, classes):
        raise unfit(data.name, f"{data.classes} classes", f"a model of {classes} classes")


def unfit(where: str, expected: str, got: str) -> LvtpError:
    """LVTP105, for labels that are not the model's."""
    return LvtpError(
        Code.BAD_EXAMPLE, where=where, expected=expected, got=got, why="labels are compared class by class",
        hint="a model that was trained on these classes, or images without labels",
    )


def labelled(name: str, split: str | None) -> Source:
    """The data set of that name.

    Raises:
        LvtpError: as `open_dataset`.
    """
    data = open_dataset(name, split)
    return Source(data.ids, data)


def unlabelled(paths: Sequence[Path]) -> Source:
    """The images among files and folders; those that share a name are numbered.

    Raises:
        LvtpError: as `find_images`.
    """
    found = find_images(paths)
    names = [path.stem for path in found]
    numbered, uses = [f"{i:04d}_{name}" for i, name in enumerate(names)], Counter(names)
    ids = [name if uses[name] == 1 else other for name, other in zip(names, numbered, strict=True)]
    return Source(tuple(ids if len(set(ids)) == len(ids) else numbered), Files(found))
