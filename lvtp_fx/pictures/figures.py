"""The page's charts and pictures as matplotlib figures, made without pyplot: no window, no global state."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch
from torch import nn

from lvtp_fx.pictures.colours import LIMIT, Colour, Pixels, heat
from lvtp_fx.pictures.views import OF_SITE, OVERLAYS, TITLES, Views, make_views
from lvtp_fx.report import Report

INK, SOFT, PAPER, DENSE, PRUNED = "#1b2030", "#4a5268", "#ffffff", "#8a93a8", "#0b62c4"
SIDE = 2.1  # inches of a picture


def plot(
    report: Report, model: nn.Module | None = None, fast: nn.Module | None = None, images: torch.Tensor | None = None,
    shown: torch.Tensor | None = None, class_names: Sequence[str] | None = None,
    palette: Sequence[Colour] | None = None, latency_ms: tuple[float, float] | None = None,
) -> Figure:
    """Blocks and tokens, cost, and for each image what happens at each site and what is predicted.

    Args:
        report: of `fast`. Others as of `lvtp_fx.pictures.page.write`; without `images`, only the charts.

    Raises:
        ValueError: images without the model that they go through; others as `make_views`.
    """
    if images is not None and model is None:
        raise ValueError("pictures of images need the dense model: plot(model, fast, images)")
    views = Views() if model is None else make_views(model, fast, images, shown, class_names, palette)
    wide = max([4, *(len(site.pictures) for site in views.sites)])
    lines = [1 + len(views.sites)] * len(views.images)  # rows of pictures of each image
    aspect = views.images[0].shape[0] / views.images[0].shape[1] if views.images else 1.0
    charts, row = 1.2 + 0.3 * max(6, len(report.blocks)), SIDE * aspect + 0.3
    remarks = _remarks(report)
    heights = [charts, 0.2 + 0.17 * len(remarks), *(row * count for count in lines), 0.9 if lines else 0.1]
    figure = Figure(figsize=(SIDE * wide + 0.6, sum(heights)), dpi=110, facecolor=PAPER)
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    _charts(parts[0], report, latency_ms)
    parts[1].text(0.02, 1, "\n".join(remarks), fontsize=8, color=SOFT, va="top", parse_math=False)
    for i, part in enumerate(parts[2:-1]):
        _image(part, views, i, wide)
    if lines:
        _keys(parts[-1], views)
    return figure


def _remarks(report: Report) -> list[str]:
    """Why it was refused, what was not matched and why, and notes, in lines that fit."""
    texts = [*report.refused.splitlines(), *(f"not used: {u.where}: {u.reason}" for u in report.unmatched),
             *(f"note: {note}" for note in report.notes)]
    return [line for text in texts for line in textwrap.wrap(text, 120)]


def _charts(part: SubFigure, report: Report, latency_ms: tuple[float, float] | None) -> None:
    """Tokens on the left; FLOPs, and latency where it is known, on the right."""
    known = {"measured": latency_ms, "expected": report.latency_ms}
    latency = {name: pair for name, pair in known.items() if pair is not None}
    rows = 2 if latency else 1
    panels = part.add_gridspec(rows, 2, width_ratios=(1.6, 1), height_ratios=(2, 1)[:rows])
    part.subplots_adjust(0.14, 0.12, 0.96, 0.8, wspace=0.42, hspace=0.75)
    dense_only = bool(report.refused)
    marks = [", site" if block.site else "" for block in report.blocks]
    tokens = {f"{block.path or '(top level)'}{mark}": (block.tokens_dense, block.tokens)
              for block, mark in zip(report.blocks, marks, strict=True)}
    flops = {"whole model": (report.gflops_dense, report.gflops_pruned),
             "encoder": (report.gflops_encoder_dense, report.gflops_encoder_pruned)}
    first = part.add_subplot(panels[:, 0])
    _pairs(first, tokens, "Tokens of each block's attention", "{:.0f}", dense_only)
    _pairs(part.add_subplot(panels[0, 1]), {name: pair for name, pair in flops.items() if pair[0]}, "GFLOPs an image",
           "{:.3f}", dense_only)
    if latency:
        _pairs(part.add_subplot(panels[1, 1]), latency, "Latency of a batch, ms", "{:.1f}", dense_only)
    part.legend(*first.get_legend_handles_labels(), loc="upper right", ncols=2, fontsize=8, frameon=False)


def _pairs(ax: Axes, pairs: Mapping[str, tuple[float, float]], title: str, form: str, dense_only: bool) -> None:
    """Horizontal bars, dense above pruned, with their numbers."""
    places = np.arange(len(pairs))
    kinds = (("dense", DENSE, -0.2), ("pruned", PRUNED, 0.2))[: 1 if dense_only else 2]
    for i, (kind, colour, shift) in enumerate(kinds):
        bars = ax.barh(places + shift, [pair[i] for pair in pairs.values()], 0.36, color=colour, label=kind)
        ax.bar_label(bars, fmt=form, fontsize=7, padding=2, color=INK)
    ax.set_yticks(places, list(pairs), fontsize=8, parse_math=False)
    ax.invert_yaxis()
    ax.margins(x=0.14)
    ax.set_title(title, fontsize=10, color=INK, loc="left")
    ax.tick_params(colors=SOFT, labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)


def _image(part: SubFigure, views: Views, i: int, wide: int) -> None:
    """One image: what is predicted, then a row a site."""
    axes = part.subplots(1 + len(views.sites), wide, squeeze=False)
    part.subplots_adjust(0.03, 0.01, 0.995, 0.93, wspace=0.04, hspace=0.18)
    for ax in axes.flat:
        ax.set_axis_off()
    _picture(axes[0, 0], views.images[i], None, "Image")
    for ax, (name, found) in zip(axes[0, 1:], views.fixed.items(), strict=False):
        share = f", {views.agreement[i]:.2%} equal" if name == "difference" else ""
        _picture(ax, found[i], views.images[i] if name in OVERLAYS else None, TITLES[name] + share)
    for line, site in zip(axes[1:], views.sites, strict=True):
        there = [name for name in OF_SITE if name in site.pictures]
        for ax, name in zip(line, there, strict=False):
            _picture(ax, site.pictures[name][i], views.images[i] if name in OVERLAYS else None, TITLES[name],
                     grey=name != "living")
        line[0].set_title(f"{site.site or '(top level)'}: {site.kept} of {site.tokens} live", fontsize=8, color=INK,
                          parse_math=False)


def _picture(ax: Axes, pixels: Pixels, under: Pixels | None, title: str, grey: bool = True) -> None:
    height, width = (pixels if under is None else under).shape[:2]
    extent = (0.0, float(width), float(height), 0.0)
    if under is not None:
        base = under.mean(2, keepdims=True).repeat(3, 2).astype(np.uint8) if grey else under
        ax.imshow(base, extent=extent)
    ax.imshow(pixels, extent=extent, interpolation="nearest")
    ax.set_title(title, fontsize=8, color=INK, pad=3)


def _keys(part: SubFigure, views: Views) -> None:
    """Colours of the classes and of the scores, and what was left out."""
    entries = [Patch(color=(r / 255, g / 255, b / 255), label=name.replace("$", r"\$"))
               for name, (r, g, b) in views.classes]
    if entries:
        part.legend(handles=entries, loc="upper left", ncols=8, fontsize=8, frameon=False, labelcolor=INK)
    if any(set(site.pictures) - set(OVERLAYS) for site in views.sites):
        colours = ListedColormap(heat(np.linspace(-LIMIT, LIMIT, 256)[None]).squeeze(0) / 255)
        bar = part.colorbar(ScalarMappable(Normalize(-LIMIT, LIMIT), colours), orientation="horizontal",
                            cax=part.add_axes((0.7, 0.62, 0.27, 0.12)))
        bar.set_label("scores, in standard deviations", fontsize=7, color=SOFT)
        bar.ax.tick_params(labelsize=7, colors=SOFT)
    if views.absent:
        text = "; ".join(f"no {TITLES[name].lower()}: {why}" for name, why in views.absent.items())
        part.text(0.01, 0.08, text, fontsize=7, color=SOFT, parse_math=False)
