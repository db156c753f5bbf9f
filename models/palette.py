"""Label maps as pictures: a colour a class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lvtp_fx.replacing import replacing

ABOUT = "lvtp_fx"  # keyword of the text in a PNG
PALETTE_SIZE = 256  # of a PNG: colours, and so classes
Palette = Sequence[tuple[int, int, int]]  # red, green, blue in 0..255, one a class


def voc_palette(classes: int) -> tuple[tuple[int, int, int], ...]:
    """Pascal VOC's colours, for any number of classes: the bits of the class, spread over three bytes."""
    colours = []
    for index in range(classes):
        rgb = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                rgb[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
        colours.append((rgb[0], rgb[1], rgb[2]))
    return tuple(colours)


def to_rgb(labels: torch.Tensor, palette: Palette) -> torch.Tensor:
    """int64 [H, W] to uint8 [3, H, W].

    Raises:
        ValueError: a class has no colour.
    """
    _check(labels, palette)
    return torch.tensor(list(palette), dtype=torch.uint8)[labels].permute(2, 0, 1)


def save_labels(path: str | Path, labels: torch.Tensor, palette: Palette, about: str = "") -> None:
    """Write a PNG that shows colours; its pixels are the classes themselves, so that it can be read as labels again.

    It is written whole, then moved in place: a run that is cut leaves no part of a file under its name.

    Args:
        labels: int64 [H, W].
        about: a text that it carries, for `read_labels`.

    Raises:
        ValueError: a class has no colour, or is above 255, which a PNG with a palette cannot hold.
    """
    _check(labels, palette)
    if int(labels.max()) >= PALETTE_SIZE:
        raise ValueError(f"a PNG with a palette holds classes up to {PALETTE_SIZE - 1}, got {int(labels.max())}; "
                         "write to_rgb instead")
    picture = Image.fromarray(labels.cpu().numpy().astype(np.uint8))
    picture.putpalette([part for colour in palette[:PALETTE_SIZE] for part in colour])
    text = PngInfo()
    text.add_text(ABOUT, about)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft:
        picture.save(draft, "PNG", pnginfo=text)


def read_labels(path: Path, about: str) -> torch.Tensor | None:
    """The labels, int64 [H, W], of a file that `save_labels` wrote with this text in it; None where there is none."""
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return torch.from_numpy(np.array(picture)).long() if picture.info.get(ABOUT) == about else None
    except (OSError, SyntaxError, ValueError):  # no such file, or no whole PNG
        return None


def _check(labels: torch.Tensor, palette: Palette) -> None:
    if not 0 <= int(labels.min()) <= int(labels.max()) < len(palette):
        raise ValueError(f"labels must be in [0, {len(palette)}), the palette's colours, "
                         f"got {int(labels.min())} to {int(labels.max())}")
