"""Images of the user's: found in files and folders, read as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps

from lvtp_fx.errors import Code, LvtpError
from lvtp_fx.models.preprocess import transforms

# What Pillow raises where it cannot read a file, breaks off in the middle, or takes its size for an attack. Its readers
# of AVIF and DDS raise RuntimeError.
NOT_READ = (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError)
WHITE_16 = 0xFFFF  # of 16 bit grey


def find_images(paths: Sequence[Path], limit: int | None = None) -> list[Path]:
    """The files among `paths`, and the images right in the folders among them, by name; the first `limit` of all.

    Raises:
        LvtpError: LVTP105 for a path that does not exist, a folder without an image, or no path at all.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if is_image(file))
            if not inside:
                raise _no_images(str(path), "a folder with images", _content(path))
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise _no_images(str(path), "an image or a folder with images", "no such file or folder")
    if not found:
        raise _no_images("images", "one image or more", "none")
    return found[:limit]


def is_image(path: Path) -> bool:
    """Whether it is a file that Pillow may read, by its suffix. Hidden files are not: thumbnails, what a Mac leaves."""
    kind = Image.registered_extensions().get(path.suffix.lower(), "")
    return not path.name.startswith(".") and _is_read(kind) and path.is_file()


def read_image(path: str | Path) -> torch.Tensor:
    """RGB, uint8 [3, H, W], upright as its EXIF data says; grey of 16 bits is scaled to 8.

    Raises:
        LvtpError: LVTP105 where it cannot be read as an image, or has values that are no shades.
    """
    try:
        with Image.open(path) as file:
            upright = _in_8_bits(ImageOps.exif_transpose(file)).convert("RGB")
    except NOT_READ as error:
        raise LvtpError(
            Code.BAD_EXAMPLE, where=str(path), expected="an image that Pillow can read", got=str(error),
            why="the model is run on it", hint="another file; convert it to PNG or JPEG if it is an image",
        ) from error
    out: torch.Tensor = transforms().functional.pil_to_tensor(upright)
    return out


def as_stored(file: Image.Image, path: Path) -> np.ndarray:
    """The pixels of a PNG as its file holds them: Pillow spreads grey of 2 and 4 bits over 0 to 255."""
    pixels = np.array(file)
    if file.format == "PNG" and file.mode == "L":
        with path.open("rb") as raw:
            bits = raw.read(25)[24]  # the header's depth, which Pillow does not tell
        pixels //= 255 // (2**bits - 1)
    return pixels


def _is_read(kind: str) -> bool:
    """Whether Pillow reads this format: some it only writes, of some it knows no more than the name."""
    if kind == "MPO":  # read as JPEG
        return True
    factory = Image.OPEN.get(kind, (None, None))[0]
    stub = isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)
    return factory is not None and not stub and kind != "MPEG"


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Pillow would cut deeper grey off at 255, which leaves a white image."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if image.mode == "F" or not 0 <= values.min() <= values.max() <= WHITE_16:
        raise ValueError(f"mode {image.mode} with values from {values.min()} to {values.max()}, and no shades of grey "
                         f"in 0 to {WHITE_16}")
    return Image.fromarray(((values.astype(np.int64) + 128) // 257).astype(np.uint8))


def _content(folder: Path) -> str:
    entries = list(folder.iterdir())
    folders = sorted(entry.name for entry in entries if entry.is_dir())
    text = f"{len(entries) - len(folders)} other files" if len(entries) > len(folders) else "no file"
    return text + (f", and folders, which are not searched: {', '.join(folders[:5])}" if folders else "")


def _no_images(where: str, expected: str, got: str) -> LvtpError:
    return LvtpError(
        Code.BAD_EXAMPLE, where=where, expected=expected, got=got, why="the model is run on them",
        hint="files, or folders that the images lie right in (PNG, JPEG, and what else Pillow reads)",
    )
