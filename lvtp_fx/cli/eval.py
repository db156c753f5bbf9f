"""`lvtp-fx eval`: mean IoU of the dense and of the pruned model on labelled images, or their agreement on any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer

import lvtp_fx
from lvtp_fx.cli.command import check_writable, command
from lvtp_fx.cli.label_maps import LabelMaps, check_folders, check_palette, origin
from lvtp_fx.cli.options import Images, Json, Limit, ModelOptions, WindowOptions
from lvtp_fx.cli.output import print_json, print_notes, print_table, step, track
from lvtp_fx.cli.pruning import PruningOptions
from lvtp_fx.cli.source import Data, Source, Split, check_classes, check_given, labelled, unfit, unlabelled
from lvtp_fx.models.datasets import Labelled
from lvtp_fx.models.metrics import SegmentationMeter
from lvtp_fx.models.named import Named
from lvtp_fx.ranks import joined


@command
def evaluate(
    model: ModelOptions, pruning: PruningOptions, windows: WindowOptions, data: Data = None, split: Split = None,
    images: Images = None, limit: Limit = None,
    at_model_size: Annotated[bool, typer.Option(
        "--at-model-size", help="Resize images and labels to the model's size, and score there.")] = False,
    save: Annotated[Path | None, typer.Option(
        help="Folder for both models' label maps, as PNGs that show colours and hold classes.")] = None,
    resume: Annotated[bool, typer.Option(
        "--resume", help="With --save: go on where a run was stopped. Label maps that are there are scored, not made "
        "again, where they were made from the same image by the same model with the same options.")] = False,
    as_json: Json = False,
) -> None:
    """Score the dense and the pruned model: mIoU, mIoU near class boundaries, boundary IoU, and their agreement.

    Each image is scored at its own size. With --images, which have no labels, there is the agreement alone. Under
    torchrun the images are shared out; the scores are the same.

    Example: lvtp-fx eval checkpoint/ --data camvid:CamVid/ --split test --flops-cut 0.45
    """
    check_given(data, images, {"--split": split, "--at-model-size": at_model_size})
    if resume and save is None:
        raise typer.BadParameter("only together with --save", param_hint="--resume")
    config, options = pruning.load(), windows.given()
    if save is not None:
        check_writable(save / "dense" / "0.png")
    with step("find images"):
        source = labelled(data, split) if data is not None else unlabelled(images or [])
    folders = (save / "dense", save / "pruned") if save is not None else ()
    check_folders(folders, source, "--save")
    named = model.load_shared()
    dense = windows.predictor(named)
    with step("transform"):
        fast = lvtp_fx.transform(named.model, named.inputs(1), config=config)
        classes = named.count_classes()
    if save is not None:
        check_palette(classes, "--save")
    check_classes(source.data, classes)
    if at_model_size and isinstance(source.data, Labelled):
        source = Source(source.ids, source.data.resized(named.img_size))
    runs = [dense, replace(dense, run=fast)]
    meters = [SegmentationMeter(classes, source.data.ignore_index) for _ in runs]
    count = min(limit or len(source.ids), len(source.ids))
    kept = None
    if save is not None:
        with step("take stock of the model"):
            coloured = replace(named, colours=named.colours or source.data.colours)
            kept = LabelMaps(folders, coloured.palette(classes), origin(named, fast, **options))
    with joined(torch.device(named.device)) as ranks:
        own = range(ranks.rank, count, ranks.world)
        for i in track(own, f"score {len(own)} of {count} images", total=len(own)):
            image, label = source.data[i]
            maps = kept.load(source.ids[i], image) if kept is not None and resume else None
            if maps is None:
                maps = [run([image])[0] for run in runs]
                if kept is not None:
                    kept.save(source.ids[i], image, maps)
            try:
                _score(maps, label, meters)
            except ValueError as error:  # the meter's: a label that is no class
                raise unfit(source.ids[i], f"labels of a model of {classes} classes", str(error)) from error
        parts = ranks.gather(meters)
    if ranks.first:
        for part in parts[1:]:
            for meter, other in zip(meters, part, strict=True):
                meter.add(other)
        if data is not None and not meters[0].compared:  # without labels every pixel is compared
            raise unfit(data, "labels of a class in one pixel at least", "ignored pixels alone")
        names = named.class_names or source.data.class_names
        _print(named, cast(lvtp_fx.Report, fast.report), meters, count, data, names, as_json)


def _score(maps: Sequence[torch.Tensor], label: torch.Tensor | None, meters: Sequence[SegmentationMeter]) -> None:
    """Count both models' maps of one image. Without a label the dense prediction stands in for it."""
    for meter, found in zip(meters, maps, strict=True):
        meter.update(found[None], (maps[0] if label is None else label)[None], maps[0][None])


def _print(
    named: Named, report: lvtp_fx.Report, meters: Sequence[SegmentationMeter], count: int, data: str | None,
    class_names: Sequence[str], as_json: bool,
) -> None:
    near = f"mIoU within {meters[0].boundary_px} px of a boundary"
    shown: dict[str, tuple[str, Callable[[SegmentationMeter], float]]] = {
        "miou": ("mIoU", SegmentationMeter.miou), "boundary_miou": (near, SegmentationMeter.boundary_miou),
        "boundary_iou": ("boundary IoU", SegmentationMeter.boundary_iou)} if data is not None else {}
    found = {key: [of(meter) for meter in meters] for key, (_, of) in shown.items()}
    agreement = meters[1].agreement()
    notes = [*named.notes, *report.notes]
    if as_json:
        scores: dict[str, dict[str, Any]] = {}
        for i, name in enumerate(("dense", "pruned")):
            scores[name] = {key: pair[i] for key, pair in found.items()}
            if data is not None:
                scores[name]["iou_per_class"] = meters[i].iou_per_class()
        print_json({"model": named.name, "data": data, "images": count, "gflops_dense": report.gflops_dense,
                    "gflops_pruned": report.gflops_pruned, "flops_cut": report.flops_cut, **scores,
                    "agreement": agreement, "class_names": class_names, "notes": notes})
        return
    rows = [("GFLOPs an image or window", f"{report.gflops_dense:.3f}", f"{report.gflops_pruned:.3f}",
             f"{-report.flops_cut:+.1%}")]
    rows += [(f"{shown[key][0]}, %", f"{100 * before:.2f}", f"{100 * after:.2f}", f"{100 * (after - before):+.2f}")
             for key, (before, after) in found.items()]
    rows.append(("agreement with dense, %", "", f"{100 * agreement:.2f}", ""))
    print_table(f"{named.name} on {count} images" + (f" of {data}" if data else ""),
                ("", "dense", "pruned", "change"), rows)
    print_notes(notes)
