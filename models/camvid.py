"""CamVid, or any folder laid out like it: images/<split>/<id>.jpg, labels/<split>/<id>.png, <split>.txt, meta.json."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image


class DatasetMissingError(FileNotFoundError):
    """The folder is not there, or is not laid out as expected."""


class CamVid:
    """Images and labels of one split, resized to the size a model expects.

    `dataset[i]` is (image float32 [3, H, W] in [0, 1], label int64 [H, W]).

    Args:
        folder: the data set. split: "train", "val" or "test". img_size: (height, width) in pixels.

    Raises:
        DatasetMissingError: where a file that is needed is missing.
    """

    def __init__(self, folder: str | Path, split: str, img_size: tuple[int, int]) -> None:
        self.folder, self.split, self.img_size = Path(folder), split, img_size
        listing, meta = self.folder / f"{split}.txt", self.folder / "meta.json"
        for path in (self.folder, listing, meta):
            if not path.exists():
                raise DatasetMissingError(
                    f"{path} is missing: expected a folder with images/, labels/, {split}.txt and meta.json")
        self.ids = listing.read_text().split()
        self.class_names: list[str] = list(json.loads(meta.read_text())["classes"])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        name = self.ids[index]
        size = (self.img_size[1], self.img_size[0])
        with Image.open(self.folder / "images" / self.split / f"{name}.jpg") as file:
            image = np.asarray(file.convert("RGB").resize(size, Image.Resampling.BILINEAR))
        with Image.open(self.folder / "labels" / self.split / f"{name}.png") as file:
            label = np.asarray(file.resize(size, Image.Resampling.NEAREST))
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255
        return pixels, torch.from_numpy(label.astype(np.int64))
