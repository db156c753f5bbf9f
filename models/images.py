"""Images of the user's: found in files and folders, read as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageOps

from lvtp_fx.errors import Code, LvtpError
from lvtp_fx.models.preprocess import transforms

# What Pillow raises where it cannot read a file, breaks off in the middle, or takes its size for an attack.
NOT_READ = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


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
    """Whether it is a file that Pillow may read, by its suffix."""
    return path.suffix.lower() in Image.registered_extensions() and path.is_file()


def read_image(path: str | Path) -> torch.Tensor:
    """RGB, uint8 [3, H, W], upright as its EXIF data says.

    Raises:
        LvtpError: LVTP105 where it cannot be read as an image.
    """
    try:
        with Image.open(path) as file:
            upright = ImageOps.exif_transpose(file).convert("RGB")
    except NOT_READ as error:
        raise LvtpError(
            Code.BAD_EXAMPLE, where=str(path), expected="an image that Pillow can read", got=str(error),
            why="the model is run on it", hint="another file; convert it to PNG or JPEG if it is an image",
        ) from error
    out: torch.Tensor = transforms().functional.pil_to_tensor(upright)
    return out


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
