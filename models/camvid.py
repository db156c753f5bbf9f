"""CamVid, or any data set laid out like it, read from a folder.

The photographs are for research use: they are no part of this project, and no picture of them belongs in it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lvtp_fx.models.images import as_stored
from lvtp_fx.models.palette import Palette

LAYOUT = "meta.json, <split>.txt, images/<split>/<id>.jpg and labels/<split>/<id>.png"


class DatasetMissingError(FileNotFoundError):
    """The folder or a part of it is not there; the message says which, and what was expected."""


class CamVid(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """One split, in the order of <split>.txt, resized to the size that a model expects.

    `dataset[i]` is (image, label): float32 [3, H, W] in [0, 1], and int64 [H, W]; `ignore_index` is no class.
    Images are resized bilinearly with Pillow, whose filter widens as it shrinks (antialias); labels take the
    nearest pixel.

    Attributes:
        ids: names of the images. classes: number of classes C. class_names: one name a class. colours: red, green and
            blue of each class, where meta.json has a `palette`.
        ignore_index: label of the pixels that have no class.
    """

    def __init__(self, folder: str | Path, split: str, img_size: tuple[int, int]) -> None:
        """Args:
            folder: holds meta.json, <split>.txt, images/<split>/<id>.jpg and labels/<split>/<id>.png (8 bit).
            split: "train", "val" or "test".
            img_size: (height, width) in pixels.

        Raises:
            DatasetMissingError: the folder, the split or one of its files is missing.
        """
        self.folder, self.split, self.img_size = Path(folder), split, img_size
        needed = ("meta.json", f"{split}.txt", f"images/{split}", f"labels/{split}")
        for path in (self.folder, *(self.folder / name for name in needed)):
            if not path.exists():
                raise DatasetMissingError(f"{path} is missing: expected a folder with {LAYOUT}")
        meta = json.loads((self.folder / "meta.json").read_text())
        self.ids = (self.folder / f"{split}.txt").read_text().split()
        self.classes: int = meta["num_classes"]
        self.ignore_index: int = meta["ignore_index"]
        self.class_names: list[str] = list(meta["classes"])[: self.classes]
        palette = [tuple(rgb) for rgb in meta.get("palette", ())][: self.classes]
        self.colours: Palette | None = palette if len(palette) == self.classes else None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image_path, label_path = self.files(index)
        with self._open(image_path) as file:
            image = self._array(file.convert("RGB"), Image.Resampling.BILINEAR)
        with self._open(label_path) as file:
            label = self._array(Image.fromarray(as_stored(file, label_path)), Image.Resampling.NEAREST)
        return image.permute(2, 0, 1).float() / 255, label.long()

    def files(self, index: int) -> tuple[Path, Path]:
        """Where an image and its label lie."""
        name = self.ids[index]
        return (self.folder / f"images/{self.split}/{name}.jpg", self.folder / f"labels/{self.split}/{name}.png")

    def _open(self, path: Path) -> Image.Image:
        try:
            return Image.open(path)
        except FileNotFoundError as error:
            raise DatasetMissingError(f"{path} is missing, though {self.split}.txt names it") from error

    def _array(self, picture: Image.Image, filter_: Image.Resampling) -> torch.Tensor:
        height, width = self.img_size
        return torch.from_numpy(np.array(picture.resize((width, height), filter_)))
