"""Accuracy of pruned graphs against the dense model, over the same images, with paired bootstrap intervals.

    python bench/accuracy.py                         # bundled segmenter, procedural scenes
    python bench/accuracy.py --data DIR --checkpoint DIR --checkpoint DIR --strategy all --flops-cut 0.2
    torchrun --nproc-per-node 2 bench/accuracy.py ...  # the same numbers, to the last digit

A run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from accuracy_bootstrap import LEVEL, SEED, weights
from accuracy_gallery import gallery, picks
from accuracy_images import SCENES, Checkpoint, Images, find_images, load
from accuracy_plot import plot
from accuracy_rows import BASE, Row, evaluated, mean
from accuracy_run import run
from accuracy_store import Kept, Store, UnreadableError
from accuracy_table import dense_line, density_table, markdown, tables, write_text
from accuracy_variants import DENSE, Variant, code_digest, key, parse_setting, variants
from rich.console import Console

import lvtp_fx
from lvtp_fx.cli.output import plain
from lvtp_fx.models.metrics import BOUNDARY_PX
from lvtp_fx.models.training import progress_bar
from lvtp_fx.ranks import Ranks, find_device, joined, reproducible

WIDTH = 150  # columns of the tables where the output is no terminal


@contextmanager
def refusing(*kinds: type[Exception]) -> Iterator[None]:
    """What the user can put right is a message and exit code 2, not a traceback."""
    try:
        yield
    except kinds as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


def figures(
    data: str, split: str, images: Images, checkpoints: Sequence[Checkpoint], resamples: int,
    sections: Mapping[str, Sequence[Row]],
) -> dict[str, Any]:
    """All figures as plain values; NaN is None, JSON has none."""
    rows = {title: [asdict(row) for row in found] for title, found in sections.items()}
    found = {
        "data": SCENES if data == SCENES else Path(data).resolve().name, "data_digest": images.digest, "split": split,
        "images": len(images), "classes": list(images.class_names), "boundary_px": BOUNDARY_PX,
        "bootstrap": {"resamples": resamples, "seed": SEED, "level": LEVEL}, "torch": torch.__version__,
        "checkpoints": [{"name": one.name, "digest": one.digest, "what": one.spec.what,
                         "img_size": list(one.spec.img_size), "rows": rows[one.name]} for one in checkpoints],
        "mean": rows.get("mean", [])}
    return plain(found)  # type: ignore[no-any-return]


def shown_in_gallery(found: Sequence[Variant], cut: float | None) -> Variant:
    """lvtp where it is compared, else the strategy named first; at the cut, or the first of all.

    Raises:
        ValueError: the cut is none of those that are evaluated.
    """
    at_cut = [variant for variant in found if cut is None or (variant.config or {})["flops_cut"] == cut]
    if not at_cut:
        raise ValueError(f"--gallery-cut {cut} is none of the cuts that are evaluated")
    return next((variant for variant in at_cut if variant.strategy == BASE), at_cut[0])


def main(
    data: Annotated[str, typer.Option(help="folder laid out like CamVid, or 'scenes'")] = SCENES,
    checkpoint: Annotated[list[Path] | None, typer.Option(help="folder, repeatable; else the bundled one")] = None,
    flops_cut: Annotated[list[float] | None, typer.Option(help="repeatable; 0.35 without it")] = None,
    strategy: Annotated[list[str] | None, typer.Option(help="of rivals.py, repeatable, or all; else lvtp")] = None,
    split: Annotated[str, typer.Option(help="split of --data")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="evaluate this many images, evenly spread")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="field=value of Config, repeatable")] = None,
    resamples: Annotated[int, typer.Option(min=1, help="of the bootstrap")] = 1000,
    density: Annotated[bool, typer.Option("--density", help="tokens and errors by distance to a boundary")] = False,
    cache: Annotated[Path, typer.Option(help="folder that keeps what is done")] = Path("out/accuracy"),
    markdown_out: Annotated[Path, typer.Option("--markdown", help="write the table here")] = Path("out/accuracy.md"),
    plot_out: Annotated[Path, typer.Option("--plot", help="write the plot here, PNG")] = Path("out/accuracy.png"),
    json_out: Annotated[Path | None, typer.Option("--json", help="write all figures to this file")] = None,
    gallery_out: Annotated[Path | None, typer.Option(
        "--gallery", help="write the best, median and worst images here, PNG. It shows the data's own pictures: "
        "what their licence keeps from being passed on (CamVid's does) must not be committed")] = None,
    gallery_cut: Annotated[float | None, typer.Option(help="one of --flops-cut; the first without it")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="of each process; the last digits depend on it")] = 1,
) -> None:
    """Dense against pruned: mIoU, boundary mIoU, boundary IoU, agreement, each with its interval; table and plot."""
    with refusing(FileNotFoundError, ImportError, ValueError, lvtp_fx.LvtpError):
        wanted = variants(flops_cut or [0.35], strategy or [BASE], dict(map(parse_setting, set_ or [])))
        checkpoints = named([load(folder) for folder in checkpoint or [None]])
        sources = [find_images(data, split, one.spec, limit) for one in checkpoints]
        shown, own_device = 1 + wanted.index(shown_in_gallery(wanted, gallery_cut)), find_device(device)
    reproducible(own_device, threads)
    with refusing(FileNotFoundError, UnreadableError, lvtp_fx.LvtpError), joined(own_device) as ranks:
        kept = run_all(checkpoints, sources, wanted, split, Store(cache), ranks, own_device)
    if not ranks.first:
        return
    images, drawn = sources[0], weights(len(sources[0]), resamples)
    found = [evaluated(wanted, rows, images.ids, one.spec.classes, drawn)
             for one, rows in zip(checkpoints, kept, strict=True)]
    sections = {one.name: rows.rows for one, rows in zip(checkpoints, found, strict=True)}
    if len(checkpoints) > 1:
        sections["mean"] = mean(wanted, found)
    where = data if data == SCENES else split
    heading = f"{where}, {len(images)} images; intervals from {resamples} resamples of the images, paired."
    show(sections, heading, density)
    write_text(markdown_out, markdown(sections, BOUNDARY_PX, heading, density))
    title = f"{', '.join(one.name for one in checkpoints)}: {heading}"
    plot(plot_out, sections.get("mean", found[0].rows), BOUNDARY_PX, title)
    if json_out is not None:
        written = figures(data, split, images, checkpoints, resamples, sections)
        write_text(json_out, json.dumps(written, indent=1) + "\n")
    if gallery_out is not None:
        draw_gallery(gallery_out, checkpoints[0], images, wanted[shown - 1], kept[0][0], kept[0][shown], own_device)


def draw_gallery(
    path: Path, checkpoint: Checkpoint, images: Images, variant: Variant, dense: Kept, pruned: Kept,
    device: torch.device,
) -> None:
    """The gallery of one variant on one checkpoint; a message and exit code 2 where it is refused."""
    if "refused" in pruned.cost:
        typer.echo(f"error: no gallery of {variant.name}: {pruned.cost['refused']}", err=True)
        raise typer.Exit(2)
    gallery(path, checkpoint, images, variant, picks(dense, pruned, images.ids, checkpoint.spec.classes), device)


def named(checkpoints: Sequence[Checkpoint]) -> Sequence[Checkpoint]:
    """The checkpoints, once their names tell them apart.

    Raises:
        ValueError: two have the same name.
    """
    names = [one.name for one in checkpoints]
    if twice := [name for name in names if names.count(name) > 1 or name == "mean"]:
        raise ValueError(f"checkpoints need folders of different names, and none called mean; got {twice[0]}")
    return checkpoints


def run_all(
    checkpoints: Sequence[Checkpoint], sources: Sequence[Images], wanted: Sequence[Variant], split: str, store: Store,
    ranks: Ranks, device: torch.device,
) -> list[list[Kept]]:
    """The figures of each checkpoint: of its dense model, then of each variant."""
    code = code_digest()
    with progress_bar(shown=ranks.first) as progress:
        return [run(one, images, wanted,
                    [key(model, one.digest, images.digest, split, code, device) for model in (DENSE, *wanted)],
                    store, ranks, device, progress)
                for one, images in zip(checkpoints, sources, strict=True)]


def show(sections: Mapping[str, Sequence[Row]], heading: str, density: bool) -> None:
    """Print the tables."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(WIDTH, int(os.environ.get("COLUMNS", 0))))
    console.print(heading)
    for title, rows in sections.items():
        for row in rows:
            if not row.aim:
                console.print(f"{title}, {dense_line(row, BOUNDARY_PX)}")
        for table in tables(title, rows, BOUNDARY_PX):
            console.print(table)
        if density and any(row.density for row in rows):
            console.print(density_table(title, rows))


if __name__ == "__main__":
    typer.run(main)
