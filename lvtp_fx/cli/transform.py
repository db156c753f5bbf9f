"""`lvtp-fx transform`: prune a model and write it to a file that runs elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, cast

import torch
import typer
from torch import fx

import lvtp_fx
from lvtp_fx.cli.command import check_writable, command
from lvtp_fx.cli.options import Json, ModelOptions
from lvtp_fx.cli.output import print_json, print_notes, step
from lvtp_fx.cli.pruning import PruningOptions

Save = Callable[[fx.GraphModule, tuple[torch.Tensor, ...], Path], object]
KINDS = ".onnx for ONNX, .aoti.pt2 for AOTInductor, .pt2 for an exported program"


@command
def transform(
    model: ModelOptions, pruning: PruningOptions,
    to: Annotated[Path, typer.Option(help=f"File to write; what it becomes is read off its end: {KINDS}.")],
    batch: Annotated[int, typer.Option(min=1, help="Images in the example that the file is made with.")] = 2,
    verify: Annotated[bool, typer.Option(
        help="Compare the pruned graph with the dense oracle first; write nothing where they differ.")] = True,
    as_json: Json = False,
) -> None:
    """Prune a model and write it as an exported program (.pt2), an AOTInductor package (.aoti.pt2) or ONNX (.onnx).

    Exit code 1, and no file, where the pruned graph differs from the oracle.

    Example: lvtp-fx transform bundled --flops-cut 0.35 --to pruned.pt2
    """
    save, kind = writer(to)
    check_writable(to)
    config = pruning.load()
    with step(f"load {model.model}"):
        named = model.load()
    inputs = named.inputs(batch)
    with step("transform"):
        fast = lvtp_fx.transform(named.model, inputs, config=config)
    error = None
    if verify:
        with step("verify against the dense oracle"):
            error = lvtp_fx.verify(named.model, fast, inputs).max_error
    with step(f"write {to}"):
        save(fast, inputs, to)
    report = cast(lvtp_fx.Report, fast.report)
    notes = [*named.notes, *report.notes]
    if as_json:
        print_json({"model": named.name, "written": str(to), "kind": kind, "bytes": to.stat().st_size,
                    "oracle_error": error, "report": report.to_dict(), "notes": notes})
        return
    typer.echo(f"GFLOPs an image: {report.gflops_dense:.3f} -> {report.gflops_pruned:.3f} ({-report.flops_cut:+.1%})")
    typer.echo(f"sites: {', '.join(report.sites) or 'none'}; tokens kept: {', '.join(map(str, report.kept)) or 'all'}")
    if error is not None:
        typer.echo(f"verified: largest relative error {error:.1e}")
    typer.echo(f"written: {to} ({kind}, {to.stat().st_size / 1e6:.1f} MB)")
    print_notes(notes)


def writer(path: Path) -> tuple[Save, str]:
    """What writes such a file, and what it is called.

    Raises:
        typer.BadParameter: for another suffix.
    """
    from lvtp_fx import ship

    if path.name.endswith(".aoti.pt2"):
        return ship.save_aoti, "AOTInductor package"
    if path.suffix == ".onnx":
        return ship.save_onnx, "ONNX"
    if path.suffix == ".pt2":
        return ship.save_exported, "exported program"
    raise typer.BadParameter(f"{path.name!r} ends in none of {KINDS}", param_hint="--to")
