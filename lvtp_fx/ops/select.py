"""Decisions: `lvtp.select` (exactly K tokens live on) and `lvtp.owners` (who stands for the others)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lvtp_fx.ops.registry import op


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
    """The `kept` tokens of the highest priority, ascending: [B, K] int64. Ties go to the earlier token.

    A priority that is not a number ranks lowest, so that a bad image cannot make the order undefined.
    """
    rank = torch.nan_to_num(priority, nan=-torch.inf, posinf=torch.finfo(priority.dtype).max)
    order = torch.sort(rank, dim=-1, descending=True, stable=True).indices
    return torch.sort(order[:, :kept], dim=-1).values


@op("owners(Tensor feature, Tensor kept, Tensor position, int columns, int reach, float neighbour_weight) -> Tensor")
def owners(
    feature: torch.Tensor, kept: torch.Tensor, position: torch.Tensor, columns: int, reach: int,
    neighbour_weight: float,
) -> torch.Tensor:
    """For each token the kept token that stands for it, as an index into `kept`: [B, N] int64.

    The most similar kept token by cosine similarity, less `neighbour_weight` times the distance on the grid in
    units of `reach` tokens. Kept tokens own themselves.

    Args:
        feature: [B, N, C].
        kept: [B, K] int64, ascending.
        position: [B, N] int64, places of the tokens on the full grid, `columns` wide.
    """
    unit = F.normalize(feature.float(), dim=-1)
    mine = torch.gather(position, 1, kept)
    chosen = torch.gather(unit, 1, kept.unsqueeze(-1).expand(-1, -1, unit.shape[-1]))
    similarity = torch.matmul(unit, chosen.transpose(-2, -1))  # [B, N, K]
    similarity = similarity - neighbour_weight / reach * distance(position, mine, columns)
    itself = torch.arange(feature.shape[1], device=kept.device)[:, None] == kept[:, None, :]
    similarity = torch.nan_to_num(similarity, nan=-1e30).masked_fill(itself, torch.inf)
    return similarity.argmax(-1)


def distance(a: torch.Tensor, b: torch.Tensor, columns: int) -> torch.Tensor:
    """Euclidean distance on the grid between tokens at places a [B, N] and b [B, K]: [B, N, K] float32."""
    rows = (a // columns).unsqueeze(-1) - (b // columns).unsqueeze(-2)
    across = (a % columns).unsqueeze(-1) - (b % columns).unsqueeze(-2)
    return (rows * rows + across * across).float().sqrt()
