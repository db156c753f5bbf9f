"""`lvtp-fx calibrate`: find sites and keep ratios on some images, and write them for `--config`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer

import lvtp_fx
from lvtp_fx.cli.command import check_writable, command
from lvtp_fx.cli.options import Images, Json, Limit, ModelOptions, PruningOptions, read_config, write_config
from lvtp_fx.cli.output import bar, print_json, print_notes, step
from lvtp_fx.cli.source import Data, Split
from lvtp_fx.models.datasets import open_dataset
from lvtp_fx.models.images import find_images, read_image
from lvtp_fx.models.named import Named
from lvtp_fx.ranks import joined, reproducible


@command
def calibrate(
    model: ModelOptions, pruning: PruningOptions,
    out: Annotated[Path, typer.Option(help="JSON file to write, for --config of the other commands.")],
    images: Images = None, data: Data = None, split: Split = None, limit: Limit = 32,
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
    if (data is None) == (not images):
        raise typer.BadParameter("give either --data or --images", param_hint="--data")
    if labels and data is None:
        raise typer.BadParameter("only together with --data", param_hint="--labels")
    if (pruning.flops_cut is None) is (max_drop is None):
        raise typer.BadParameter("give either --flops-cut or --max-drop", param_hint="--flops-cut")
    check_writable(out)
    given = {name: value for name, value in pruning.overrides().items() if name != "flops_cut" and value is not None}
    base = read_config(pruning.config) if pruning.config is not None else None
    with step(f"load {model.model}"):
        named = model.load()
    device = torch.device(named.device)
    reproducible(device)
    with step("read images"):
        x, label = _read(named, images, data, split, limit)
    trials = out.with_name(f"{out.name}.trials")
    with joined(device) as ranks, bar("calibrate", passes) as show:
        if ranks.first and not resume:
            trials.unlink(missing_ok=True)
        config = lvtp_fx.calibrate(
            named.model, x, labels=label if labels else None, flops_cut=pruning.flops_cut, max_drop=max_drop,
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
    named: Named, images: list[Path] | None, data: str | None, split: str | None, limit: int | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Model inputs [M, 3, H, W] and, where there are some, labels [M, H, W], spread over the data."""
    if data is None:
        return named.prepared([read_image(file) for file in find_images(images or [], limit)]), None
    found = open_dataset(data, split).resized(named.img_size)
    count = min(limit or len(found), len(found))
    items = [found[i * len(found) // count] for i in range(count)]
    return named.prepared([image for image, _ in items]), torch.stack([label for _, label in items])
