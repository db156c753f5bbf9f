"""Where the time of a pruned graph goes: kernel by kernel under torch.compile on a CPU, and each inserted op alone.

    python bench/parts.py                                         # ViT-S/16 at 512 x 512, cut 35 %
    python bench/parts.py --model vit_base_patch16_224 --size 768 --batch 4 --flops-cut 0.5
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import torch
import torch._inductor.config as inductor
import typer
from latency import where
from latency_run import Case
from rich.console import Console
from rich.progress import track
from torch import fx
from torch.profiler import ProfilerActivity, profile

import lvtp_fx
from lvtp_fx import latency
from lvtp_fx.capture import Capture, capture

KINDS = {"addmm": "linear layers", "mm": "linear layers", "scaled_dot_product": "attention",
         "convolution": "convolutions"}


def kernels_ms(run: Callable[[torch.Tensor], object], x: torch.Tensor, turns: int) -> dict[str, float]:
    """Milliseconds of one call by kernel of the compiled graph, without Inductor's numbers; medians over the turns."""
    found: list[Counter[str]] = []
    with torch.inference_mode():
        run(x)
        for _ in range(turns):
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                run(x)
            taken = Counter[str]()
            for event in profiler.events():
                if event.cpu_parent is not None and "CompiledFxGraph" in event.cpu_parent.name:
                    taken[re.sub(r"^graph_\d+_|_\d+$", "", event.name)] += event.cpu_time_total / 1e3
            found.append(taken)
    return {name: statistics.median(each[name] for each in found) for name in set().union(*found)}


def by_kind(taken: Mapping[str, float], dense: Mapping[str, float]) -> dict[str, float]:
    """The same by kind. Inserted is what the dense graph has no kernel of: a kernel that merges tokens and computes the
    norm behind it counts in full, so it is the most that the inserted part can take."""
    kinds = Counter[str]()
    for name, ms in taken.items():
        kind = next((kind for part, kind in KINDS.items() if re.search(rf"[:_]{part}", name)), "norms and the like")
        kinds[kind if name in dense else "inserted"] += ms
    return dict(kinds)


def inserted_ms(fast: fx.GraphModule, captured: Capture) -> dict[str, float]:
    """Milliseconds of the inserted ops by name, over all sites, each op alone and not compiled; longest first."""
    taken = latency.op_times(fast, captured)
    ops = Counter[str]()
    for node in fast.graph.nodes:
        if str(node.target).startswith("lvtp.") and node.name in taken:
            ops[str(node.target).removesuffix(".default")] += taken[node.name]
    return dict(ops.most_common())


def markdown(title: str, dense: Mapping[str, float], pruned: Mapping[str, float], alone: Mapping[str, float]) -> str:
    lines = [f"# {title}", "", "| kernels | dense, ms | pruned, ms | share of the dense time |", "|---|---|---|---|"]
    total = sum(dense.values())
    rows = [(kind, dense.get(kind, 0.0), pruned.get(kind, 0.0)) for kind in dict.fromkeys([*dense, *pruned])]
    lines += [f"| {kind} | {a:.1f} | {b:.1f} | {a / total:.1%} -> {b / total:.1%} |"
              for kind, a, b in [*rows, ("all", total, sum(pruned.values()))]]
    lines += ["", "| inserted ops, each alone, not compiled | ms |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {ms:.1f} |" for name, ms in alone.items())]) + "\n"


def main(
    model: Annotated[str, typer.Option(help="of timm, with a linear head")] = "vit_small_patch16_224",
    size: Annotated[int, typer.Option(help="pixels of a square image")] = 512,
    depth: Annotated[int | None, typer.Option(help="blocks; without it as many as the model has")] = None,
    batch: Annotated[int, typer.Option(help="images a batch")] = 1,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
    flops_cut: Annotated[float, typer.Option(help="share of the FLOPs to save")] = 0.35,
    turns: Annotated[int, typer.Option(min=3, help="profiled runs of each")] = 7,
    out: Annotated[Path, typer.Option(help="Markdown to write")] = Path("out/parts.md"),
) -> None:
    """Profile the dense and the pruned graph and write a table."""
    segmenter, x = Case(model, size, batch, dtype, depth).build("cpu")
    captured = capture(segmenter, (x,), {})
    fast = lvtp_fx.transform(captured, flops_cut=flops_cut)
    taken = []
    with inductor.patch("cpp.enable_kernel_profile", True):
        for graph in track((segmenter, fast), "profile", console=Console(stderr=True)):
            taken.append(kernels_ms(torch.compile(graph, fullgraph=True), x, turns))
    dense, pruned = (by_kind(each, taken[0]) for each in taken)
    title = f"{model}, {size} px, batch {batch}, {dtype}, cut {flops_cut:.0%}, {where('cpu')}"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(markdown(title, dense, pruned, inserted_ms(fast, captured)))
    Console().print(out.read_text(), markup=False)


if __name__ == "__main__":
    typer.run(main)
