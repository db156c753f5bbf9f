"""Fewer tokens must not mean fewer at the edges: tokens and errors by their distance to the nearest class boundary."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lvtp_fx.models.boundary import boundary_band, valid_pixels

EDGES_PX = (8, 16, 32, 64)  # upper ends of all bins but the last
BINS = 5
NAMES = ("0-8", "8-16", "16-32", "32-64", "64+")


def distance_bins(label: torch.Tensor, ignore_index: int | None) -> torch.Tensor:
    """The bin of each pixel's distance to the nearest boundary: int64 [H, W] in [0, BINS) of a label [1, H, W].

    Boundary and distance are `boundary_band`'s: Chebyshev, in px, from the line. An upper end lies in its bin; an image
    without a boundary is in the last one.
    """
    near = torch.stack([boundary_band(label, px, ignore_index)[0] for px in EDGES_PX])
    return BINS - 1 - near.sum(0)


def density_counts(
    prediction: torch.Tensor, label: torch.Tensor, ignore_index: int | None, bins: torch.Tensor,
    grid: tuple[int, int], kept: torch.Tensor | None,
) -> dict[str, torch.Tensor]:
    """Counts of one image by bin: `kept` of `tokens`, `wrong` of `pixels`, int64 [BINS] each, on the CPU.

    Args:
        prediction, label: [1, H, W] int64. bins: [H, W], of `distance_bins`.
        grid: (rows, columns) of tokens; a token is where the centre of its patch is. (0, 0) counts none.
        kept: [K] int64, positions of the living tokens; None where all live.
    """
    (rows, columns), (H, W) = grid, bins.shape
    y, x = (((torch.arange(count, device=bins.device) + 0.5) * size / max(count, 1)).long()
            for count, size in ((rows, H), (columns, W)))
    tokens = bins[y][:, x].reshape(-1)
    valid = valid_pixels(label, ignore_index)[0]
    parts = {"kept": tokens if kept is None else tokens[kept], "tokens": tokens,
             "wrong": bins[(prediction != label)[0] & valid], "pixels": bins[valid]}
    return {name: torch.bincount(part, minlength=BINS).cpu() for name, part in parts.items()}


def density(parts: Mapping[str, torch.Tensor]) -> dict[str, list[float]]:
    """Share of the tokens that live on and share of the pixels that are wrong, in [0, 1], by bin; NaN where none is."""
    return {"kept_share": (parts["kept"].double() / parts["tokens"]).tolist(),
            "error_share": (parts["wrong"].double() / parts["pixels"]).tolist(),
            "tokens": parts["tokens"].tolist()}
