"""Clustering twice: `lvtp.representatives` (first, semantic) and `lvtp.rank` (second, low-level)."""

from __future__ import annotations

import torch

from lvtp_fx.ops.registry import op
from lvtp_fx.ops.select import affinity, placed, rows


@op("representatives(Tensor importance, Tensor position, int rows, int columns, int cell_rows, int cell_columns)"
    " -> Tensor")
def representatives(
    importance: torch.Tensor, position: torch.Tensor, rows: int, columns: int, cell_rows: int, cell_columns: int
) -> torch.Tensor:
    """The most important living token of each cell of the grid: [B, M] int64 indices of tokens.

    Cells are cell_rows x cell_columns tokens of the full grid. A cell where no token lives repeats token 0.

    Args:
        importance: [B, N] float32.
        position: [B, N] int64, places on the full grid.
    """
    across = -(-columns // cell_columns)
    count = -(-rows // cell_rows) * across
    cell = (position // columns) // cell_rows * across + (position % columns) // cell_columns  # [B, N]
    inside = cell.unsqueeze(1) == torch.arange(count, device=position.device)[:, None]  # [B, M, N]
    finite = torch.nan_to_num(importance, nan=-1e30).unsqueeze(1)
    return torch.where(inside, finite, -torch.inf).argmax(-1)


@op("rank(Tensor feature, Tensor anchors, Tensor position, Tensor importance, Tensor edges, int columns, int reach,"
    " float neighbour_weight, float importance_weight, float edge_weight) -> Tensor")
def rank(
    feature: torch.Tensor, anchors: torch.Tensor, position: torch.Tensor, importance: torch.Tensor,
    edges: torch.Tensor, columns: int, reach: int, neighbour_weight: float, importance_weight: float,
    edge_weight: float,
) -> torch.Tensor:
    """Priority of each token to live on: [B, N] float32.

    Tokens join the cluster of the most similar anchor (near ones preferred). Anchors come first. In a cluster, a
    token is redundant as far as it is similar to its anchor; a token is an edge token where its edge exceeds the
    mean of its cluster, and edge tokens are dropped last.

    Args:
        feature: [B, N, C]. anchors: [B, M] int64. position: [B, N] int64. importance, edges: [B, N] float32.
    """
    keyed = placed(feature, position, columns, reach)
    nearest, cluster = affinity(keyed, rows(keyed, anchors), neighbour_weight).max(-1)  # over [B, N, M]
    count = edges.new_zeros(anchors.shape)
    total = count.scatter_add(1, cluster, edges)
    mean = total / count.scatter_add(1, cluster, torch.ones_like(edges)).clamp(min=1)
    excess = edges - torch.gather(mean, 1, cluster)
    priority = -nearest + edge_weight * excess.clamp(min=0) + importance_weight * importance
    return priority.scatter(1, anchors, torch.inf)
