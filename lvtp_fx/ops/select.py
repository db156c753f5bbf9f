"""Decisions: `lvtp.select` (exactly K tokens live on) and `lvtp.owners` (who stands for the others)."""

from __future__ import annotations

import torch

from lvtp_fx.ops.nearest import nearest, placed
from lvtp_fx.ops.registry import op
from lvtp_fx.ops.rows import dropped


@op("positions(Tensor like, int count) -> Tensor")
def positions(like: torch.Tensor, count: int) -> torch.Tensor:
    """[B, count] int64: 0, 1, ... for each image; `like` gives the batch size and the device."""
    return torch.arange(count, device=like.device).expand(like.shape[0], count)


@op("features(Tensor x, int before, int after) -> Tensor")
def features(x: torch.Tensor, before: int, after: int) -> torch.Tensor:
    """Features of the grid tokens: [B, N, C] from a stream [B, L, C], or [B, N, D] from keys [B, H, L, D] (their mean
    over the heads)."""
    flat = x.mean(1) if x.ndim == 4 else x
    return flat[:, before : flat.shape[1] - after]


@op("select(Tensor priority, int kept) -> Tensor")
def select(priority: torch.Tensor, kept: int) -> torch.Tensor:
    """The `kept` tokens of the highest priority, ascending: [B, K] int64."""
    return torch.sort(descending(priority)[:, :kept], dim=-1).values


def descending(priority: torch.Tensor) -> torch.Tensor:
    """All tokens, those of the highest priority first: [B, N] int64. Ties go to the earlier token.

    A priority that is not a number ranks lowest, so that a bad image cannot make the order undefined.
    """
    rank = torch.nan_to_num(priority, nan=-torch.inf, posinf=torch.finfo(priority.dtype).max)
    return torch.sort(rank, dim=-1, descending=True, stable=True).indices


@op("owners(Tensor feature, Tensor kept, Tensor position, int columns, int reach, float neighbour_weight) -> Tensor")
def owners(
    feature: torch.Tensor, kept: torch.Tensor, position: torch.Tensor, columns: int, reach: int,
    neighbour_weight: float,
) -> torch.Tensor:
    """For each token the kept token that stands for it, as an index into `kept`: [B, N] int64.

    The `nearest` kept token. Kept tokens own themselves, so only the dropped rows are compared.

    Args:
        feature: [B, N, C].
        kept: [B, K] int64, ascending.
        position: [B, N] int64, places of the tokens on the full grid, `columns` wide.
    """
    itself = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
    lost = dropped(kept, position.shape[1])
    _, owner = nearest(placed(feature, position, columns, reach), lost, kept, neighbour_weight)
    return torch.zeros_like(position).scatter(1, torch.cat([kept, lost], 1), torch.cat([itself, owner], 1))
