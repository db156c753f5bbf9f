"""Clustering twice: `lvtp.representatives` (first, semantic) and `lvtp.rank` (second, low-level)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lvtp_fx.ops.nan import without_nan
from lvtp_fx.ops.nearest import nearest
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
    # The token at each place; the last one, behind all tokens, where none lives.
    token = itself.new_full((B, rows * columns), N).scatter(1, position, itself)
    known = without_nan(importance.clamp(min=torch.finfo(importance.dtype).min), -1e30)
    # On the grid, a cell is a block: no token is compared with a cell that it is not in.
    grid = torch.gather(F.pad(known, (0, 1), value=-torch.inf), 1, token).view(B, rows, columns)
    down, across = -(-rows // cell_rows), -(-columns // cell_columns)
    grid = F.pad(grid, (0, across * cell_columns - columns, 0, down * cell_rows - rows), value=-torch.inf)
    cells = grid.view(B, down, cell_rows, across, cell_columns).transpose(2, 3).flatten(3)
    best = cells.argmax(-1)  # [B, down, across], a place in the cell
    row = torch.arange(down, device=position.device)[:, None] * cell_rows + best // cell_columns
    column = torch.arange(across, device=position.device) * cell_columns + best % cell_columns
    anchors = torch.gather(token, 1, (row * columns + column).flatten(1)) % N
    if size is None:
        return anchors
    upto = (size > 0).cumsum(1)  # shown tokens up to each; number 0 is none, so that hidden ones can be written there
    nth = torch.zeros(B, N + 1, dtype=torch.int64, device=position.device)
    nth = nth.scatter(1, torch.where(size > 0, upto, 0), itself)
    return torch.gather(nth, 1, torch.gather(upto, 1, anchors).clamp(min=1))


@op("rank(Tensor left, Tensor right, Tensor anchors, Tensor importance, Tensor edges, float importance_weight,"
    " float edge_weight, int kept, int rounds, Tensor? size=None) -> Tensor")
def rank(
    left: torch.Tensor, right: torch.Tensor, anchors: torch.Tensor, importance: torch.Tensor, edges: torch.Tensor,
    importance_weight: float, edge_weight: float, kept: int, rounds: int, size: torch.Tensor | None = None,
) -> torch.Tensor:
    """Priority of each token to live on: [B, N] float32.

    Tokens join the cluster of the most similar anchor (near ones preferred). Anchors come first. In a cluster, a
    token is redundant as far as it is similar to its anchor; a token is an edge token where its edge exceeds the
    mean of its cluster, and edge tokens are dropped last. With more than one round, the other `kept` tokens are chosen
    a part at a time (`part_size`), and from then on a token is also redundant as far as it is similar to those already
    chosen: of several tokens that are unlike their anchor, but like each other, one is enough.

    Args:
        left, right: [B, N, C + 4], of `lvtp.comparable`. anchors: [B, M] int64. importance, edges: [B, N] float32.
        kept: K >= M. rounds: >= 1.
        size: [B, N], where tokens are hidden: those of size 0, which come last.
    """
    left, right = left.float(), right.float()
    closest, cluster = nearest(left, right, None, anchors)
    member = torch.ones_like(edges) if size is None else (size > 0).to(edges.dtype)
    # Of each cluster the sum of the edges, hidden tokens having none, and the number of members.
    sums = edges.new_zeros(*anchors.shape, 2).scatter_add(
        1, cluster.unsqueeze(-1).expand(-1, -1, 2), torch.stack([edges, member], dim=-1))
    mean = sums[..., 0] / sums[..., 1].clamp(min=1)
    excess = edges - torch.gather(mean, 1, cluster)
    worth = edge_weight * excess.clamp(min=0) + importance_weight * importance
    lowest = torch.finfo(worth.dtype).min  # minus infinity marks what a round has chosen
    worth = worth.clamp(min=lowest)
    if size is not None:
        worth = worth.masked_fill(size == 0, lowest)
    priority = (worth - closest).scatter(1, anchors, torch.inf)
    more = part_size(rounds, anchors.shape[1], kept)
    if rounds == 1 or not more:
        return priority
    # M are chosen before the first round: the anchors, and the best of the others in the place of anchors that repeat.
    order, M = descending(priority), anchors.shape[1]
    chosen, others = order[:, M : M + more], order[:, M + more :]
    ranks, worth = torch.gather(priority, 1, others), torch.gather(worth, 1, others)
    # All others are compared with what each round chooses, also those that were chosen meanwhile: so the rounds are
    # alike, and compilers write one kernel for all.
    for part in range(1, rounds):
        if part > 1:
            best = descending(ranks)[:, :more]
            chosen, ranks = torch.gather(others, 1, best), ranks.scatter(1, best, -torch.inf)
        ranks = torch.minimum(ranks, worth - nearest(left, right, others, chosen)[0])
    ranks = ranks.masked_fill(ranks == -torch.inf, torch.inf)
    return torch.full_like(priority, torch.inf).scatter(1, others, ranks)


def part_size(rounds: int, anchors: int, kept: int) -> int:
    """Tokens that each round but the last chooses, which takes what is left."""
    return (kept - anchors) // rounds
