"""CamVid as a dataset, read from a folder. The photographs are for research use and are no part of this project."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor


class DatasetMissingError(FileNotFoundError):
    """A data folder, or a part of it, is not where it should be; the message says what was expected."""


class CamVid(Dataset[tuple[Tensor, Tensor]]):
    """One split of a folder laid out as

        meta.json                   {"classes": [names], "ignore_index": int, "num_classes": int, "palette": [[r, g, b]]}
        <split>.txt                 one id a line
        images/<split>/<id>.jpg     the photographs
        labels/<split>/<id>.png     8 bit, the class index of each pixel

    Items are (image uint8 [3, H, W], label int64 [H, W]), in the order of <split>.txt.

    Args:
        folder: the data folder.
        split: "train", "val" or "test".
        img_size: (H, W) to resize to, images bilinear and labels nearest; None keeps the size on disk.

    Raises:
        DatasetMissingError: the folder, a file of it or the split is missing.
    """

    def __init__(self, folder: str | Path, split: str, img_size: tuple[int, int] | None = None) -> None:
        self.folder, self.split, self.img_size = Path(folder), split, img_size
        meta = json.loads(_read(self.folder / "meta.json", "CamVid's class names and palette"))
        self.ids = _read(self.folder / f"{split}.txt", f"the ids of split {split!r}").split()
        self.classes: int = meta["num_classes"]
        self.ignore_index: int = meta["ignore_index"]
        self.class_names: list[str] = meta["classes"][: self.classes]
        for kind in ("images", "labels"):
            if not (self.folder / kind / split).is_dir():
                raise DatasetMissingError(f"no folder {self.folder / kind / split}: expected the {kind} of {split!r}")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        name = self.ids[index]
        # Pillow's bilinear filter widens when it shrinks (antialias), which torch's does only when asked to.
        image = self._open("images", f"{name}.jpg").convert("RGB")
        label = self._open("labels", f"{name}.png")
        if self.img_size is not None:
            height, width = self.img_size
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            label = label.resize((width, height), Image.Resampling.NEAREST)
        return pil_to_tensor(image), pil_to_tensor(label)[0].to(torch.int64)

    def _open(self, kind: str, name: str) -> Image.Image:
        path = self.folder / kind / self.split / name
        try:
            return Image.open(path)
        except FileNotFoundError as error:
            raise DatasetMissingError(f"no file {path}, though {self.split}.txt names it") from error


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DatasetMissingError(f"no file {path}: expected {what}") from error
