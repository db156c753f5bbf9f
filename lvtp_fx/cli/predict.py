"""`lvtp-fx predict`: label maps of images, by the pruned model alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, cast

import torch
import typer

import lvtp_fx
from lvtp_fx.cli.command import REFUSED, check_writable, command
from lvtp_fx.cli.label_maps import LabelMaps, check_folders, check_palette, origin
from lvtp_fx.cli.options import Json, Limit, ModelOptions, WindowOptions
from lvtp_fx.cli.output import print_json, print_notes, step, track
from lvtp_fx.cli.pruning import PruningOptions
from lvtp_fx.cli.source import unlabelled
from lvtp_fx.errors import LvtpError, one_line
from lvtp_fx.ranks import joined


@command
def predict(
    model: ModelOptions, pruning: PruningOptions, windows: WindowOptions,
    images: Annotated[list[Path], typer.Option(
        metavar="PATH", help="An image, or a folder of images; may be repeated.")],
    out: Annotated[Path, typer.Option(help="Folder for the label maps.")], limit: Limit = None,
    resume: Annotated[bool, typer.Option(
        "--resume", help="Go on where a run was stopped: label maps that are there are not made again, where they were "
        "made from the same image by the same model with the same options.")] = False,
    as_json: Json = False,
) -> None:
    """Write a label map for each image: a PNG of the image's size that shows colours and holds classes.

    Only the pruned model runs; --keep-ratio 1 is the dense one. A file that cannot be read is refused at the end, with
    exit code 2; the others get their label maps. Under torchrun the images are shared out; the label maps are the same.

    Example: lvtp-fx predict hf:my_segmenter --images photos/ --out maps/ --flops-cut 0.45
    """
    config, options = pruning.load(), windows.given()
    check_writable(out / "0.png")
    with step("find images"):
        source = unlabelled(images)
    check_folders([out], source, "--out")
    named = model.load_shared()
    predictor = windows.predictor(named)
    with step("transform"):
        fast = lvtp_fx.transform(named.model, named.inputs(1), config=config)
        classes = named.count_classes()
    check_palette(classes, "--out")
    run = replace(predictor, run=fast)
    with step("take stock of the model"):
        maps = LabelMaps((out,), named.palette(classes), origin(named, fast, **options))
    count = min(limit or len(source.ids), len(source.ids))
    made, not_read = 0, list[str]()
    with joined(torch.device(named.device)) as ranks:
        own = range(ranks.rank, count, ranks.world)
        for i in track(own, f"predict {len(own)} of {count} images", total=len(own)):
            try:
                image, _ = source.data[i]
            except LvtpError as error:  # one bad file of many: the others are made, and the exit code says it
                not_read.append(one_line(error))
                continue
            if not resume or maps.load(source.ids[i], image) is None:
                maps.save(source.ids[i], image, run([image]))
                made += 1
        parts = ranks.gather((made, not_read))
    made, not_read = sum(done for done, _ in parts), sorted(line for _, lines in parts for line in lines)
    if not ranks.first:
        return
    report = cast(lvtp_fx.Report, fast.report)
    notes = [*named.notes, *report.notes]
    if as_json:
        print_json({"model": named.name, "images": count, "made": made, "not_read": not_read, "out": str(out),
                    "gflops_dense": report.gflops_dense, "gflops_pruned": report.gflops_pruned,
                    "flops_cut": report.flops_cut, "notes": notes})
    else:
        there = count - made - len(not_read)
        typer.echo(f"GFLOPs an image or window: {report.gflops_dense:.3f} -> {report.gflops_pruned:.3f} "
                   f"({-report.flops_cut:+.1%})")
        typer.echo(f"written: {made} label maps in {out}" + (f", {there} were there" if there else "")
                   + (f", {len(not_read)} images cannot be read" if not_read else ""))
        print_notes(notes)
    for line in not_read:
        typer.echo(line, err=True)
    if not_read:
        raise typer.Exit(REFUSED)
