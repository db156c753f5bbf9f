"""Label maps in folders. Each says what it was made from, so that a run that was stopped can go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import typer
from torch import fx

from lvtp_fx.cli.source import Files, Source
from lvtp_fx.digest import digest, digest_of
from lvtp_fx.models.named import Named
from lvtp_fx.models.palette import PALETTE_SIZE, Palette, read_labels, save_labels
from lvtp_fx.models.preprocess import ProcessorPreprocess


@dataclass(frozen=True)
class LabelMaps:
    """FOLDER/NAME.png, in a folder a model.

    Attributes:
        origin: `origin` of the run: with the image, all that its maps depend on.
    """

    folders: tuple[Path, ...]
    palette: Palette
    origin: str

    def load(self, name: str, image: torch.Tensor) -> list[torch.Tensor] | None:
        """Each model's map, int64 [H, W], where all are there and were made from the same; else None."""
        about = self._about(image)
        maps = [read_labels(path, about) for path in self._paths(name)]
        found = [each for each in maps if each is not None]
        return found if len(found) == len(maps) else None

    def save(self, name: str, image: torch.Tensor, maps: Sequence[torch.Tensor]) -> None:
        """Write each model's map, int64 [H, W]."""
        about = self._about(image)
        for path, labels in zip(self._paths(name), maps, strict=True):
            save_labels(path, labels, self.palette, about)

    def _paths(self, name: str) -> list[Path]:
        return [folder / f"{name}.png" for folder in self.folders]

    def _about(self, image: torch.Tensor) -> str:
        return digest_of(self.origin, [image])


def origin(named: Named, fast: fx.GraphModule, **options: Any) -> str:
    """A digest of all that label maps depend on but the image: graph, weights, preprocessing, options, versions.

    Args:
        fast: the transformed model; its graph tells of the dense one's, too.
        options: of the predictor.
    """
    libraries = ["torchvision", "pillow", *["transformers"] * isinstance(named.preprocess, ProcessorPreprocess)]
    versions = [version(library) for library in libraries]
    # An image of the model's size would not tell how others are resized: this one shrinks one way and grows the other.
    height, width = named.img_size
    noise = torch.randint(0, 256, (3, 2 * height + 1, width // 2 + 1), generator=torch.Generator().manual_seed(0),
                          dtype=torch.uint8)
    seen = named.preprocess(noise, named.img_size)
    return digest(fast, named.device, (sorted(options.items()), versions), [*named.inputs(1), seen])


def check_folders(folders: Sequence[Path], source: Source, option: str) -> None:
    """Whether maps in `folders` stay apart from the images: they would take their places, or be taken for images later.

    Raises:
        typer.BadParameter: one is the folder of an image.
    """
    files = source.data.paths if isinstance(source.data, Files) else ()
    taken = {near for file in files for near in (file.parent, file.resolve().parent)}
    for folder in folders:
        if folder.is_dir() and any(folder.samefile(near) for near in taken):
            raise typer.BadParameter(f"{folder} is the folder of an image that is read: its label map would overwrite "
                                     "it, or be taken for an image; give another folder", param_hint=option)


def check_palette(classes: int, option: str) -> None:
    """Whether their maps can be written.

    Raises:
        typer.BadParameter: more than a PNG holds.
    """
    if classes > PALETTE_SIZE:
        raise typer.BadParameter(f"a PNG holds {PALETTE_SIZE} classes, the model has {classes}", param_hint=option)
