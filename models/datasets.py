"""Labelled images of the usual data sets, read from folders that the user has: KIND:FOLDER.

Nothing is downloaded. CamVid's layout is described in `lvtp_fx.models.camvid`; VOC and Cityscapes are torchvision's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lvtp_fx.errors import Code, LvtpError
from lvtp_fx.models.camvid import CamVid, DatasetMissingError
from lvtp_fx.models.images import NOT_READ, as_stored, is_image, read_image
from lvtp_fx.models.palette import Palette, voc_palette
from lvtp_fx.models.preprocess import Size, resized, transforms
from lvtp_fx.models.scenes import CLASS_NAMES, PALETTE, make_batch
from lvtp_fx.models.train import HELD_OUT

Item = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Labelled(torch.utils.data.Dataset[Item]):
    """`data[i]`: an image, uint8 [3, H, W], and its label, int64 [H, W], at their own size or at `size`.

    Getting one raises an LvtpError: LVTP105 for a file that cannot be read, or a label of another size than its image.

    Attributes:
        name: as the user wrote it. ids: a name for each image. item: reads one.
        classes: number of classes, or None where nothing says it. ignore_index: label of pixels without a class.
        class_names, colours: of the classes, in order; none where nothing says them.
        size: what both are resized to (image bilinear with antialiasing, label nearest), or None.
    """

    name: str
    ids: tuple[str, ...]
    item: Callable[[int], Item]
    classes: int | None
    ignore_index: int | None
    class_names: tuple[str, ...] = ()
    colours: Palette | None = None
    size: Size | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Item:
        image, label = self.item(range(len(self))[index])  # IndexError past the end
        if self.size is None:
            return image, label
        v2 = transforms()
        nearest = v2.InterpolationMode.NEAREST_EXACT  # the pixel whose centre is nearest, as Pillow takes it
        label = v2.functional.resize(label[None], list(self.size), interpolation=nearest)[0]
        return resized(image, self.size), label

    def resized(self, size: Size) -> Labelled:
        """The same, at `size`."""
        return replace(self, size=size)


def open_dataset(name: str, split: str | None = None) -> Labelled:
    """A data set by name: `camvid:DIR`, `voc:DIR`, `cityscapes:DIR`, `ade20k:DIR`, or `scenes:COUNT`, which are drawn.

    Args:
        split: None for the data set's validation split.

    Raises:
        LvtpError: LVTP105 for another name, or a folder that is not laid out so.
    """
    kind, _, where = name.partition(":")
    if kind not in _READERS or not where:
        raise _bad(name, "KIND:FOLDER, KIND one of " + ", ".join(_READERS), "it says how the folder is laid out",
                   "camvid:DIR, voc:DIR, cityscapes:DIR, ade20k:DIR, or scenes:64")
    read, default, layout = _READERS[kind]
    try:
        data = read(name, where, split or default)
    except (DatasetMissingError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise _bad(name, layout, "images and labels are paired by their names",
                   "scenes:64" if kind == "scenes" else "the folder that holds these", f"{error}") from error
    if not len(data):
        raise _bad(name, layout, "there is nothing to score", f"another split than {split or default!r}", "no image")
    return data


def _camvid(name: str, folder: str, split: str) -> Labelled:
    """In this project's layout, or as it comes with SegNet: SPLIT/*.png and SPLITannot/*.png of the same names."""
    if Path(folder, f"{split}annot").is_dir():
        images, labels = _paired(Path(folder, split), Path(folder, f"{split}annot"))
        return Labelled(name, tuple(path.stem for path in images),
                        lambda i: _pair(images[i], labels[i]), len(_SEGNET), len(_SEGNET), _SEGNET)
    listed = CamVid(folder, split, (1, 1))  # checks the folder, knows the classes; images are read at their own size

    return Labelled(name, tuple(listed.ids), lambda i: _pair(*listed.files(i)), listed.classes, listed.ignore_index,
                    tuple(listed.class_names), listed.colours)


def _voc(name: str, folder: str, split: str) -> Labelled:
    from torchvision.datasets import VOCSegmentation
    from torchvision.models.segmentation import FCN_ResNet50_Weights

    data: Any = VOCSegmentation(folder, image_set=split)
    names = tuple(FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"])
    return Labelled(name, tuple(Path(path).stem for path in data.images),
                    lambda i: _pair(Path(data.images[i]), Path(data.masks[i])), len(names), 255,
                    ("background", *names[1:]), voc_palette(len(names)))


def _cityscapes(name: str, folder: str, split: str) -> Labelled:
    from torchvision.datasets import Cityscapes

    data: Any = Cityscapes(folder, split, target_type="semantic")
    known = sorted((c for c in Cityscapes.classes if 0 <= c.train_id < 255), key=lambda c: int(c.train_id))
    trained = torch.full((256,), 255)  # by the id that the files hold
    for entry in known:
        trained[entry.id] = entry.train_id
    # torchvision lists them as the file system does: the first images would be others on another machine.
    files = sorted((Path(image), Path(targets[0])) for image, targets in zip(data.images, data.targets, strict=True))

    def item(i: int) -> Item:
        image, label = _pair(*files[i])
        return image, trained[label]

    return Labelled(name, tuple(image.stem for image, _ in files), item, len(known), 255,
                    tuple(entry.name for entry in known), tuple(entry.color for entry in known))


def _ade20k(name: str, folder: str, split: str) -> Labelled:
    """Label 0 is no class, and the classes are counted from 0 without it."""
    images, labels = _paired(Path(folder, "images", split), Path(folder, "annotations", split))
    listed = Path(folder, "objectInfo150.txt")  # comes with ADE20K; columns apart by tabs, the last one the name
    rows = listed.read_text().splitlines()[1:] if listed.is_file() else []
    names = tuple(row.split("\t")[-1].split(",")[0].strip() for row in rows)

    def item(i: int) -> Item:
        image, label = _pair(images[i], labels[i])
        return image, (label - 1).where(label > 0, torch.tensor(255))

    return Labelled(name, tuple(path.stem for path in images), item, len(names) or None, 255, names)


def _scenes(name: str, count: str, split: str) -> Labelled:
    """Drawn scenes that the bundled segmenter was not trained on, at its size; the split says nothing."""
    if not count.isdecimal() or not int(count):
        raise ValueError(f"{count!r} is no number of them")

    def item(i: int) -> Item:
        images, labels = make_batch([HELD_OUT + i], 192)
        return (images[0] * 255).round().to(torch.uint8), labels[0]

    return Labelled(name, tuple(f"scene{i}" for i in range(int(count))), item, len(CLASS_NAMES), None, CLASS_NAMES,
                    PALETTE)


def _paired(images: Path, labels: Path) -> tuple[list[Path], list[Path]]:
    """The images of a folder, by name, and their labels, PNGs of the same names in another."""
    found = sorted(path for path in images.iterdir() if is_image(path))
    wanted = [labels / f"{path.stem}.png" for path in found]
    missing = next((path for path in wanted if not path.is_file()), None)
    if missing is not None:
        raise DatasetMissingError(f"{missing} is missing, though there is an image of that name")
    return found, wanted


def _pair(image: Path, label: Path) -> Item:
    """Both, at their own size. An image that its EXIF data turns beside a label that it does not is refused here."""
    pixels, classes = read_image(image), _label(label)
    if pixels.shape[1:] != classes.shape:
        (height, width), (high, wide) = pixels.shape[1:], classes.shape
        raise _bad(str(label), f"a label of its image's size, {width} x {height} px", "each pixel has one class",
                   f"pairs of one size; EXIF data may turn the image alone ({image})", f"{wide} x {high} px")
    return pixels, classes


def _label(path: Path) -> torch.Tensor:
    """The pixels of a PNG as they are stored: of one with a palette the indices."""
    try:
        with Image.open(path) as file:
            pixels, mode = as_stored(file, path), file.mode
    except NOT_READ as error:
        raise _bad(str(path), "a label that Pillow can read", "images are scored on it", "another file",
                   str(error)) from error
    if pixels.ndim != 2:
        raise _bad(str(path), "one channel, whose values are classes", "images are scored on them",
                   "labels, not the picture of them in colours", f"mode {mode}")
    return torch.from_numpy(pixels).long()


_SEGNET = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "cyclist")
_READERS: dict[str, tuple[Callable[[str, str, str], Labelled], str, str]] = {
    "camvid": (_camvid, "val", "meta.json, SPLIT.txt, images/SPLIT/ID.jpg and labels/SPLIT/ID.png, or "
               "SegNet's SPLIT/*.png and SPLITannot/*.png"),
    "voc": (_voc, "val", "VOCdevkit/VOC2012 with ImageSets/Segmentation, JPEGImages and SegmentationClass"),
    "cityscapes": (_cityscapes, "val", "leftImg8bit/SPLIT/CITY and gtFine/SPLIT/CITY"),
    "ade20k": (_ade20k, "validation", "images/SPLIT/*.jpg and annotations/SPLIT/*.png, label 0 for no class"),
    "scenes": (_scenes, "", "a number of scenes, e.g. scenes:64"),
}


def _bad(where: str, expected: str, why: str, hint: str, got: str = "something else") -> LvtpError:
    return LvtpError(Code.BAD_EXAMPLE, where=where, expected=expected, got=got, why=why, hint=hint)
