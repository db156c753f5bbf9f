"""The rows of the latency bench as a table for the terminal, as Markdown, and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from pathlib import Path

from latency_run import Measured
from matplotlib.figure import Figure
from plots import wrapped
from rich.table import Table

HEADINGS = ("model", "size", "batch", "dtype", "strategy", "FLOPs saved", "dense, ms", "pruned, ms",
            "speed [quartiles]", "by FLOPs", "efficiency", "inserted", "compile, s")


def cells(row: Measured) -> list[str]:
    """One row, in the order of `HEADINGS`."""
    case = row.case
    first = [case.name, "own" if case.size is None else str(case.size), str(case.batch), case.dtype, row.strategy]
    if row.refused:
        return [*first, row.refused, *[""] * (len(HEADINGS) - len(first) - 1)]
    share = "" if isnan(row.inserted_ms) else f"{row.inserted_ms / row.dense_ms:.1%}"
    return [*first, f"{1 - 1 / row.promised:.1%}", f"{row.dense_ms:.1f}", f"{row.pruned_ms:.1f}",
            f"{row.ratio:.2f}x [{row.ratio_low:.2f}, {row.ratio_high:.2f}]", f"{row.promised:.2f}x",
            f"{row.efficiency:.2f}", share, f"{row.compile_s_dense:.0f} -> {row.compile_s_pruned:.0f}"]


def terminal(rows: Sequence[Measured], title: str) -> Table:
    table = Table(*HEADINGS, title=title)
    for row in rows:
        table.add_row(*cells(row))
    return table


def markdown(rows: Sequence[Measured], title: str) -> str:
    lines = [f"# {title}", "", "| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    return "\n".join([*lines, *("| " + " | ".join(cells(row)) + " |" for row in rows)]) + "\n"


def plot(path: Path, rows: Sequence[Measured], title: str) -> None:
    """Speed that was measured against speed that the FLOPs promise, with quartiles; on the line, both are the same."""
    figure = Figure(figsize=(7, 6), dpi=120, layout="constrained")
    ax = figure.subplots()
    timed = [row for row in rows if not row.refused]
    top = 1.1 * max((row.promised for row in timed), default=1.0)
    ax.plot([1, top], [1, top], color="#1f2430", linewidth=0.8, label="what the FLOPs promise")
    for strategy in dict.fromkeys(row.strategy for row in timed):
        own = [row for row in timed if row.strategy == strategy]
        x, y = [row.promised for row in own], [row.ratio for row in own]
        spread = [[row.ratio - row.ratio_low for row in own], [row.ratio_high - row.ratio for row in own]]
        ax.errorbar(x, y, yerr=spread, fmt="o", markersize=5, linewidth=1, label=strategy)
    ax.set_xlabel("dense FLOPs / pruned FLOPs")
    ax.set_ylabel("dense time / pruned time, measured")
    ax.set_title(wrapped(title, 6), fontsize=9)
    ax.legend(frameon=False, fontsize=9)
    ax.grid(color="#d8dbe2", linewidth=0.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
