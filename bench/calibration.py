"""Calibrated schedules against the default one, on images that the calibration did not see. Runs under torchrun, too.

    python bench/calibration.py                                        # bundled segmenter, procedural scenes
    python bench/calibration.py --data DIR --checkpoint DIR --flops-cut 0.45 --flops-cut 0.6 --images 32

Needs `pip install -e '.[demo]'`. What is done is kept in --cache, as by accuracy.py.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from accuracy import refusing, run_all, show
from accuracy_bootstrap import weights
from accuracy_images import SCENES, Checkpoint, find_images, load
from accuracy_rows import BASE, evaluated
from accuracy_store import Store, UnreadableError
from accuracy_table import write_text
from accuracy_variants import Variant

import lvtp_fx
from lvtp_fx.ranks import joined, reproducible

CALIBRATED = f"{BASE} calibrated"


def main(
    data: Annotated[str, typer.Option(help="folder laid out like CamVid, or 'scenes'")] = SCENES,
    checkpoint: Annotated[Path | None, typer.Option(help="folder; else the bundled one")] = None,
    flops_cut: Annotated[list[float] | None, typer.Option(help="repeatable; 0.45 without it")] = None,
    images: Annotated[int, typer.Option(min=1, help="to calibrate on")] = 32,
    calibrate_on: Annotated[str, typer.Option(help="split of --data to calibrate on")] = "val",
    labels: Annotated[bool, typer.Option("--labels", help="calibrate on mean IoU, not on agreement")] = False,
    passes: Annotated[int, typer.Option(min=1, help="images run by one calibration")] = 600,
    split: Annotated[str, typer.Option(help="split of --data to evaluate on")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="evaluate this many images, evenly spread")] = None,
    resamples: Annotated[int, typer.Option(min=1, help="of the bootstrap")] = 1000,
    cache: Annotated[Path, typer.Option(help="folder that keeps what is done")] = Path("out/accuracy"),
    json_out: Annotated[Path | None, typer.Option("--json", help="write the configs and their rows here")] = None,
    threads: Annotated[int, typer.Option(min=1, help="the last digits depend on it")] = 1,
) -> None:
    """Calibrate at each cut, then evaluate the default and the calibrated schedule on the same images."""
    device = torch.device("cpu")
    reproducible(device, threads)
    with refusing(FileNotFoundError, ImportError, ValueError, UnreadableError, lvtp_fx.LvtpError), \
            joined(device) as ranks:
        if data != SCENES and calibrate_on == split:
            raise ValueError(f"--calibrate-on {calibrate_on} is --split: the schedules would be judged on images that "
                             "they were chosen on")
        one = load(checkpoint)
        evaluation = find_images(data, split, one.spec, limit)
        wanted = []
        for cut in flops_cut or [0.45]:
            config = calibrated(one, data, calibrate_on, images, labels, passes, cut)
            wanted += [Variant(BASE, f"cut {cut:g}", {"flops_cut": cut}), Variant(CALIBRATED, f"cut {cut:g}", config)]
            if ranks.first:
                typer.echo(f"cut {cut:g}: sites={config['sites']}, "
                           f"keep_ratio=({', '.join(f'{ratio:.3f}' for ratio in config['keep_ratio'])})")
        kept = run_all([one], [evaluation], wanted, split, Store(cache), ranks, device)[0]
    if not ranks.first:
        return
    drawn = weights(len(evaluation), resamples)
    rows = evaluated(wanted, kept, evaluation.ids, one.spec.classes, drawn).rows
    heading = f"{split if data != SCENES else data}, {len(evaluation)} images, calibrated on {images} others"
    show({one.name: rows}, heading, density=False)
    if json_out is not None:
        write_text(json_out, json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def calibrated(
    one: Checkpoint, data: str, split: str, count: int, labels: bool, passes: int, cut: float
) -> dict[str, Any]:
    """Sites and keep ratios that `lvtp_fx.calibrate` finds on other images than those of the evaluation."""
    source = find_images(data, split, one.spec, count)
    if data == SCENES:  # those before the held-out ones, which no training run has reached
        source = replace(source, indices=tuple(range(-count, 0)))
    pairs = [source.load(i) for i in range(len(source))]
    x = one.spec.preprocess(torch.cat([image for image, _ in pairs]))
    y = torch.cat([label for _, label in pairs]) if labels else None
    config = lvtp_fx.calibrate(one.model, x, labels=y, flops_cut=cut, passes=passes)
    return {"sites": config.sites, "keep_ratio": config.keep_ratio}


if __name__ == "__main__":
    typer.run(main)
