"""Label maps as pictures: a colour a class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

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


def save_labels(path: str | Path, labels: torch.Tensor, palette: Palette) -> None:
    """Write a PNG that shows colours; its pixels are the classes themselves, so that it can be read as labels again.

    Args:
        labels: int64 [H, W].

    Raises:
        ValueError: a class has no colour, or is above 255, which a PNG with a palette cannot hold.
    """
    _check(labels, palette)
    if int(labels.max()) > 255:
        raise ValueError(f"a PNG with a palette holds classes up to 255, got {int(labels.max())}; write to_rgb instead")
    picture = Image.fromarray(labels.cpu().numpy().astype(np.uint8))
    picture.putpalette([part for colour in palette[:256] for part in colour])
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def _check(labels: torch.Tensor, palette: Palette) -> None:
    if not 0 <= int(labels.min()) <= int(labels.max()) < len(palette):
        raise ValueError(f"labels must be in [0, {len(palette)}), the palette's colours, "
                         f"got {int(labels.min())} to {int(labels.max())}")
