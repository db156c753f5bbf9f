"""What is read as an image: which files of a folder, at which depth, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lvtp_fx.errors import LvtpError
from lvtp_fx.models.images import find_images, read_image
from lvtp_fx.models.palette import read_labels, save_labels, voc_palette

SHADES = [0, 128, 129, 257, 0x8000, 0xFFFF]
IN_8_BITS = [0, 0, 1, 1, 128, 255]


@pytest.mark.parametrize(("name", "kind"), [
    ("grey.png", np.uint16), ("grey.tif", np.uint16), ("big_endian.tif", ">u2"), ("grey32.tif", np.int32),
])
def test_grey_of_16_bits_is_scaled_and_not_cut_off(tmp_path: Path, name: str, kind: str | type) -> None:
    Image.fromarray(np.array([SHADES], kind)).save(tmp_path / name)
    assert read_image(tmp_path / name).tolist() == [[IN_8_BITS]] * 3


@pytest.mark.parametrize(("values", "text"), [
    (np.array([[0, 0x10000]], np.int32), "mode I with values from 0 to 65536"),
    (np.array([[-1, 5]], np.int32), "mode I with values from -1 to 5"),
    (np.array([[0.5, 1]], np.float32), "mode F with values from 0.5 to 1"),
])
def test_numbers_that_are_no_shades_are_refused(tmp_path: Path, values: np.ndarray, text: str) -> None:
    Image.fromarray(values).save(tmp_path / "depth.tif")
    with pytest.raises(LvtpError, match=rf"(?s)LVTP105 .*depth\.tif.*{text}.*, and no shades of grey in 0 to 65535"):
        read_image(tmp_path / "depth.tif")


def test_a_corrupt_file_is_no_image_whatever_pillow_raises(tmp_path: Path) -> None:
    for name, begins, junk, error in (("a.avif", b"mdat", b"\xff" * 500, RuntimeError),
                                      ("a.dds", b"DXT1", b"????", NotImplementedError)):
        file = tmp_path / name
        more = {"pixel_format": "DXT1"} if name == "a.dds" else {}
        Image.effect_noise((40, 40), 50).convert("RGB").save(file, **more)
        whole = file.read_bytes()
        at = whole.index(begins) + (4 if begins == b"mdat" else 0)
        file.write_bytes(whole[:at] + junk + whole[at + len(junk):])
        with pytest.raises(error), Image.open(file) as image:
            image.load()
        with pytest.raises(LvtpError, match=r"(?s)LVTP105 .*an image that Pillow can read"):
            read_image(file)


def test_folders_are_searched_for_what_can_be_read(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.mpo", "c.tif", "d.webp", ".hidden.png", "._a.jpg", "e.pdf", "f.mpg", "g.h5", "h.wmf",
                 "i.grib", "j.bufr", "k.palm", "l.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in find_images([tmp_path])] == ["a.jpg", "b.mpo", "c.tif", "d.webp"]


def test_a_label_map_that_is_corrupt_is_not_there(tmp_path: Path) -> None:
    file, labels = tmp_path / "map.png", torch.arange(12).reshape(3, 4)
    save_labels(file, labels, voc_palette(12), "about")
    found = read_labels(file, "about")
    assert found is not None
    assert torch.equal(found, labels)
    whole = file.read_bytes()
    file.write_bytes(whole[:11] + b"\1" + whole[12:])  # the header's length, where Pillow raises ValueError
    assert read_labels(file, "about") is None
