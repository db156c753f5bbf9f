"""`lvtp-fx verify`: does the pruned graph compute what the dense model does under the same decisions?"""

from __future__ import annotations

from typing import Annotated, cast

import typer

import lvtp_fx
from lvtp_fx.cli.command import command
from lvtp_fx.cli.options import Images, Json, Limit, ModelOptions
from lvtp_fx.cli.output import print_json, print_notes, step
from lvtp_fx.cli.pruning import PruningOptions
from lvtp_fx.models.images import find_images, read_image


@command
def verify(
    model: ModelOptions, pruning: PruningOptions, images: Images = None, limit: Limit = 4,
    batch: Annotated[int, typer.Option(min=1, help="Images of noise, where no images are given.")] = 2,
    tolerance: Annotated[float | None, typer.Option(
        min=0, help="Largest relative error that is allowed; without it by dtype, 2e-5 in float32.")] = None,
    as_json: Json = False,
) -> None:
    """Prune a model, and compare every state of it with a dense run under the same decisions.

    Exit code 1 where they differ (LVTP301), 2 where the model cannot be pruned.

    Example: lvtp-fx verify bundled --images photos/ --flops-cut 0.5
    """
    config = pruning.load()
    with step(f"load {model.model}"):
        named = model.load()
    inputs = named.inputs(batch)
    if images:
        with step("read images"):
            inputs = (named.prepared([read_image(file) for file in find_images(images, limit)]),)
    with step("transform"):
        fast = lvtp_fx.transform(named.model, inputs, config=config)
    with step("verify against the dense oracle"):
        found = lvtp_fx.verify(named.model, fast, inputs, tolerance=tolerance)
    report = cast(lvtp_fx.Report, fast.report)
    worst = max(found.state_errors.values(), default=0.0)
    notes = [*named.notes, *report.notes]
    if as_json:
        print_json({"model": named.name, "verified": True, "images": len(inputs[0]), "output_error": found.max_error,
                    "state_error": worst, "states": len(found.state_errors), "tolerance": found.tolerance,
                    "flops_cut": report.flops_cut, "notes": notes})
        return
    typer.echo(f"verified on {len(inputs[0])} images at {-report.flops_cut:+.1%} FLOPs: largest relative error "
               f"{found.max_error:.1e} of the outputs, {worst:.1e} of {len(found.state_errors)} states; "
               f"{found.tolerance:.0e} is allowed")
    print_notes(notes)
