"""The plot of the accuracy bench: change of each figure against the FLOPs that were saved, a line a strategy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from accuracy_counts import STATISTICS
from accuracy_rows import BASE, Row
from accuracy_table import columns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plots import scale_points

INK = "#1f2430"
# Okabe and Ito's colours, told apart by people with any colour vision; with marker and dashes, forty lines differ.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#7F7F7F", "#B8A500", "#000000")
MARKERS = {"o": "-", "s": "--", "^": ":", "D": "-.", "v": (0, (1, 3))}  # and the dashes that go with it
SPREAD = 0.12  # percent of FLOPs by which the lines are moved apart, so that their intervals do not hide each other


def plot(path: Path, rows: Sequence[Row], boundary_px: int, title: str) -> None:
    """Write the plot as PNG; its folder is made where it is missing. Refused cuts have no point."""
    names = columns(boundary_px)
    figure = Figure(figsize=(15, 5.2), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(STATISTICS), sharex=True)
    for ax, name in zip(axes, STATISTICS, strict=True):
        _panel(ax, rows, name)
        ax.set_title(f"change of {names[name]}, points", fontsize=10, color=INK)
        ax.set_xlabel("FLOPs saved, measured, % (all but lvtp moved a little to the right)", fontsize=8, color=INK)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11, color=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _panel(ax: Axes, rows: Sequence[Row], statistic: str) -> None:
    ax.axhline(0, color=INK, linewidth=0.8)
    styles = zip(cycle(COLOURS), cycle(marker for marker in MARKERS for _ in COLOURS), strict=False)
    strategies = dict.fromkeys(row.strategy for row in rows if row.aim)
    for i, strategy in enumerate(sorted(strategies, key=lambda name: name != BASE)):  # lvtp first in the legend
        points = sorted((100 * row.flops_cut, row.change[statistic]) for row in rows
                        if row.strategy == strategy and row.aim and not row.refused)
        if not points:
            continue
        apart = 0 if strategy == BASE else i * SPREAD
        x, values = [cut + apart for cut, _ in points], [change.value for _, change in points]
        low, high = [change.low for _, change in points], [change.high for _, change in points]
        if strategy == BASE:
            ax.fill_between(x, low, high, color="#0072B2", alpha=0.2, linewidth=0)
            ax.plot(x, values, color="#0072B2", marker="o", markersize=6, linewidth=3, label=strategy, zorder=5)
            continue
        colour, marker = next(styles)
        ax.plot(x, values, color=colour, marker=marker, linestyle=MARKERS[marker], markersize=4, linewidth=1.1,
                label=strategy)
        ax.vlines(x, low, high, color=colour, linewidth=0.8, alpha=0.6)
    scale_points(ax)
    ax.grid(color="#d8dbe2", linewidth=0.5)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
