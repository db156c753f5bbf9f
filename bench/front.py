"""Accuracy against latency: what `accuracy.py` and `latency.py` found of the same models, strategies and cuts.

    python bench/accuracy.py --data DIR --checkpoint DIR --split test --strategy all --json out/accuracy.json
    python bench/latency.py --model DIR --strategy all --out out/latency.md
    python bench/front.py --accuracy out/accuracy.json --latency out/latency.json
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from accuracy_plot import COLOURS, INK, MARKERS
from matplotlib.figure import Figure
from plots import scale_points, wrapped
from rich.console import Console

# Names of the figures in what accuracy.py writes, and how they are called here.
CHANGES = {"miou": "mIoU", "boundary_miou": "boundary mIoU", "boundary_iou": "boundary IoU"}


@dataclass(frozen=True)
class Point:
    """A pruned model.

    Attributes:
        aim: the cut that was asked for. speed: dense time / pruned time.
        changes: to the dense model in points, in the order of `CHANGES`.
    """

    model: str
    strategy: str
    aim: float
    speed: float
    changes: tuple[float, ...]

    def behind(self, others: Sequence[Point]) -> str:
        """The fastest one of the same model that is faster, and at least as good in each figure; "" on the front."""
        ahead = [other for other in others if other.model == self.model and other.speed > self.speed
                 and all(a >= b for a, b in zip(other.changes, self.changes, strict=True))]
        best = max(ahead, key=lambda point: point.speed, default=None)
        return f"{best.strategy}, {best.aim:.0%}" if best is not None else ""


def joined(accuracy: dict[str, Any], latency: dict[str, Any]) -> list[Point]:
    """What both hold, in the order of the latency file; refused cuts are in neither."""
    changes = {(one["name"], row["strategy"], row["aim"]): tuple(row["change"][name]["value"] for name in CHANGES)
               for one in accuracy["checkpoints"] for row in one["rows"] if row["change"]}
    points = []
    for row in latency["rows"]:
        key = (Path(row["case"]["model"]).name, row["strategy"], f"cut {row['aim']:g}")
        if key in changes and not row["refused"]:
            points.append(Point(*key[:2], row["aim"], row["ratio"], changes[key]))
    return points


def check_one_kind(latency: dict[str, Any]) -> None:
    """Whether each model was timed in one way: points are told apart by model, strategy and cut alone.

    Raises:
        typer.BadParameter: it holds several batches or dtypes.
    """
    for name in ("batch", "dtype"):
        found = dict.fromkeys(str(row["case"][name]) for row in latency["rows"])
        if len(found) > 1:
            raise typer.BadParameter(f"it holds more than one {name}: {', '.join(found)}; join one at a time",
                                     param_hint="--latency")


def markdown(points: Sequence[Point], title: str) -> str:
    lines = [f"# {title}", "", "| model | cut | strategy | speed | " + " / ".join(CHANGES.values()) + " | behind |",
             "|" + "---|" * 6]
    for point in sorted(points, key=lambda point: (point.model, point.aim)):
        found = " / ".join(f"{change:+.2f}" for change in point.changes)
        lines.append(f"| {point.model} | {point.aim:.0%} | {point.strategy} | {point.speed:.2f}x | {found} | "
                     f"{point.behind(points)} |")
    return "\n".join(lines) + "\n"


def plot(path: Path, points: Sequence[Point], title: str) -> None:
    """Change of mIoU against speed, a panel a model and a line a strategy."""
    models = list(dict.fromkeys(point.model for point in points))
    width = 6 * len(models) + 2
    figure = Figure(figsize=(width, 5), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(models), squeeze=False)[0]
    strategies = list(dict.fromkeys(point.strategy for point in points))
    for ax, model in zip(axes, models, strict=True):
        for i, strategy in enumerate(strategies):
            own = sorted((p.speed, p.changes[0]) for p in points if p.model == model and p.strategy == strategy)
            marker = list(MARKERS)[i // len(COLOURS)]
            style = {"color": "#0072B2", "linewidth": 3, "zorder": 5} if strategy == "lvtp" else {
                "color": COLOURS[i % len(COLOURS)], "linewidth": 1.1, "linestyle": MARKERS[marker]}
            ax.plot([x for x, _ in own], [y for _, y in own], marker=marker, label=strategy, **style)
        ax.axhline(0, color=INK, linewidth=0.8)
        scale_points(ax)
        ax.set_title(model, fontsize=10, color=INK)
        ax.set_xlabel("dense time / pruned time, measured")
        ax.set_ylabel("change of mIoU, points")
        ax.grid(color="#d8dbe2", linewidth=0.5)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    figure.suptitle(wrapped(title, width), fontsize=9, color=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main(
    accuracy: Annotated[Path, typer.Option(help="what bench/accuracy.py --json wrote")],
    latency: Annotated[Path, typer.Option(help="the .json of bench/latency.py")],
    out: Annotated[Path, typer.Option(help="Markdown to write; .png beside it")] = Path("out/front.md"),
) -> None:
    """Join both and write a table and a plot."""
    timed = json.loads(latency.read_text())
    check_one_kind(timed)
    points = joined(json.loads(accuracy.read_text()), timed)
    if not points:
        raise typer.BadParameter("the two files share no model, strategy and cut")
    title = f"Accuracy against latency. {timed['title']}"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(markdown(points, title))
    plot(out.with_suffix(".png"), points, title)
    Console().print(out.read_text(), markup=False)


if __name__ == "__main__":
    typer.run(main)
