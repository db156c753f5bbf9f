"""Accuracy of the pruned graph against the dense model, over the same images in the same run.

    python bench/accuracy.py                         # bundled segmenter, procedural scenes
    python bench/accuracy.py --data DIR --checkpoint DIR --flops-cut 0.35 --flops-cut 0.5
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import torch
import typer
from accuracy_table import rows, table
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

import lvtp_fx
from lvtp_fx.models.camvid import CamVid
from lvtp_fx.models.checkpoint import Spec, load_bundled, load_checkpoint
from lvtp_fx.models.metrics import SegmentationMeter
from lvtp_fx.models.scenes import CLASS_NAMES, make_scene
from lvtp_fx.models.train import HELD_OUT

SCENES = "scenes"  # value of --data that asks for procedural scenes
Item = tuple[torch.Tensor, torch.Tensor]  # image float32 [3, H, W] in [0, 1], label int64 [H, W]


class HeldOutScenes(Dataset[Item]):
    """Procedural scenes that no training run has seen."""

    def __init__(self, size: int, count: int) -> None:
        self.size, self.count = size, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        scene = make_scene(HELD_OUT + index, self.size)
        return scene.image, scene.label


Images: TypeAlias = HeldOutScenes | CamVid | Subset[Item]


def evaluate(
    model: nn.Module, variants: Sequence[nn.Module], spec: Spec, loader: DataLoader[Item], progress: Progress
) -> list[SegmentationMeter]:
    """Meters of the dense model and of each variant; one dense pass serves them all."""
    meters = [SegmentationMeter(spec.classes, spec.ignore_index) for _ in (model, *variants)]
    with torch.inference_mode():
        for image, label in progress.track(loader, description="images"):
            x = spec.preprocess(image)
            dense = model(x).argmax(1)
            for meter, module in zip(meters, (None, *variants), strict=True):
                meter.update(dense if module is None else module(x).argmax(1), label, dense)
    return meters


def find_images(data: str, split: str, spec: Spec, limit: int | None) -> tuple[Images, list[str]]:
    """The images to evaluate, at the checkpoint's size, and the names of their classes.

    Raises:
        DatasetMissingError: the folder or the split is missing.
        ValueError: the checkpoint predicts other classes than the data has, or takes no square images.
    """
    images: Images
    if data == SCENES:
        if spec.img_size[0] != spec.img_size[1]:
            raise ValueError(f"scenes are square, the checkpoint takes {spec.img_size}: name its --data")
        images = HeldOutScenes(spec.img_size[0], limit or 256)
        names, ignore_index = list(CLASS_NAMES), None
    else:
        camvid = CamVid(data, split, spec.img_size)
        images, names, ignore_index = camvid, camvid.class_names, camvid.ignore_index
        if limit is not None and limit < len(camvid):
            images = Subset(camvid, [i * len(camvid) // limit for i in range(limit)])
    if (len(names), ignore_index) != (spec.classes, spec.ignore_index):
        raise ValueError(f"{data} has {len(names)} classes and ignores {ignore_index}, "
                         f"the checkpoint has {spec.classes} and ignores {spec.ignore_index}")
    return images, names


def parse_setting(text: str) -> tuple[str, Any]:
    """'keep_ratio=0.7' to ("keep_ratio", 0.7); what is no Python literal is a string.

    Raises:
        ValueError: no "=" in it.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set takes field=value, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def configurations(
    cuts: Sequence[float], strategies: Sequence[str], settings: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """The variants by name: every strategy at every cut, with the settings on top."""
    found: dict[str, dict[str, Any]] = {}
    for strategy in strategies:
        for cut in cuts:
            config = {"flops_cut": cut, "strategy": strategy, **settings}
            aim = f"keep {config['keep_ratio']}" if "keep_ratio" in config else f"cut {config['flops_cut']:g}"
            found[f"{config['strategy']}, {aim}"] = config
    return found


@contextmanager
def refusing(*kinds: type[Exception]) -> Iterator[None]:
    """What the user can put right is a message and exit code 2, not a traceback."""
    try:
        yield
    except kinds as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


def main(
    data: Annotated[str, typer.Option(help="folder laid out like CamVid, or 'scenes'")] = SCENES,
    checkpoint: Annotated[Path | None, typer.Option(help="folder; without it the bundled segmenter")] = None,
    flops_cut: Annotated[list[float] | None, typer.Option(help="repeatable; 0.35 without it")] = None,
    strategy: Annotated[list[str] | None, typer.Option(help="repeatable; lvtp without it")] = None,
    split: Annotated[str, typer.Option(help="split of --data")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="evaluate this many images, evenly spread")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 4,
    json_out: Annotated[Path | None, typer.Option("--json", help="write the figures to this file")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="field=value of Config, repeatable")] = None,
) -> None:
    """Print dense against pruned: cost, mIoU, mIoU near class boundaries, IoU of each class, agreement."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with refusing(FileNotFoundError, ValueError):
        model, spec = load_checkpoint(checkpoint) if checkpoint is not None else load_bundled()
        images, class_names = find_images(data, split, spec, limit)
        settings = dict(parse_setting(text) for text in set_ or [])
    configs = configurations(flops_cut or [0.35], strategy or ["lvtp"], settings)
    example = spec.preprocess(torch.zeros(1, 3, *spec.img_size))
    progress = Progress(*columns, console=Console(stderr=True))
    with refusing(FileNotFoundError, lvtp_fx.LvtpError), progress:
        variants = [lvtp_fx.transform(model, (example,), **config)
                    for config in progress.track(configs.values(), description="variants")]
        meters = evaluate(model, variants, spec, DataLoader(images, batch_size), progress)
    reports: list[Any] = [variant.report for variant in variants]
    found = rows(meters, reports, configs)
    size = " x ".join(map(str, spec.img_size))
    title = f"{data if data == SCENES else split}: {len(images)} images of {size} px"
    Console().print(table(found, class_names, meters[0].boundary_px, title))
    if json_out is not None:
        figures = {"data": data, "split": split, "images": len(images), "img_size": spec.img_size,
                   "classes": class_names, "boundary_px": meters[0].boundary_px,
                   "rows": [asdict(row) for row in found]}
        plain = json.loads(json.dumps(figures), parse_constant=lambda _: None)  # JSON has no NaN
        json_out.parent.mkdir(parents=True, exist_ok=True)
        json_out.write_text(json.dumps(plain, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
