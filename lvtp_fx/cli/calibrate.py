"""`lvtp-fx calibrate`: find sites and keep ratios on some images, and write them for `--config`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer

import lvtp_fx
from lvtp_fx.cli.command import check_writable, command
from lvtp_fx.cli.options import Images, Json, ModelOptions
from lvtp_fx.cli.output import bar, print_json, print_notes, step
from lvtp_fx.cli.pruning import PruningOptions, read_config, write_config
from lvtp_fx.cli.source import Data, Split, check_classes, check_given, unfit
from lvtp_fx.models.boundary import valid_pixels
from lvtp_fx.models.datasets import Labelled, open_dataset
from lvtp_fx.models.images import find_images, read_image
from lvtp_fx.models.named import Named
from lvtp_fx.ranks import joined


@command
def calibrate(
    model: ModelOptions, pruning: PruningOptions,
    out: Annotated[Path, typer.Option(help="JSON file to write, for --config of the other commands.")],
    images: Images = None, data: Data = None, split: Split = None,
    limit: Annotated[int | None, typer.Option(
        min=1, help="Take only so many: the first of --images, or of --data such as are spread over it.")] = 32,
    labels: Annotated[bool, typer.Option(
        "--labels", help="Look for mIoU on the labels of --data, rather than for agreement with the dense model.")
        ] = False,
    max_drop: Annotated[float | None, typer.Option(
        help="Instead of --flops-cut: what may be lost, in (0, 1), e.g. 0.01 for 1 % of the pixels, or with --labels "
        "one point of mIoU; the largest cut that keeps to it is looked for.")] = None,
    passes: Annotated[int, typer.Option(min=1, help="Images that are run through models, at most.")] = 600,
    resume: Annotated[bool, typer.Option(
        "--resume", help="Go on where a run was stopped: until it ends, the scores that it found are in OUT.trials.")
        ] = False,
    as_json: Json = False,
) -> None:
    """Find out after which blocks to drop tokens, and how many at each, on 16 to 64 images like those to come.

    Under torchrun the images are shared out; what is found is the same.

    Example: lvtp-fx calibrate bundled --images photos/ --flops-cut 0.5 --out schedule.json
    """
    check_given(data, images, {"--split": split, "--labels": labels})
    given = pruning.overrides()
    flops_cut = given.pop("flops_cut", None)  # of the option, or of --set
    if (flops_cut is None) is (max_drop is None):
        raise typer.BadParameter("give either --flops-cut or --max-drop", param_hint="--flops-cut")
    check_writable(out)
    base = read_config(pruning.config) if pruning.config is not None else None
    named = model.load_shared()
    with step("read images"):
        x, label = _read(named, images, data, split, limit, labels)
    trials = out.with_name(f"{out.name}.trials")
    with joined(torch.device(named.device)) as ranks, bar("calibrate", passes) as show:
        if ranks.first and not resume:
            trials.unlink(missing_ok=True)
        config = lvtp_fx.calibrate(
            named.model, x, labels=label, flops_cut=flops_cut, max_drop=max_drop,
            config=base, passes=passes, progress=show, journal=trials, **given)
    if not ranks.first:
        return
    write_config(out, config)
    trials.unlink()
    if as_json:
        print_json({"model": named.name, "images": len(x), "written": str(out), "notes": named.notes,
                    "config": json.loads(out.read_text())})
        return
    ratios = config.keep_ratio if isinstance(config.keep_ratio, tuple) else (config.keep_ratio,)
    typer.echo(f"sites: {', '.join(map(str, config.sites))}; keep ratios: {', '.join(map(str, ratios))}")
    typer.echo(f"written: {out} (use it with --config {out})")
    print_notes(named.notes)


def _read(
    named: Named, images: list[Path] | None, data: str | None, split: str | None, limit: int | None, labels: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Model inputs [M, 3, H, W] and, where they are asked for, labels [M, H, W], spread over the data."""
    if data is None:
        return named.prepared([read_image(file) for file in find_images(images or [], limit)]), None
    found = open_dataset(data, split).resized(named.img_size)
    classes = named.count_classes() if labels else 0
    if labels:
        check_classes(found, classes)
    count = min(limit or len(found), len(found))
    chosen = [i * len(found) // count for i in range(count)]
    items = [found[i] for i in chosen]
    x = named.prepared([image for image, _ in items])
    if not labels:
        return x, None
    return x, torch.stack([_counted(label, found, i, classes) for i, (_, label) in zip(chosen, items, strict=True)])


def _counted(label: torch.Tensor, data: Labelled, index: int, classes: int) -> torch.Tensor:
    """The label, its pixels without a class at -1: the data's own number for them may be one of the model's classes.

    Raises:
        LvtpError: LVTP105 for a label that is no class.
    """
    out = label.where(valid_pixels(label, data.ignore_index), torch.tensor(-1))
    if int(out.max()) >= classes:
        raise unfit(data.ids[index], f"labels of a model of {classes} classes", f"{int(out.max())}")
    return out
