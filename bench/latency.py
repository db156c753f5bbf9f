"""Latency of the pruned graph against the same model under torch.compile with fused attention.

    python bench/latency.py                                            # ViT-S/16 at 512 x 512, float32, CPU
    python bench/latency.py --model vit_base_patch16_224 --size 768 --batch 4 --dtype bfloat16 --device cuda
    python bench/latency.py --strategy all --flops-cut 0.35            # and the rivals of bench/rivals.py
    python bench/latency.py --model bench/checkpoints/camvid_mask      # a checkpoint, at its own size
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from latency_run import Case, Measured, measure
from latency_table import markdown, plot, terminal
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rivals import rivals

from lvtp_fx.cli.output import plain

ALL = [name for name in rivals() if not name.startswith("lvtp ")]


def where(device: str) -> str:
    """The machine and the versions."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{_processor()}, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}"


def figures(rows: Sequence[Measured], title: str) -> dict[str, Any]:
    """All figures as plain values; NaN is None, JSON has none."""
    return plain({"title": title, "rows": [asdict(row) for row in rows]})  # type: ignore[no-any-return]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return f"{line.split(':')[1].strip()} ({torch.backends.cpu.get_cpu_capability()})"
    return platform.processor() or platform.machine()


def main(
    model: Annotated[list[str] | None, typer.Option(help="of timm, or a checkpoint's folder")] = None,
    size: Annotated[list[int] | None, typer.Option(help="pixels of a square image, for models of timm")] = None,
    depth: Annotated[int | None, typer.Option(help="blocks of models of timm; without it all")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="images a batch")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16 or float16")] = None,
    flops_cut: Annotated[list[float] | None, typer.Option(help="shares of the FLOPs to save")] = None,
    strategy: Annotated[list[str] | None, typer.Option(help="of bench/rivals.py, or all")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    mode: Annotated[str | None, typer.Option(help="of torch.compile: max-autotune, reduce-overhead")] = None,
    turns: Annotated[int, typer.Option(min=3, help="timed runs of each graph, in turn")] = 12,
    parts: Annotated[bool, typer.Option(help="time the inserted ops alone as well")] = False,
    out: Annotated[Path, typer.Option(help="Markdown to write; .json and .png beside it")] = Path("out/latency.md"),
) -> None:
    """Time dense and pruned models in turn and write a table, a plot and all figures."""
    names = [name for given in strategy or ["lvtp"] for name in (ALL if given == "all" else [given])]
    if unknown := set(names) - set(rivals()):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: not one of {', '.join(rivals())}")
    sized: list[tuple[str, int | None]] = []
    for name in model or ["vit_small_patch16_224"]:
        if Path(name).is_dir() and depth is not None:
            raise typer.BadParameter(f"{name} is a checkpoint, which has a depth of its own", param_hint="--depth")
        sized += [(name, None)] if Path(name).is_dir() else [(name, px) for px in size or [512]]
    cases = [Case(*each, *rest, depth) for each, *rest in product(sized, batch or [1], dtype or ["float32"])]
    if device != "cpu" and not torch.cuda.is_available():
        raise typer.BadParameter(f"--device {device}: torch finds no such device here")
    rows: list[Measured] = []
    title = f"Latency under torch.compile{f' ({mode})' if mode else ''}, {turns} turns, {where(device)}"
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    out.parent.mkdir(parents=True, exist_ok=True)
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(cases))
        for case in cases:
            label = f"{case.name} {case.size or ''} x {case.batch} {case.dtype}"
            rows += measure(case, names, flops_cut or [0.35], turns, device, mode, parts,
                            lambda text, label=label: progress.update(task, description=f"{label}: {text}"))
            torch.compiler.reset()  # the next model is another one: its compiled code is not needed any more
            progress.advance(task)
            # Written after each case: a run that is cut short leaves what it found.
            out.write_text(markdown(rows, title))
            out.with_suffix(".json").write_text(json.dumps(figures(rows, title), indent=1) + "\n")
    plot(out.with_suffix(".png"), rows, title)
    Console().print(terminal(rows, title))


if __name__ == "__main__":
    typer.run(main)
