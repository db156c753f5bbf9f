"""The most similar token of others, near ones preferred: what clusters and owners are found by.

Up to `FULL` tokens each is compared with each. Of more, each is compared with those around it in reading order, as many
as lie in a band of `BAND` tokens: the comparisons are then linear in the tokens, and so is the memory.
"""

from __future__ import annotations

import sympy
import torch
import torch.nn.functional as F

from lvtp_fx.ops.rows import rows

FULL, BAND = 4096, 2048
BLOCK = 128  # tokens that share a band
ADDED = 4  # channels that `affinity` adds to the features in its matrix product


def placed(feature: torch.Tensor, position: torch.Tensor, columns: int, reach: int) -> torch.Tensor:
    """Unit features with their place on the grid, in units of `reach` tokens: [B, N, C] -> [B, N, C + 3] float32.

    The last three channels are row, column, and the square of both.
    """
    place = torch.stack([position // columns, position % columns], dim=-1).float() / reach
    return torch.cat([F.normalize(feature.float(), dim=-1), place, place.square().sum(-1, keepdim=True)], dim=-1)


def affinity(a: torch.Tensor, b: torch.Tensor, weight: float) -> torch.Tensor:
    """Cosine similarity less `weight` times the squared distance on the grid, as one matrix product: [..., J, M].

    |x - y|^2 = |x|^2 + |y|^2 - 2 x y, so that no distance is computed pair by pair.

    Args:
        a, b: [..., J, C + 3] and [..., M, C + 3], of `placed`.
    """
    (unit, place, square), one = a.split([a.shape[-1] - 3, 2, 1], dim=-1), torch.ones_like(a[..., -1:])
    left = torch.cat([unit, 2 * weight * place, -weight * one, -weight * square], dim=-1)
    right = torch.cat([b, torch.ones_like(b[..., -1:])], dim=-1)
    return torch.matmul(left, right.transpose(-2, -1))


def nearest(
    keyed: torch.Tensor, tokens: torch.Tensor | None, others: torch.Tensor, weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each of `tokens` the highest `affinity` to one of `others`, and which: [B, J] float32 and int64.

    Args:
        keyed: [B, N, C + 3], of `placed`, in reading order.
        tokens: [B, J] int64 indices of tokens, ascending; None for all.
        others: [B, M] int64 indices of tokens. Results are indices into it.
    """
    own = keyed if tokens is None else rows(keyed, tokens)
    B, N, _ = keyed.shape
    if N <= FULL:
        return _highest(own, rows(keyed, others), weight)
    others, order = torch.sort(others, dim=-1)
    J, M = own.shape[1], others.shape[1]
    blocks, width = -(-J // BLOCK), -(-M * BAND // N)
    # How many of the others lie up to each token, and so up to the middle of each block.
    upto = keyed.new_zeros(B, N, dtype=torch.int64).scatter_add(1, others, torch.ones_like(others)).cumsum(1)
    middle = torch.arange(blocks, device=keyed.device) * BLOCK + BLOCK // 2
    middle = middle.clamp(max=J - 1).expand(B, blocks)
    first = torch.gather(upto, 1, middle if tokens is None else torch.gather(tokens, 1, middle)) - width // 2
    first = first.clamp(0, M - width).unsqueeze(-1)
    band = torch.gather(others, 1, (first + torch.arange(width, device=keyed.device)).flatten(1))
    near = rows(keyed, band).view(B, blocks, width, -1)
    own = F.pad(own, (0, 0, 0, blocks * BLOCK - J)).view(B, blocks, BLOCK, -1)
    best, index = _highest(own, near, weight)
    return best.flatten(1)[:, :J], torch.gather(order, 1, (first + index).flatten(1)[:, :J])


def _highest(a: torch.Tensor, b: torch.Tensor, weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Nothing is near a token that is not a number, and what is near it is not a number either."""
    best, index = torch.nan_to_num(affinity(a, b, weight), nan=-1e30).max(-1)
    return torch.where(a.sum(-1).isnan(), torch.nan, best), index


def nearest_flops(
    tokens: sympy.Expr | int, others: sympy.Expr | int, N: sympy.Expr | int, channels: int
) -> sympy.Expr:
    """FLOPs of `nearest` for one image: J of N living tokens against M others, in features of so many channels."""
    J, M = sympy.sympify(tokens), sympy.sympify(others)
    compared = BLOCK * sympy.ceiling(J / BLOCK) * sympy.ceiling(M * BAND / N)
    pairs = sympy.Piecewise((J * M, sympy.Le(N, FULL)), (compared, True))
    return 2 * pairs * (channels + ADDED)
