"""Readers of labelled images, on folders made here in the layouts of the real ones."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lvtp_fx.errors import LvtpError
from lvtp_fx.models.camvid import CamVid
from lvtp_fx.models.datasets import open_dataset

HEIGHT, WIDTH = 12, 16


def picture(path: Path, shade: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(shade).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def label(path: Path, columns: list[int], palette: bool = False) -> None:
    """The columns' values, repeated to the width."""
    path.parent.mkdir(parents=True, exist_ok=True)
    row = np.repeat(np.array(columns, np.uint8), WIDTH // len(columns))
    file = Image.fromarray(np.repeat(row[None], HEIGHT, 0))
    if palette:
        file.putpalette([255 - i // 3 for i in range(768)])
    file.save(path)


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    (tmp_path / "meta.json").write_text(json.dumps({"classes": ["a", "b"], "num_classes": 2, "ignore_index": 2}))
    (tmp_path / "val.txt").write_text("y\nx\n")
    for name, shade in (("x", 1), ("y", 2)):
        picture(tmp_path / f"images/val/{name}.jpg", shade)
        label(tmp_path / f"labels/val/{name}.png", [0, 1, 2, 1])
    return tmp_path


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "VOCdevkit/VOC2012"
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/val.txt").write_text("one\n")
    picture(root / "JPEGImages/one.jpg")
    label(root / "SegmentationClass/one.png", [0, 15, 255, 20], palette=True)
    return tmp_path


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    picture(tmp_path / "leftImg8bit/val/bonn/bonn_1_leftImg8bit.png")
    label(tmp_path / "gtFine/val/bonn/bonn_1_gtFine_labelIds.png", [7, 33, 3, 26])
    return tmp_path


@pytest.fixture
def ade20k(tmp_path: Path) -> Path:
    for name in ("q", "p"):
        picture(tmp_path / f"images/validation/{name}.jpg")
        label(tmp_path / f"annotations/validation/{name}.png", [0, 1, 150, 3])
    return tmp_path


def columns(tensor: torch.Tensor) -> list[int]:
    return [int(v) for v in tensor[0, 1:: WIDTH // 4]]


def test_camvid_keeps_its_own_size(camvid: Path) -> None:
    data = open_dataset(f"camvid:{camvid}")
    image, found = data[0]
    assert (data.ids, data.classes, data.ignore_index, data.class_names) == (("y", "x"), 2, 2, ("a", "b"))
    assert (image.shape, image.dtype) == ((3, HEIGHT, WIDTH), torch.uint8)
    assert (columns(found), found.dtype) == ([0, 1, 2, 1], torch.int64)
    with pytest.raises(IndexError):
        data[2]


def test_camvid_as_it_comes_with_segnet(tmp_path: Path) -> None:
    for name, shade in (("x", 1), ("y", 2)):
        picture(tmp_path / f"val/{name}.png", shade)
        label(tmp_path / f"valannot/{name}.png", [0, 10, 11, 3])
    data = open_dataset(f"camvid:{tmp_path}")
    assert (data.ids, data.classes, data.ignore_index, len(data.class_names)) == (("x", "y"), 11, 11, 11)
    assert columns(data[1][1]) == [0, 10, 11, 3]
    (tmp_path / "valannot/y.png").unlink()
    with pytest.raises(LvtpError, match=r"LVTP105 (.|\n)*y.png is missing, though there is an image of that name"):
        open_dataset(f"camvid:{tmp_path}")


@pytest.mark.parametrize("size", [(7, 9), (24, 20)])
def test_resized_is_what_the_camvid_reader_makes(camvid: Path, size: tuple[int, int]) -> None:
    image, found = open_dataset(f"camvid:{camvid}").resized(size)[1]
    theirs, their_label = CamVid(camvid, "val", size)[1]
    assert torch.equal(found, their_label)
    assert (image / 255 - theirs).abs().max() < 2.1 / 255  # rounded elsewhere


def test_voc_labels_are_indices_not_colours(voc: Path) -> None:
    data = open_dataset(f"voc:{voc}")
    image, found = data[0]
    assert (data.ids, data.classes, data.ignore_index) == (("one",), 21, 255)
    assert (data.class_names[0], data.class_names[15], len(data.class_names)) == ("background", "person", 21)
    assert data.colours is not None
    assert data.colours[15] == (192, 128, 128)
    assert columns(found) == [0, 15, 255, 20]
    assert image.shape == (3, HEIGHT, WIDTH)


def test_cityscapes_labels_are_the_trained_classes(cityscapes: Path) -> None:
    data = open_dataset(f"cityscapes:{cityscapes}")
    assert (data.classes, data.ignore_index) == (19, 255)
    assert columns(data[0][1]) == [0, 18, 255, 13]
    assert [data.class_names[i] for i in (0, 18, 13)] == ["road", "bicycle", "car"]
    assert data.colours is not None
    assert [data.colours[i] for i in (0, 18, 13)] == [(128, 64, 128), (119, 11, 32), (0, 0, 142)]


def test_cityscapes_is_in_order_of_its_paths_and_not_as_the_file_system_lists_it(
    cityscapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for city, shade in (("bonn", 3), ("aachen", 4)):
        for number in (3, 2):
            picture(cityscapes / f"leftImg8bit/val/{city}/{city}_{number}_leftImg8bit.png", shade)
            label(cityscapes / f"gtFine/val/{city}/{city}_{number}_gtFine_labelIds.png", [number + 5, 33, 3, 26])
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: sorted(listed(folder), reverse=True))
    data = open_dataset(f"cityscapes:{cityscapes}")
    assert [name.removesuffix("_leftImg8bit") for name in data.ids] == [
        "aachen_2", "aachen_3", "bonn_1", "bonn_2", "bonn_3"]
    assert [columns(data[i][1])[0] for i in range(5)] == [0, 1, 0, 0, 1]


def test_ade20k_labels_count_from_zero_without_the_unlabelled(ade20k: Path) -> None:
    data = open_dataset(f"ade20k:{ade20k}")
    assert (data.ids, data.classes, data.ignore_index) == (("p", "q"), None, 255)
    assert columns(data[0][1]) == [255, 0, 149, 2]
    rows = ["Idx\tRatio\tTrain\tVal\tStuff\tName", "1\t0.1\t1\t1\t1\twall", "2\t0.1\t1\t1\t1\tbuilding, edifice"]
    (ade20k / "objectInfo150.txt").write_text("\n".join(rows))
    assert open_dataset(f"ade20k:{ade20k}").class_names == ("wall", "building")


def test_scenes_are_drawn() -> None:
    data = open_dataset("scenes:3")
    image, found = data[2]
    assert (len(data), data.classes) == (3, 7)
    assert (image.shape, image.dtype, found.shape) == ((3, 192, 192), torch.uint8, (192, 192))
    assert not torch.equal(image, data[1][0])


@pytest.mark.parametrize(("name", "message"), [
    ("camvid", "KIND:FOLDER"), ("coco:x", "KIND one of camvid, voc, cityscapes, ade20k, scenes"),
    ("scenes:many", "'many' is no number of them"), ("scenes:0", "'0' is no number of them"),
    ("camvid:nowhere", "nowhere is missing"), ("voc:nowhere", "VOCdevkit/VOC2012"),
    ("cityscapes:nowhere", "leftImg8bit"), ("ade20k:nowhere", "images/SPLIT"),
])
def test_what_is_no_data_set_is_refused(name: str, message: str) -> None:
    with pytest.raises(LvtpError, match=f"(?s)LVTP105 .*{message}"):
        open_dataset(name)


def test_image_without_a_label_and_missing_split_are_named(ade20k: Path, camvid: Path) -> None:
    (ade20k / "annotations/validation/q.png").unlink()
    with pytest.raises(LvtpError, match=r"q\.png is missing"):
        open_dataset(f"ade20k:{ade20k}")
    with pytest.raises(LvtpError, match=r"test\.txt is missing"):
        open_dataset(f"camvid:{camvid}", "test")


def write_grey(path: Path, values: np.ndarray, bits: int) -> None:
    """A PNG in grey of 1, 2, 4 or 8 bits, which Pillow does not write."""
    digits = values[..., None] >> np.arange(bits)[::-1] & 1
    rows = np.packbits(digits.reshape(len(values), -1).astype(np.uint8), axis=1)
    parts = {b"IHDR": struct.pack(">IIBBBBB", values.shape[1], len(values), bits, 0, 0, 0, 0),
             b"IDAT": zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)), b"IEND": b""}
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts.items()))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("palette", [False, True])
def test_labels_are_as_they_are_stored_at_any_depth(camvid: Path, bits: int, palette: bool) -> None:
    values = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 2**bits
    file = camvid / "labels/val/x.png"
    if palette:
        picture = Image.fromarray(values.astype(np.uint8))
        picture.putpalette([255 - i // 3 for i in range(3 * 2**bits)])
        picture.save(file, bits=bits)
    else:
        write_grey(file, values, bits)
    assert file.read_bytes()[24] == bits
    wanted = torch.from_numpy(values)
    assert torch.equal(open_dataset(f"camvid:{camvid}")[1][1], wanted)
    assert torch.equal(CamVid(camvid, "val", (HEIGHT, WIDTH))[1][1], wanted)


@pytest.mark.parametrize("size", [None, (6, 8)])
def test_a_label_of_another_size_than_its_image_is_refused_at_any_size(
    camvid: Path, ade20k: Path, size: tuple[int, int] | None
) -> None:
    """EXIF data turn a photograph, and not its label."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for folder, file in ((f"camvid:{camvid}", camvid / "images/val/x.jpg"),
                         (f"ade20k:{ade20k}", ade20k / "images/validation/q.jpg")):
        Image.new("RGB", (WIDTH, HEIGHT)).save(file, exif=exif)
        data = open_dataset(folder)
        data = data.resized(size) if size else data
        assert len(data[0]) == 2
        with pytest.raises(LvtpError, match=rf"(?s)LVTP105 .* at .*{file.stem}\.png.*a label of its image's size, "
                                            rf"{HEIGHT} x {WIDTH} px.*got: {WIDTH} x {HEIGHT} px.*EXIF.*{file.name}"):
            data[1]


def test_a_picture_of_labels_is_none(camvid: Path) -> None:
    picture(camvid / "labels/val/x.png")
    with pytest.raises(LvtpError, match=r"(?s)LVTP105 .*x\.png.*one channel, whose values are classes.*got: mode RGB"):
        open_dataset(f"camvid:{camvid}")[1]
