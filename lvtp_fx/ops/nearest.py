"""The most similar token of others, near ones preferred: what clusters and owners are found by.

A few tokens are each compared with each. Of many, each is compared with those around it in reading order, as many as
lie in a band of `BAND` tokens (eight rows of 128 columns): time and memory are then linear in the tokens, and the
result is almost the same, since what is nearest lies a few rows away at most (bench/LATENCY.md, Growth).
"""

from __future__ import annotations

import sympy
import torch
import torch.nn.functional as F

from lvtp_fx.ops.rows import rows

BAND = 1024  # tokens
BLOCK = 128  # tokens that share a band
FAR = -1e30  # the affinity to nothing
ADDED = 4  # channels that `affinity` adds to the features in its matrix product


def placed(feature: torch.Tensor, position: torch.Tensor, columns: int, reach: int) -> torch.Tensor:
    """Unit features with their place on the grid, in units of `reach` tokens: [B, N, C] -> [B, N, C + 3] float32
    (float64 of float64).

    The last three channels are row, column, and the square of both.
    """
    unit = F.normalize(feature.to(torch.promote_types(feature.dtype, torch.float32)), dim=-1)
    place = torch.stack([position // columns, position % columns], dim=-1).to(unit.dtype) / reach
    return torch.cat([unit, place, place.square().sum(-1, keepdim=True)], dim=-1)


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


def paired_affinity(a: torch.Tensor, b: torch.Tensor, weight: float) -> torch.Tensor:
    """`affinity` of each token of a to the one of b at its place: [..., J, C + 3] twice -> [..., J]."""
    return (a * b)[..., :-3].sum(-1) - weight * (a - b)[..., -3:-1].square().sum(-1)


def nearest(
    keyed: torch.Tensor, tokens: torch.Tensor | None, others: torch.Tensor, weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each of `tokens` the highest `affinity` to one of `others`, and which: [B, J] float32 and int64.

    Args: as of `nearest_few`.
    """
    best, index = nearest_few(keyed, tokens, others, weight, 1)
    return best[..., 0], index[..., 0]


def nearest_few(
    keyed: torch.Tensor, tokens: torch.Tensor | None, others: torch.Tensor, weight: float, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each of `tokens` the `count` highest affinities to `others`, the highest first, and to which: [B, J, count]
    float32 and int64. Where there are fewer others than that, the last ones repeat, at `FAR`.

    Args:
        keyed: [B, N, C + 3], of `placed`, in reading order.
        tokens: [B, J] int64 indices of tokens; None for all.
        others: [B, M] int64 indices of tokens. Results are indices into it.
        count: >= 1.
    """
    (B, N, _), M = keyed.shape, others.shape[1]
    J = N if tokens is None else tokens.shape[1]
    if _pairs(J, M, N) == J * M:
        own = keyed if tokens is None else rows(keyed, tokens)
        return _highest(own, rows(keyed, others), weight, count)
    blocks, width = -(-N // BLOCK), _width(M, N)
    others, order = torch.sort(others, dim=-1)
    # How many of the others lie up to each token, and so up to the middle of each block. Blocks are of all tokens: some
    # that follow each other among `tokens` can be far apart.
    upto = keyed.new_zeros(B, N, dtype=torch.int64).scatter_add(1, others, torch.ones_like(others)).cumsum(1)
    middle = (torch.arange(blocks, device=keyed.device) * BLOCK + BLOCK // 2).clamp(max=N - 1)
    first = (upto[:, middle] - width // 2).clamp(0, M - width).unsqueeze(-1)
    band = torch.gather(others, 1, (first + torch.arange(width, device=keyed.device)).flatten(1))
    own = F.pad(keyed, (0, 0, 0, blocks * BLOCK - N)).unflatten(1, (blocks, BLOCK))
    best, index = _highest(own, rows(keyed, band).unflatten(1, (blocks, width)), weight, count)
    best = best.flatten(1, 2)[:, :N]
    index = torch.gather(order, 1, (first.unsqueeze(-1) + index).flatten(1))
    index = index.unflatten(1, (blocks * BLOCK, count))[:, :N]
    return (best, index) if tokens is None else (rows(best, tokens), rows(index, tokens))


def _highest(a: torch.Tensor, b: torch.Tensor, weight: float, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Nothing is near a token that is not a number, and what is near it is not a number either."""
    near = torch.nan_to_num(affinity(a, b, weight), nan=FAR)
    found = [near.max(-1, keepdim=True)]
    for _ in range(1, count):  # a few maxima are cheaper than a sort
        near = near.scatter(-1, found[-1][1], FAR)
        found.append(near.max(-1, keepdim=True))
    best = torch.cat([value for value, _ in found], dim=-1)
    return torch.where(a.sum(-1, keepdim=True).isnan(), torch.nan, best), torch.cat([i for _, i in found], dim=-1)


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
