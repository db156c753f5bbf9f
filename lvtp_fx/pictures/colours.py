"""Colours of the pictures: palettes, a scale for scores, groups; and arrays as PNG."""

from __future__ import annotations

import base64
import colorsys
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]  # [H, W, 3] RGB or [H, W, 4] RGBA
Colour = tuple[int, int, int]  # red, green, blue in 0..255

DIFFERENT: Colour = (230, 25, 115)  # pixels whose class has changed
NO_VALUE: Colour = (128, 128, 128)  # tokens that were dropped at an earlier site; the scale has no grey
LIMIT = 2.0  # scores are drawn from -LIMIT to LIMIT standard deviations
# Viridis at nine even steps (Smith and van der Walt 2015): as even in lightness, also to the colour-blind.
SCALE: tuple[Colour, ...] = (
    (68, 1, 84), (72, 40, 120), (62, 74, 137), (49, 104, 142), (38, 130, 142),
    (31, 158, 137), (53, 183, 121), (110, 206, 88), (253, 231, 37),
)


def palette(count: int, given: Sequence[Colour] | None = None) -> list[Colour]:
    """A colour for each of `count` classes: the given ones, then hues in golden steps at changing lightness."""
    colours = [(int(r), int(g), int(b)) for r, g, b in (given or ())][:count]
    for i in range(len(colours), count):
        colours.append(_rgb(0.58 + i * 0.6180339887, (0.5, 0.68, 0.36)[i % 3], 0.6))
    return colours


def group_colours(rows: int, columns: int) -> Pixels:
    """A colour for every place of the grid, unlike those of its neighbours: [rows, columns, 3]."""
    # Steps along rows and columns that stay apart on any grid (the plastic number; the golden one returns every 21).
    cells = [[_rgb(r * 0.7548776662 + c * 0.5698402910, 0.42 + 0.2 * ((r + c) % 2), 0.75) for c in range(columns)]
             for r in range(rows)]
    return np.asarray(cells, np.uint8).reshape(rows, columns, 3)


def heat(values: npt.NDArray[np.floating]) -> Pixels:
    """Standardised scores [rows, columns] on `SCALE`, NaN as `NO_VALUE`: [rows, columns, 3]."""
    share = (np.clip(np.nan_to_num(values, nan=0.0), -LIMIT, LIMIT) + LIMIT) / (2 * LIMIT)
    steps = np.linspace(0, 1, len(SCALE))
    channels = [np.interp(share, steps, [colour[i] for colour in SCALE]) for i in range(3)]
    pixels: Pixels = np.stack(channels, axis=-1).round().astype(np.uint8)
    pixels[np.isnan(values)] = NO_VALUE
    return pixels


def png(pixels: Pixels) -> bytes:
    """A PNG file of [H, W, 3] or [H, W, 4]; the core needs no image library for it.

    Raises:
        ValueError: for another shape or dtype.
    """
    if pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise ValueError(f"pixels must be uint8 [H, W, 3 or 4], not empty, got {pixels.dtype} {list(pixels.shape)}")
    height, width, channels = pixels.shape
    flat = np.ascontiguousarray(pixels).reshape(height, -1)
    above = np.concatenate([np.zeros_like(flat[:1]), flat[:-1]])
    rows = [(0, flat), (2, flat - above)]  # filters: none, which suits flat areas; up (uint8 wraps), photographs
    packed = [zlib.compress(np.insert(data, 0, kind, axis=1).tobytes(), 9) for kind, data in rows]
    header = struct.pack(">IIBBBBB", width, height, 8, {3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", min(packed, key=len)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def data_uri(pixels: Pixels) -> str:
    """The PNG of `png` as a `data:` address."""
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _rgb(hue: float, lightness: float, saturation: float) -> Colour:
    r, g, b = colorsys.hls_to_rgb(hue % 1, lightness, saturation)
    return round(255 * r), round(255 * g), round(255 * b)
