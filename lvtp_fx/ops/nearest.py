"""The most similar token of others, near ones preferred: what clusters and owners are found by, from the two factors of
`lvtp.comparable`.

A few tokens are each compared with each. Of many, each is compared with those around it in reading order, as many as
lie in a band of `BAND` tokens (eight rows of 128 columns): time and memory are then linear in the tokens, and the
result is almost the same, since what is nearest lies a few rows away at most (bench/LATENCY.md, Growth).
"""

from __future__ import annotations

import sympy
import torch
import torch.nn.functional as F

from lvtp_fx.ops.nan import without_nan
from lvtp_fx.ops.registry import op
from lvtp_fx.ops.rows import rows

BAND = 1024  # tokens
BLOCK = 128  # tokens that share a band
FAR = -1e30  # the affinity to nothing
ADDED = 4  # channels that `comparable` adds to the features


def placed(feature: torch.Tensor, position: torch.Tensor, columns: int, reach: int) -> torch.Tensor:
    """Unit features with their place on the grid, in units of `reach` tokens: [B, N, C] -> [B, N, C + 3] float32
    (float64 of float64).

    The last three channels are row, column, and the square of both.
    """
    unit = F.normalize(feature.to(torch.promote_types(feature.dtype, torch.float32)), dim=-1)
    place = torch.stack([position // columns, position % columns], dim=-1).to(unit.dtype) / reach
    return torch.cat([unit, place, place.square().sum(-1, keepdim=True)], dim=-1)


def left_factor(a: torch.Tensor, weight: float) -> torch.Tensor:
    """What `right_factor` is multiplied with: [..., C + 3], of `placed`, -> [..., C + 4]."""
    (unit, place, square), one = a.split([a.shape[-1] - 3, 2, 1], dim=-1), torch.ones_like(a[..., -1:])
    return torch.cat([unit, 2 * weight * place, -weight * one, -weight * square], dim=-1)


def right_factor(b: torch.Tensor) -> torch.Tensor:
    """[..., C + 3], of `placed`, -> [..., C + 4]."""
    return torch.cat([b, torch.ones_like(b[..., -1:])], dim=-1)


@op("comparable(Tensor feature, Tensor position, int columns, int reach, float neighbour_weight) -> (Tensor, Tensor)")
def comparable(
    feature: torch.Tensor, position: torch.Tensor, columns: int, reach: int, neighbour_weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors of the affinity of tokens, left and right: left[b, i] @ right[b, j] is the cosine similarity of
    tokens i and j less `neighbour_weight` times their squared distance on the grid. Both [B, N, C + 4], float32
    (float64 of float64).

    |x - y|^2 = |x|^2 + |y|^2 - 2 x y, so that no distance is computed pair by pair.

    Args:
        feature: [B, N, C]. position: [B, N] int64, places of the tokens on the full grid, `columns` wide.
        reach: tokens that make a distance of one.
    """
    keyed = placed(feature, position, columns, reach)
    return left_factor(keyed, neighbour_weight), right_factor(keyed)


def nearest(
    left: torch.Tensor, right: torch.Tensor, tokens: torch.Tensor | None, others: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each of `tokens` the highest affinity to one of `others`, and which: [B, J] float32 and int64.

    Args: as of `nearest_few`.
    """
    best, index = nearest_few(left, right, tokens, others, 1)
    return best[..., 0], index[..., 0]


def nearest_few(
    left: torch.Tensor, right: torch.Tensor, tokens: torch.Tensor | None, others: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each of `tokens` the `count` highest affinities to `others`, the highest first, and to which: [B, J, count]
    float32 and int64. Where there are fewer others than that, the last ones repeat, at `FAR`.

    Args:
        left, right: [B, N, C + 4], of `comparable`, in reading order.
        tokens: [B, J] int64 indices of tokens; None for all.
        others: [B, M] int64 indices of tokens. Results are indices into it.
        count: >= 1.
    """
    (B, N, _), M = left.shape, others.shape[1]
    J = N if tokens is None else tokens.shape[1]
    if _pairs(J, M, N) == J * M:
        return _highest(left if tokens is None else rows(left, tokens), rows(right, others), count)
    blocks, width = -(-N // BLOCK), _width(M, N)
    others, order = torch.sort(others, dim=-1)
    # How many of the others lie up to each token, and so up to the middle of each block. Blocks are of all tokens: some
    # that follow each other among `tokens` can be far apart.
    upto = left.new_zeros(B, N, dtype=torch.int64).scatter_add(1, others, torch.ones_like(others)).cumsum(1)
    middle = (torch.arange(blocks, device=left.device) * BLOCK + BLOCK // 2).clamp(max=N - 1)
    first = (upto[:, middle] - width // 2).clamp(0, M - width).unsqueeze(-1)
    band = torch.gather(others, 1, (first + torch.arange(width, device=left.device)).flatten(1))
    own = F.pad(left, (0, 0, 0, blocks * BLOCK - N)).unflatten(1, (blocks, BLOCK))
    best, index = _highest(own, rows(right, band).unflatten(1, (blocks, width)), count)
    best = best.flatten(1, 2)[:, :N]
    index = torch.gather(order, 1, (first.unsqueeze(-1) + index).flatten(1))
    index = index.unflatten(1, (blocks * BLOCK, count))[:, :N]
    return (best, index) if tokens is None else (rows(best, tokens), rows(index, tokens))


def _highest(left: torch.Tensor, right: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Nothing is near a token that is not a number, and what is near it is not a number either."""
    near = torch.matmul(left, right.transpose(-2, -1))
    near = without_nan(near, FAR)
    best, index = near.max(-1, keepdim=True)
    best = best.masked_fill(best == FAR, torch.nan)
    if count == 1:
        return best, index
    found = [(best, index)]
    for _ in range(1, count):  # a few maxima are cheaper than a sort
        near = near.scatter(-1, found[-1][1], FAR)
        found.append(near.max(-1, keepdim=True))
    values, places = (torch.cat(parts, dim=-1) for parts in zip(*found, strict=True))
    return values, places


def nearest_flops(
    tokens: sympy.Expr | int, others: sympy.Expr | int, N: sympy.Expr | int, channels: int
) -> sympy.Expr:
    """FLOPs of `nearest` for one image: J of N living tokens against M others, in features of so many channels."""
    return 2 * (channels + ADDED) * _Pairs(tokens, others, N)


def _pairs(J: int, M: int, N: int) -> int:
    """How many pairs are compared: J * M, or those of the bands where they are at most half as many."""
    banded = -(-N // BLOCK) * BLOCK * _width(M, N)
    return banded if 2 * banded <= J * M else J * M


def _width(M: int, N: int) -> int:
    """How many of M others lie in a band."""
    return -(-M * BAND // N)


class _Pairs(sympy.Function):  # type: ignore[misc]
    """`_pairs`, as it is while a count is a symbol: spelled out, SymPy would take minutes to fold it."""

    _imp_ = staticmethod(_pairs)  # what sympy.lambdify calls

    @classmethod
    def eval(cls, *counts: sympy.Expr) -> sympy.Expr | None:
        return sympy.Integer(_pairs(*map(int, counts))) if all(count.is_Integer for count in counts) else None
