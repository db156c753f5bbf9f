"""`lvtp-fx bench`: latency of the dense and of the pruned model."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Annotated, cast

import torch
import typer
from torch import nn

import lvtp_fx
from lvtp_fx.cli.command import command
from lvtp_fx.cli.options import Json, ModelOptions
from lvtp_fx.cli.output import print_json, print_notes, print_table, step, track
from lvtp_fx.cli.pruning import PruningOptions
from lvtp_fx.cli.timing import WARM_UP, Latency, Run, compiled, latencies


@command
def bench(
    model: ModelOptions, pruning: PruningOptions,
    batch: Annotated[int, typer.Option(min=1, help="Images a batch.")] = 4,
    rounds: Annotated[int, typer.Option(min=2, help="Timed runs of each model.")] = 20,
    compile_: Annotated[bool, typer.Option("--compile/--eager", help="Under torch.compile, or as they are.")] = True,
    as_json: Json = False,
) -> None:
    """Time the dense and the pruned model in turn, both under torch.compile: median and quartiles of one batch.

    Example: lvtp-fx bench timm:vit_small_patch16_224 --size 512 --batch 1 --device cuda --dtype bfloat16
    """
    config = pruning.load()
    with step(f"load {model.model}"):
        named = model.load()
    inputs = named.inputs(batch)
    with step("transform"):
        fast = lvtp_fx.transform(named.model, inputs, config=config)
    dense, pruned, how = timed(named.dense, fast, inputs, rounds, compile_=compile_)
    report = cast(lvtp_fx.Report, fast.report)
    speedup = dense.median_ms / pruned.median_ms
    size, dtype = "x".join(map(str, inputs[0].shape[2:])), str(inputs[0].dtype).removeprefix("torch.")
    machine = {"device": device_name(inputs[0].device), "threads": torch.get_num_threads(), "torch": torch.__version__}
    if as_json:
        print_json({"model": named.name, "batch": len(inputs[0]), "size": size, "dtype": dtype, "how": how,
                    "rounds": rounds, **machine, "dense": asdict(dense), "pruned": asdict(pruned), "speedup": speedup,
                    "gflops_dense": report.gflops_dense, "gflops_pruned": report.gflops_pruned,
                    "flops_cut": report.flops_cut, "notes": [*named.notes, *report.notes]})
        return
    rows = [("GFLOPs an image", f"{report.gflops_dense:.3f}", f"{report.gflops_pruned:.3f}",
             f"{-report.flops_cut:+.1%}"),
            ("ms, median", f"{dense.median_ms:.2f}", f"{pruned.median_ms:.2f}", f"{speedup:.2f}x speed"),
            ("ms, quartiles", *(f"{t.low_ms:.2f} to {t.high_ms:.2f}" for t in (dense, pruned)), "")]
    title = f"{named.name}: a batch of {len(inputs[0])} at {size}, {dtype}, {how}, {rounds} rounds in turn"
    print_table(title, ("", "dense", "pruned", "change"), rows)
    typer.echo(f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}")
    print_notes([*named.notes, *report.notes])


def timed(
    dense: nn.Module, fast: nn.Module, inputs: tuple[torch.Tensor, ...], rounds: int, *, compile_: bool
) -> tuple[Latency, Latency, str]:
    """Latencies of the dense and of the pruned model, and how they were run."""
    with torch.inference_mode():
        first, second, how = cast(Run, dense), cast(Run, fast), "eager"
        if compile_:
            with step("compile both"):
                first, second, how = compiled(dense, fast, *inputs)
        turns = partial(track, text="time both in turn", total=WARM_UP + rounds)
        before, after = latencies([first, second], *inputs, rounds=rounds, turns=turns)
    return before, after, how


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
