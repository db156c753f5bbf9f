"""The gallery of the accuracy bench: the images that a pruned graph treats best, middling and worst."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accuracy_counts import statistics, unpack
from accuracy_images import Checkpoint, Images
from accuracy_run import build, captured_model, predict
from accuracy_store import Kept
from accuracy_variants import Variant
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lvtp_fx.pictures.examples import INK, PAPER, Panel, Pixels, _dimmed, _show

EACH = 2  # images of each kind
LOST, WON, WRONG = (0.85, 0.15, 0.15), (0.10, 0.65, 0.25), (0.10, 0.10, 0.35)
TITLES = ("image", "label", "dense", "pruned", "errors, dense", "errors: lost, won", "living tokens")


@dataclass(frozen=True)
class Pick:
    """An image for the gallery: its place, and what is said about it."""

    place: int
    remark: str


def picks(dense: Kept, pruned: Kept, ids: Sequence[str], classes: int) -> list[Pick]:
    """The best, median and worst images by change of the image's own mIoU, then of its agreement; none twice."""
    before, after = (torch.stack([kept.rows[name] for name in ids]) for kept in (dense, pruned))
    change = 100 * (statistics(after, classes)["miou"] - statistics(before, classes)["miou"]).nan_to_num()
    parts = unpack(after, classes)
    same = parts["agreeing"].double() / parts["compared"].clamp(min=1)
    order = sorted(range(len(ids)), key=lambda i: (-float(change[i]), -float(same[i]), i))
    middle = max(0, (len(order) - EACH) // 2)
    groups = {"best": order[:EACH], "median": order[middle : middle + EACH], "worst": order[-EACH:]}
    found: dict[int, Pick] = {}
    for kind, places in groups.items():
        for i in places:
            found.setdefault(i, Pick(i, f"{kind}: {change[i]:+.2f} mIoU, {same[i]:.1%} as dense"))
    return list(found.values())


def gallery(
    path: Path, checkpoint: Checkpoint, images: Images, variant: Variant, chosen: Sequence[Pick], device: torch.device
) -> None:
    """Write the gallery as PNG, a row an image; its folder is made where it is missing.

    Raises:
        ValueError: the variant is refused.
    """
    graph, cost = build(captured_model(checkpoint, device), variant)
    if graph is None:
        raise ValueError(f"no gallery of {variant.name}: {cost['refused']}")
    colours = _colours(images)
    height, width = checkpoint.spec.img_size
    side, foot = 2.4, 0.6  # inches
    inches = len(chosen) * (side * height / width + 0.1) + 0.7 + foot
    figure = Figure(figsize=(side * len(TITLES), inches), dpi=120, facecolor=PAPER)
    axes = figure.subplots(len(chosen), len(TITLES), squeeze=False)
    figure.subplots_adjust(0.004, foot / inches, 0.996, 1 - 0.7 / inches, wspace=0.03, hspace=0.03)
    grid: tuple[int, int] = tuple(cost["grid"])
    for line, pick in zip(axes, chosen, strict=True):
        panels = _panels(checkpoint, images, pick, graph, colours, grid, device)
        for ax, panel in zip(line, panels, strict=True):
            _show(ax, panel, grid)
    for ax, text in zip(axes[0], TITLES, strict=True):
        ax.set_title(text, fontsize=10, color=INK, pad=4)
    figure.suptitle(f"{checkpoint.name}, {variant.name}: {cost['flops_cut']:.1%} fewer FLOPs", fontsize=12, color=INK)
    entries = [Patch(color=tuple(colour), label=name)
               for colour, name in zip(colours.tolist(), images.class_names, strict=False)]
    entries += [Patch(color=LOST, label="right, now wrong"), Patch(color=WON, label="wrong, now right")]
    figure.legend(handles=entries, loc="lower center", ncols=-(-len(entries) // 2), frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _panels(
    checkpoint: Checkpoint, images: Images, pick: Pick, graph: torch.fx.GraphModule, colours: Pixels,
    grid: tuple[int, int], device: torch.device,
) -> Iterator[Panel]:
    image, label = images.load(pick.place)
    with torch.inference_mode():
        x = checkpoint.spec.preprocess(image.to(device))
        dense, (pruned, living) = checkpoint.model(x).argmax(1).cpu(), predict(graph, x)
    classes = checkpoint.spec.classes
    truth, before, after = label[0].numpy(), dense[0].numpy(), pruned[0].cpu().numpy()
    counted = truth < classes if checkpoint.spec.ignore_index is None else truth != checkpoint.spec.ignore_index
    pixels: Pixels = image[0].permute(1, 2, 0).numpy()
    grey: Pixels = np.repeat(0.35 + 0.5 * pixels.mean(2, keepdims=True), 3, axis=2)
    was_wrong, is_wrong = (before != truth) & counted, (after != truth) & counted
    errors, moved = grey.copy(), grey.copy()
    errors[was_wrong] = WRONG
    moved[is_wrong & ~was_wrong] = LOST
    moved[was_wrong & ~is_wrong] = WON
    tokens = torch.zeros(grid[0] * grid[1], dtype=torch.bool)
    tokens[slice(None) if living is None else living.cpu()] = True
    yield Panel(pixels, f"{images.ids[pick.place]}\n{pick.remark}")
    yield Panel(colours[np.where(counted, truth, classes)])
    yield Panel(colours[before])
    yield Panel(colours[after])
    yield Panel(errors, f"{was_wrong.sum() / counted.sum():.2%} wrong")
    yield Panel(moved, f"{is_wrong.sum() / counted.sum():.2%} wrong")
    yield Panel(_dimmed(pixels, tokens, grid), f"{int(tokens.sum())} of {len(tokens)}", tokens)


def _colours(images: Images) -> Pixels:
    """[C + 1, 3] in [0, 1]; the last one is for pixels without a class."""
    known = np.asarray(images.palette, np.float32) / np.float32(255)
    if len(known) < len(images.class_names):
        known = np.asarray(colormaps["tab20"].colors, np.float32)[np.arange(len(images.class_names)) % 20]
    return np.concatenate([known, np.zeros((1, 3), np.float32)])
