"""The pictures of given images as arrays of pixels: the page and the figures show the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from lvtp_fx.classes import NO_CLASSES, dense_output, labels
from lvtp_fx.pictures.colours import DIFFERENT, Colour, Pixels, group_colours, heat, palette
from lvtp_fx.pictures.maps import SiteMaps, site_maps

LONGEST = 1024  # pixels of a picture's longer side; larger ones are made smaller
CELL = 8  # pixels of a token in the picture of the owners, which has frames
TITLES = {
    "living": "Living tokens", "owners": "Owners", "entropy": "Attention entropy", "edges": "Edges",
    "received": "Attention received", "dense": "Dense segmentation", "pruned": "Pruned segmentation",
    "difference": "Difference",
}
OF_SITE = ("living", "owners", "entropy", "edges", "received")  # in the order they are shown
OF_PRUNED = ("living", "owners", "entropy", "edges", "pruned", "difference")  # what no dense model has
OVERLAYS = ("living", "owners", "difference")  # transparent in part, to be laid over the image


@dataclass(frozen=True)
class SiteViews:
    """One site: `kept` of the grid's `tokens` live on; `pictures` by name (keys of `TITLES`), one an image."""

    site: str
    kept: int
    tokens: int
    pictures: dict[str, list[Pixels]]


@dataclass(frozen=True)
class Views:
    """All pictures of B images.

    Attributes:
        images: B times [H, W, 3].
        fixed: dense, pruned and difference, one an image: what does not depend on the site.
        sites: what does.
        absent: by name, why a picture is missing.
        agreement: per image, the share of pixels that both models give the same class; empty where unknown.
        classes: (name, colour) of the classes that occur.
    """

    images: list[Pixels] = field(default_factory=list)
    fixed: dict[str, list[Pixels]] = field(default_factory=dict)
    sites: list[SiteViews] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    agreement: list[float] = field(default_factory=list)
    classes: list[tuple[str, Colour]] = field(default_factory=list)


def make_views(
    model: nn.Module, fast: nn.Module | None, images: torch.Tensor | None, shown: torch.Tensor | None = None,
    class_names: Sequence[str] | None = None, colours: Sequence[Colour] | None = None,
) -> Views:
    """Run both models and draw.

    Args:
        model: the dense model, run in eval mode. fast: what `transform` made of it, or None where it refused.
        images: [B, 3, H, W] as the models take them; none or no images give empty views.
        shown: the same images as RGB in [0, 1]; None: each image is stretched to [0, 1].
        class_names, colours: of the classes, (r, g, b) in 0..255; made up where they are missing or too few.

    Raises:
        ValueError: `images` is not 4-D, or `shown` holds another number of images.
    """
    if images is None or len(images) == 0:
        return Views()
    if images.ndim != 4:
        raise ValueError(f"images must be [B, 3, H, W], got {list(images.shape)}")
    if shown is not None and (shown.ndim != 4 or len(shown) != len(images)):
        raise ValueError(f"shown must be [{len(images)}, 3, H, W], as images, got {list(shown.shape)}")
    dense, pruned = labels(dense_output(model, images)), None
    maps: list[SiteMaps] = []
    absent: dict[str, str] = {}
    if fast is None:
        absent |= dict.fromkeys(OF_PRUNED, "the model was refused")
    else:
        output, maps = site_maps(fast, images)
        pruned = labels(output)
    if dense is None:
        absent |= dict.fromkeys(("dense", "pruned", "difference"), NO_CLASSES)
    for site in maps:
        absent |= site.absent
    known = [found for found in (dense, pruned) if found is not None]
    count = 1 + max((int(found.max()) for found in known), default=-1)
    colours = palette(max(count, len(class_names or ())), colours)
    agreement = [float((a == b).float().mean()) for a, b in zip(*known, strict=True)] if len(known) == 2 else []
    return Views(
        images=[_rgb(image, stretch=shown is None) for image in (images if shown is None else shown)],
        fixed=_fixed(dense, pruned, colours), sites=[_site(site) for site in maps], absent=absent, agreement=agreement,
        classes=_legend(known, class_names or (), colours),
    )


def _fixed(
    dense: torch.Tensor | None, pruned: torch.Tensor | None, colours: Sequence[Colour]
) -> dict[str, list[Pixels]]:
    table = np.asarray(colours, np.uint8).reshape(-1, 3)
    found = {name: [table[_smaller(image).numpy()] for image in value]
             for name, value in (("dense", dense), ("pruned", pruned)) if value is not None}
    if dense is not None and pruned is not None:
        found["difference"] = [_painted(_smaller(image).numpy(), DIFFERENT) for image in dense != pruned]
    return found


def _site(site: SiteMaps) -> SiteViews:
    pictures = {
        "living": [_painted(~image.numpy(), (10, 12, 18), 200) for image in site.living],
        "owners": [_owners(image, living) for image, living in zip(site.owner, site.living, strict=True)],
    }
    pictures |= {name: [heat(image.numpy()) for image in value] for name, value in site.scores.items()}
    return SiteViews(site.site, int(site.living[0].sum()), site.living[0].numel(), pictures)


def _owners(owner: torch.Tensor, living: torch.Tensor) -> Pixels:
    """Tokens that share an owner in one colour, the owner in a frame; tokens that stand for themselves stay clear."""
    rows, columns = owner.shape
    size = torch.bincount(owner.flatten(), minlength=rows * columns)
    grouped = (size[owner] > 1).numpy()
    colour = group_colours(rows, columns).reshape(-1, 3)[owner.numpy()]
    cells: Pixels = np.dstack([colour, np.where(grouped, 175, 0).astype(np.uint8)])
    pixels: Pixels = cells.repeat(CELL, 0).repeat(CELL, 1)
    frame = np.ones((CELL, CELL), bool)
    frame[1:-1, 1:-1] = False
    pixels[np.kron(grouped & living.numpy(), frame)] = (255, 255, 255, 255)
    return pixels


def _painted(where: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], colour: Colour, alpha: int = 255) -> Pixels:
    """[h, w, 4]: the colour where it is wanted, clear elsewhere."""
    pixels: Pixels = np.zeros((*where.shape, 4), np.uint8)
    pixels[where] = (*colour, alpha)
    return pixels


def _rgb(image: torch.Tensor, stretch: bool) -> Pixels:
    """[C, H, W] in [0, 1] (or of any range, to be stretched) as [H, W, 3]; other than three channels become grey."""
    image = image.detach().float().cpu()
    if stretch:
        image = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-6)
    if image.shape[0] != 3:
        image = image.mean(0, keepdim=True).expand(3, -1, -1)
    step = max(image.shape[1:]) / LONGEST
    if step > 1:
        size = [max(1, round(side / step)) for side in image.shape[1:]]
        image = F.interpolate(image[None], size, mode="area")[0]
    pixels: Pixels = (255 * image.nan_to_num(0.0).clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()
    return pixels


def _smaller(plane: torch.Tensor) -> torch.Tensor:
    """Every n-th pixel of [h, w], so that it is no larger than a picture may be."""
    step = -(-max(plane.shape) // LONGEST)
    return plane[::step, ::step]


def _legend(
    known: Sequence[torch.Tensor], names: Sequence[str], colours: Sequence[Colour]
) -> list[tuple[str, Colour]]:
    found = sorted({int(c) for labels in known for c in labels.unique()})
    return [(str(names[c]) if c < len(names) else f"class {c}", colours[c]) for c in found]
