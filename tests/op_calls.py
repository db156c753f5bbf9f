"""Ops of the dialect with what a graph computes once for several of them made on the way."""

from __future__ import annotations

import torch

import lvtp_fx.ops  # noqa: F401  (registers the dialect)

lvtp = torch.ops.lvtp


def owners(
    feature: torch.Tensor, kept: torch.Tensor, position: torch.Tensor, columns: int, reach: int, weight: float
) -> torch.Tensor:
    pair = lvtp.comparable(feature, position, columns, reach, weight)
    found: torch.Tensor = lvtp.owners(*pair, kept, lvtp.dropped(kept, position.shape[1]))
    return found


def supports(
    feature: torch.Tensor, kept: torch.Tensor, owner: torch.Tensor | None, position: torch.Tensor, columns: int,
    reach: int, weight: float, count: int, softness: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    pair = lvtp.comparable(feature, position, columns, reach, weight)
    who, shares = lvtp.supports(*pair, kept, lvtp.dropped(kept, position.shape[1]), owner, count, softness)
    return who, shares


def rank(
    feature: torch.Tensor, anchors: torch.Tensor, position: torch.Tensor, importance: torch.Tensor,
    edges: torch.Tensor, columns: int, reach: int, weight: float, *others: float | torch.Tensor | None,
) -> torch.Tensor:
    pair = lvtp.comparable(feature, position, columns, reach, weight)
    found: torch.Tensor = lvtp.rank(*pair, anchors, importance, edges, *others)
    return found


def merge(
    x: torch.Tensor, kept: torch.Tensor, owner: torch.Tensor, size: torch.Tensor, before: int, after: int
) -> torch.Tensor:
    merged = lvtp.sizes(size, owner, kept.shape[1])
    found: torch.Tensor = lvtp.merge(x, kept, lvtp.dropped(kept, owner.shape[1]), owner, size, merged, before, after)
    return found
