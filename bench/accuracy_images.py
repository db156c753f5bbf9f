"""The images of the accuracy bench, and the checkpoints that are evaluated on them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from lvtp_fx.models.camvid import CamVid
from lvtp_fx.models.checkpoint import Spec, load_bundled, load_checkpoint
from lvtp_fx.models.scenes import CLASS_NAMES, PALETTE, make_scene
from lvtp_fx.models.train import HELD_OUT

SCENES = "scenes"  # value of --data that asks for procedural scenes
SCENE_COUNT = 256  # where no --limit says how many


class Pictures(Protocol):
    """Image float32 [3, H, W] in [0, 1] and label int64 [H, W] by index."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]: ...


class HeldOutScenes:
    """Procedural scenes that no training run has seen."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        scene = make_scene(HELD_OUT + index, self.size)
        return scene.image, scene.label


@dataclass(frozen=True)
class Images:
    """The images to evaluate, at a checkpoint's size.

    Attributes:
        pictures: the source; `indices` are those to evaluate, in order, `ids` their names.
        class_names: of classes 0 to C - 1. palette: their (red, green, blue) in 0..255, or () where none is known.
        digest: of the source: another one may have other pictures under the same ids.
    """

    pictures: Pictures
    indices: tuple[int, ...]
    ids: tuple[str, ...]
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    digest: str

    def __len__(self) -> int:
        return len(self.ids)

    def load(self, place: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Image [1, 3, H, W] and label [1, H, W] of the image at a place in `ids`."""
        image, label = self.pictures[self.indices[place]]
        return image.unsqueeze(0), label.unsqueeze(0)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model. name: of its folder. digest: of its files."""

    name: str
    model: nn.Module
    spec: Spec
    digest: str


def load(folder: Path | None) -> Checkpoint:
    """A checkpoint, or the bundled one for None.

    Raises:
        FileNotFoundError, ImportError, ValueError: as `load_checkpoint`.
    """
    if folder is None:
        with resources.as_file(resources.files("lvtp_fx.models") / "checkpoint") as bundled:
            return Checkpoint("bundled", *load_bundled(), _digest_files(bundled))
    return Checkpoint(folder.resolve().name, *load_checkpoint(folder), _digest_files(folder))


def find_images(data: str, split: str, spec: Spec, limit: int | None) -> Images:
    """The images to evaluate; with a limit that many of them, evenly spread.

    Raises:
        DatasetMissingError: the folder or the split is missing.
        ValueError: the checkpoint predicts other classes than the data has, or takes no square images.
    """
    if data == SCENES:
        if spec.img_size[0] != spec.img_size[1]:
            raise ValueError(f"scenes are square, the checkpoint takes {spec.img_size}: name its --data")
        indices = tuple(range(limit or SCENE_COUNT))
        found = Images(HeldOutScenes(spec.img_size[0]), indices, tuple(str(HELD_OUT + i) for i in indices),
                       CLASS_NAMES, PALETTE, SCENES)
        ignore_index = None
    else:
        camvid = CamVid(data, split, spec.img_size)
        count, ignore_index = len(camvid), camvid.ignore_index
        wanted = count if limit is None else min(limit, count)
        indices = tuple(i * count // wanted for i in range(wanted))
        found = Images(camvid, indices, tuple(camvid.ids[i] for i in indices), tuple(camvid.class_names),
                       _palette(camvid), _digest_folder(camvid))
    if (len(found.class_names), ignore_index) != (spec.classes, spec.ignore_index):
        raise ValueError(f"{data} has {len(found.class_names)} classes and ignores {ignore_index}, "
                         f"the checkpoint has {spec.classes} and ignores {spec.ignore_index}")
    return found


def _palette(data: CamVid) -> tuple[tuple[int, int, int], ...]:
    """Colours of the classes, where meta.json names them."""
    colours = json.loads((data.folder / "meta.json").read_text()).get("palette", ())
    return tuple((red, green, blue) for red, green, blue in colours[: data.classes])


def _digest_files(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in ("model.json", "model.safetensors"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]


def _digest_folder(data: CamVid) -> str:
    """Of the description and of every file's size: reading every picture would take as long as using it."""
    digest = hashlib.sha256((data.folder / "meta.json").read_bytes())
    for name in data.ids:
        for path in (f"images/{data.split}/{name}.jpg", f"labels/{data.split}/{name}.png"):
            file = data.folder / path
            digest.update(f"{path} {file.stat().st_size if file.exists() else 0}\n".encode())
    return digest.hexdigest()[:16]
