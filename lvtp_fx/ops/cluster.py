"""Clustering twice: `lvtp.representatives` (first, semantic) and `lvtp.rank` (second, low-level)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lvtp_fx.ops.nearest import nearest, placed
from lvtp_fx.ops.registry import op
from lvtp_fx.ops.select import descending


@op("representatives(Tensor importance, Tensor position, int rows, int columns, int cell_rows, int cell_columns,"
    " Tensor? size=None) -> Tensor")
def representatives(
    importance: torch.Tensor, position: torch.Tensor, rows: int, columns: int, cell_rows: int, cell_columns: int,
    size: torch.Tensor | None = None,
) -> torch.Tensor:
    """The most important living token of each cell of the grid: [B, M] int64 indices of tokens.

    Cells are cell_rows x cell_columns tokens of the full grid. A cell where no token lives repeats token 0; where
    tokens are hidden, a cell without another repeats the last one before it that is shown, or the first one.

    Args:
        importance: [B, N] float32.
        position: [B, N] int64, places on the full grid.
        size: [B, N], where tokens are hidden: those of size 0.
    """
    B, N = importance.shape
    if size is not None:
        importance = importance.masked_fill(size == 0, -torch.inf)
    itself = torch.arange(N, device=position.device).expand(B, N)
    token = torch.zeros(B, rows * columns, dtype=torch.int64, device=position.device).scatter(1, position, itself)
    # On the grid, a cell is a block: no token is compared with a cell that it is not in.
    grid = importance.new_full((B, rows * columns), -torch.inf)
    grid = grid.scatter(1, position, torch.nan_to_num(importance, nan=-1e30)).view(B, rows, columns)
    down, across = -(-rows // cell_rows), -(-columns // cell_columns)
    grid = F.pad(grid, (0, across * cell_columns - columns, 0, down * cell_rows - rows), value=-torch.inf)
    cells = grid.view(B, down, cell_rows, across, cell_columns).transpose(2, 3).flatten(3)
    best = cells.argmax(-1)  # [B, down, across], a place in the cell
    row = torch.arange(down, device=position.device)[:, None] * cell_rows + best // cell_columns
    column = torch.arange(across, device=position.device) * cell_columns + best % cell_columns
    anchors = torch.gather(token, 1, (row * columns + column).flatten(1))
    if size is None:
        return anchors
    upto = (size > 0).cumsum(1)  # shown tokens up to each; number 0 is none, so that hidden ones can be written there
    nth = torch.zeros(B, N + 1, dtype=torch.int64, device=position.device)
    nth = nth.scatter(1, torch.where(size > 0, upto, 0), itself)
    return torch.gather(nth, 1, torch.gather(upto, 1, anchors).clamp(min=1))


@op("rank(Tensor feature, Tensor anchors, Tensor position, Tensor importance, Tensor edges, int columns, int reach,"
    " float neighbour_weight, float importance_weight, float edge_weight, int kept, int rounds, Tensor? size=None)"
    " -> Tensor")
def rank(
    feature: torch.Tensor, anchors: torch.Tensor, position: torch.Tensor, importance: torch.Tensor,
    edges: torch.Tensor, columns: int, reach: int, neighbour_weight: float, importance_weight: float,
    edge_weight: float, kept: int, rounds: int, size: torch.Tensor | None = None,
) -> torch.Tensor:
    """Priority of each token to live on: [B, N] float32.

    Tokens join the cluster of the most similar anchor (near ones preferred). Anchors come first. In a cluster, a
    token is redundant as far as it is similar to its anchor; a token is an edge token where its edge exceeds the
    mean of its cluster, and edge tokens are dropped last. With more than one round, the other `kept` tokens are chosen
    a part at a time, and from then on a token is also redundant as far as it is similar to those already chosen: of
    several tokens that are unlike their anchor, but like each other, one is enough.

    Args:
        feature: [B, N, C]. anchors: [B, M] int64. position: [B, N] int64. importance, edges: [B, N] float32.
        kept: K >= M. rounds: >= 1.
        size: [B, N], where tokens are hidden: those of size 0, which come last.
    """
    keyed = placed(feature.float(), position, columns, reach)
    closest, cluster = nearest(keyed, None, anchors, neighbour_weight)
    count = edges.new_zeros(anchors.shape)
    total = count.scatter_add(1, cluster, edges)  # hidden tokens have none
    member = torch.ones_like(edges) if size is None else (size > 0).to(edges.dtype)
    mean = total / count.scatter_add(1, cluster, member).clamp(min=1)
    excess = edges - torch.gather(mean, 1, cluster)
    worth = edge_weight * excess.clamp(min=0) + importance_weight * importance
    if size is not None:
        worth = worth.masked_fill(size == 0, -torch.inf)
    priority = (worth - closest).scatter(1, anchors, torch.inf)
    # Only tokens that are not chosen yet are compared with those that a round chooses. M are chosen before the first:
    # the anchors, and the best of the others in the place of anchors that repeat.
    undecided, done = torch.arange(cluster.shape[1], device=cluster.device).expand_as(cluster), anchors.shape[1]
    skip = done
    for part in range(1, rounds):
        more = chosen_after(part, rounds, anchors.shape[1], kept) - done
        if not more:
            continue
        order = descending(priority)[:, skip:]
        undecided, closest = torch.gather(undecided, 1, order), torch.gather(closest, 1, order)
        chosen, undecided, closest = undecided[:, :more], undecided[:, more:], closest[:, more:]
        closest = torch.maximum(closest, nearest(keyed, undecided, chosen, neighbour_weight)[0])
        priority = torch.gather(worth, 1, undecided) - closest
        skip, done = 0, done + more
    return torch.full_like(worth, torch.inf).scatter(1, undecided, priority)


def chosen_after(part: int, rounds: int, anchors: int, kept: int) -> int:
    """Tokens that are chosen when `part` of `rounds` are over."""
    return anchors + (kept - anchors) * part // rounds
