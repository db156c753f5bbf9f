"""The demo's picture: what both models predict, where they differ, and which tokens live on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from lvtp_fx.decisions import Decision

DIFFERENT = (0.90, 0.10, 0.45)  # colour of pixels that differ
INK, PAPER = "#1f2430", "#ffffff"
Pixels = npt.NDArray[np.float32]  # [H, W, 3] in [0, 1]


@dataclass(frozen=True)
class Rows:
    """Examples, one a row of the picture.

    Attributes:
        images: [B, 3, H, W] float32 in [0, 1]. dense, pruned: [B, H, W] int64 predictions.
        decisions: one a site, of the same images. grid: (rows, columns) of tokens.
    """

    images: torch.Tensor
    dense: torch.Tensor
    pruned: torch.Tensor
    decisions: Sequence[Decision]
    grid: tuple[int, int]


@dataclass(frozen=True)
class Panel:
    """One square of the picture: its pixels, a remark in its corner, and the tokens to outline ([N] bool)."""

    pixels: Pixels
    remark: str = ""
    living: torch.Tensor | None = None


def draw(
    path: Path, rows: Rows, class_names: Sequence[str], palette: Sequence[tuple[int, int, int]], title: str
) -> None:
    """Write the picture as PNG; its folder is made where it is missing.

    Args:
        path: the file.
        rows: the examples.
        class_names, palette: name and (red, green, blue) in 0..255 of each class.
        title: the line on top.
    """
    titles = ["image", "dense", "pruned", "where they differ"]
    titles += [f"tokens after {decision.site}" for decision in rows.decisions]
    count, height, width = rows.dense.shape
    side, head, foot = 1.9, 0.6, 0.35  # inches
    inches = head + side * count * height / width + foot
    figure = Figure(figsize=(side * len(titles), inches), dpi=120, facecolor=PAPER)
    axes = figure.subplots(count, len(titles), squeeze=False)
    figure.subplots_adjust(0.004, foot / inches, 0.996, 1 - head / inches, wspace=0.03, hspace=0.03)
    colours: Pixels = np.asarray(palette, np.float32) / np.float32(255)
    for i in range(count):
        for ax, panel in zip(axes[i], _panels(rows, i, colours), strict=True):
            _show(ax, panel, rows.grid)
    for ax, text in zip(axes[0], titles, strict=True):
        ax.set_title(text, fontsize=9, color=INK, pad=4)
    figure.suptitle(title, fontsize=12, fontweight="bold", color=INK, y=1 - 0.08 / inches, va="top")
    _legend(figure, class_names, colours)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _panels(rows: Rows, i: int, colours: Pixels) -> Iterator[Panel]:
    image: Pixels = rows.images[i].permute(1, 2, 0).numpy()
    differs = (rows.dense[i] != rows.pruned[i]).numpy()
    grey: Pixels = np.repeat(0.35 + 0.5 * image.mean(2, keepdims=True), 3, axis=2)
    grey[differs] = DIFFERENT
    yield Panel(image)
    yield Panel(colours[rows.dense[i].numpy()])
    yield Panel(colours[rows.pruned[i].numpy()])
    yield Panel(grey, f"{1 - differs.mean():.2%} equal")
    tokens = rows.grid[0] * rows.grid[1]
    for decision in rows.decisions:
        kept = decision.kept[i]
        living = torch.zeros(tokens, dtype=torch.bool)
        living[kept] = True
        yield Panel(_dimmed(image, living, rows.grid), f"{len(kept)} of {tokens}", living)


def _dimmed(image: Pixels, living: torch.Tensor, grid: tuple[int, int]) -> Pixels:
    """The image, its dropped tokens darkened."""
    patch = (image.shape[0] // grid[0], image.shape[1] // grid[1])
    mask = np.kron(living.view(grid).numpy(), np.ones(patch, bool))[..., None]
    result: Pixels = np.where(mask, image, 0.22 * image + 0.06).astype(np.float32)
    return result


def _show(ax: Axes, panel: Panel, grid: tuple[int, int]) -> None:
    height, width = panel.pixels.shape[:2]
    ax.imshow(panel.pixels, extent=(0, width, height, 0), interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    if panel.living is not None:
        h, w = height / grid[0], width / grid[1]
        places = torch.nonzero(panel.living.view(grid)).tolist()
        boxes = [Rectangle((column * w, row * h), w, h) for row, column in places]
        outlines = PatchCollection(boxes, facecolor="none", edgecolor=PAPER, linewidth=0.35, alpha=0.8)
        ax.add_collection(outlines)
    if panel.remark:
        ax.text(0.03, 0.96, panel.remark, transform=ax.transAxes, va="top", fontsize=7.5, color=PAPER,
                bbox={"facecolor": INK, "alpha": 0.8, "edgecolor": "none", "pad": 2})


def _legend(figure: Figure, class_names: Sequence[str], colours: Pixels) -> None:
    pairs = zip(class_names, colours.tolist(), strict=True)
    entries = [Patch(color=colour, label=name) for name, colour in pairs]
    entries.append(Patch(color=DIFFERENT, label="prediction differs"))
    entries.append(Patch(facecolor="#b8bdc9", edgecolor=INK, linewidth=0.8, label="token kept"))
    entries.append(Patch(color="#30343e", label="token dropped"))
    figure.legend(handles=entries, loc="lower center", ncols=len(entries), frameon=False, fontsize=8.5,
                  labelcolor=INK, handlelength=1.1, handleheight=1.0, columnspacing=1.4, borderaxespad=0.3)
