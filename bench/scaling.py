"""How time grows: what is inserted with the number of tokens, the passes with the depth of the model.

    python bench/scaling.py                             # 256 to 16,384 tokens; 6 to 96 blocks, and ViT-L
    python bench/scaling.py --size 256 --size 512 --depth 6 --depth 12 --turns 3
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from latency import where
from latency_run import Case, Measured, measure
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track

import lvtp_fx
from lvtp_fx import api
from lvtp_fx.capture import capture, exported, plain_modes
from lvtp_fx.models.adapters import timm_segmenter
from lvtp_fx.passes import pipeline
from lvtp_fx.twin import twin

SIZES, DEPTHS, PATCH_PX = (256, 512, 1024, 2048), (6, 12, 24, 48, 96), 16


@dataclass(frozen=True)
class PassTime:
    """Seconds for one model.

    Attributes:
        nodes: of the captured graph. export_s: `torch.export.export` alone. capture_s: capture, that export included.
        passes_s: analysis, rewriting and code generation. transform_s: all that `transform` does beyond the capture:
            the passes, and counting FLOPs for the report.
    """

    model: str
    blocks: int
    nodes: int
    export_s: float
    capture_s: float
    passes_s: float
    transform_s: float


def pass_time(model: str, depth: int, cut: float, turns: int) -> PassTime:
    """Medians over the turns."""
    segmenter = timm_segmenter(model, "linear", classes=19, depth=depth)
    x, config = torch.rand(2, 3, 224, 224), lvtp_fx.Config(flops_cut=cut)
    captured = capture(segmenter, (x,), {})  # what is imported at the first, no turn waits for

    def export() -> object:
        with plain_modes((x,), {}):
            return exported(twin(segmenter), (x,), {}, dynamic=True)

    def passes() -> object:
        plan = pipeline.run(pipeline.analysis(), pipeline.start(captured, config))
        return pipeline.finish(pipeline.run(pipeline.rewrite(dense_flops), plan))

    dense_flops = api.prepare(captured, None, config).dense_flops
    runs = (export, lambda: capture(segmenter, (x,), {}), passes, lambda: lvtp_fx.transform(captured, config=config))
    return PassTime(model, depth, len(captured.module.graph.nodes), *(_median_s(run, turns) for run in runs))


def _median_s(run: Callable[[], object], turns: int) -> float:
    taken = []
    for _ in range(turns):
        gc.collect()  # not what the turn before left behind
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the least-squares line through the logarithms: 1 for linear growth, 2 for quadratic."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def growth_lines(rows: Sequence[Measured]) -> tuple[list[int], dict[str, list[float]]]:
    """Numbers of tokens, and milliseconds at each."""
    return ([(row.case.size // PATCH_PX) ** 2 for row in rows],
            {"dense": [row.dense_ms for row in rows], "pruned": [row.pruned_ms for row in rows],
             "inserted, alone": [row.inserted_ms for row in rows]})


def pass_lines(passes: Sequence[PassTime]) -> tuple[list[int], dict[str, list[float]]]:
    """Numbers of nodes of the first model at each depth, and seconds."""
    same = [each for each in passes if each.model == passes[0].model]
    return [each.nodes for each in same], {"torch.export": [each.export_s for each in same],
                                           "capture": [each.capture_s for each in same],
                                           "passes": [each.passes_s for each in same],
                                           "transform beyond capture": [each.transform_s for each in same]}


def markdown(title: str, rows: Sequence[Measured], passes: Sequence[PassTime]) -> str:
    lines = [f"# {title}", "", "| tokens | dense, ms | pruned, ms | inserted, ms | inserted / dense |",
             "|---|---|---|---|---|"]
    tokens, times = growth_lines(rows)
    lines += [f"| {n:,} | {a:.1f} | {b:.1f} | {c:.1f} | {c / a:.1%} |"
              for n, a, b, c in zip(tokens, *times.values(), strict=True)]
    if len(rows) > 1:
        lines += ["", "Slopes of log time over log tokens: " + ", ".join(
            f"{name} {slope(tokens, y):.2f}" for name, y in times.items()) + "."]
    lines += ["", "| model | blocks | nodes | torch.export, s | capture, s | passes, s | transform beyond capture, s |",
              "|---|---|---|---|---|---|---|"]
    lines += [f"| {p.model} | {p.blocks} | {p.nodes} | {p.export_s:.2f} | {p.capture_s:.2f} | {p.passes_s:.2f} | "
              f"{p.transform_s:.2f} |" for p in passes]
    nodes, seconds = pass_lines(passes)
    if len(nodes) > 1:
        lines += ["", f"Slope of log passes over log nodes: {slope(nodes, seconds['passes']):.2f}."]
    return "\n".join(lines) + "\n"


def plot(path: Path, title: str, rows: Sequence[Measured], passes: Sequence[PassTime]) -> None:
    """Log-log: times over tokens, and seconds of the passes over nodes."""
    figure = Figure(figsize=(10, 4.5), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    tokens, times = growth_lines(rows)
    for name, y in times.items():
        _line(left, tokens, y, name)
    left.set(xlabel="tokens", ylabel="ms", xscale="log", yscale="log")
    nodes, seconds = pass_lines(passes)
    for name, y in seconds.items():
        _line(right, nodes, y, name)
    right.set(xlabel="nodes of the captured graph", ylabel="s", xscale="log", yscale="log")
    right.set_xticks(nodes, [str(n) for n in nodes])
    right.minorticks_off()
    for ax in (left, right):
        ax.legend(frameon=False, fontsize=9)
        ax.grid(color="#d8dbe2", linewidth=0.5)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path)


def _line(ax: Axes, x: Sequence[float], y: Sequence[float], name: str) -> None:
    ax.plot(x, y, marker="o", markersize=4, label=f"{name}, slope {slope(x, y):.2f}" if len(x) > 1 else name)


def main(
    model: Annotated[str, typer.Option(help="of timm, for growth with tokens")] = "vit_small_patch16_224",
    blocks: Annotated[int, typer.Option(min=2, help="of that model")] = 4,
    size: Annotated[list[int] | None, typer.Option(help="pixels of a square image")] = None,
    depth: Annotated[list[int] | None, typer.Option(help="blocks of a ViT-Ti, for the time of the passes")] = None,
    large: Annotated[bool, typer.Option(help="time the passes on ViT-L as well")] = True,
    flops_cut: Annotated[float, typer.Option(help="share of the FLOPs to save")] = 0.35,
    turns: Annotated[int, typer.Option(min=3, help="timed runs of each")] = 5,
    device: Annotated[str, typer.Option(help="cpu or cuda, for growth with tokens")] = "cpu",
    out: Annotated[Path, typer.Option(help="Markdown to write; .json and .png beside it")] = Path("out/scaling.md"),
) -> None:
    """Time both and write a table, a log-log plot and all figures."""
    console = Console(stderr=True)
    rows: list[Measured] = []
    for px in track(size or SIZES, "growth with tokens", console=console):
        case = Case(model, px, 1, "float32", depth=blocks)
        rows += measure(case, ["lvtp"], [flops_cut], turns, device, None, True, lambda text: None)
        if rows[-1].refused:
            raise typer.BadParameter(f"{px} px: {rows[-1].refused}")
        torch.compiler.reset()
    models = [("vit_tiny_patch16_224", d) for d in depth or DEPTHS] + [("vit_large_patch16_224", 24)] * large
    passes = [pass_time(name, d, flops_cut, turns) for name, d in track(models, "time of the passes", console=console)]
    title = f"{model} of {blocks} blocks, cut {flops_cut:.0%}, batch 1, {turns} turns, {where(device)}"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(markdown(title, rows, passes))
    figures = {"title": title, "growth": [asdict(row) for row in rows], "passes": [asdict(p) for p in passes]}
    out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    plot(out.with_suffix(".png"), title, rows, passes)
    Console().print(out.read_text(), markup=False)


if __name__ == "__main__":
    typer.run(main)
