"""Images that a command goes through: with labels, of a data set, or without, of files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

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


def labelled(name: str, split: str | None) -> Source:
    """The data set of that name.

    Raises:
        LvtpError: as `open_dataset`.
    """
    data = open_dataset(name, split)
    return Source(data.ids, data)


def unlabelled(paths: Sequence[Path]) -> Source:
    """The images among files and folders; numbered where two have the same name.

    Raises:
        LvtpError: as `find_images`.
    """
    found = find_images(paths)
    names = [path.stem for path in found]
    unique = len(set(names)) == len(names)
    return Source(tuple(name if unique else f"{i:04d}_{name}" for i, name in enumerate(names)), Files(found))
