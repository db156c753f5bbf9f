"""Scoring: `lvtp.entropy` (multi-scale Tsallis entropy of attention rows) and `lvtp.edges` (Sobel).

Letters: B batch, H heads, L tokens with prefix and suffix, N grid tokens, D head dim, Q entropy orders.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lvtp_fx.ops.nan import without_nan
from lvtp_fx.ops.registry import op
from lvtp_fx.ops.row_entropy import TINY, row_entropies, scores


def centred(x: torch.Tensor, size: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """x minus its mean over the last axis, and its standard deviation; of the tokens of a `size` above 0 alone, where
    sizes are given: the others are 0 then, so that what is hidden decides nothing."""
    if size is None:
        around = x - x.mean(-1, keepdim=True)
        return around, around.square().mean(-1, keepdim=True).sqrt()
    shown = size > 0
    count = shown.sum(-1, keepdim=True).clamp(min=1)
    around = x - x.masked_fill(~shown, 0.0).sum(-1, keepdim=True) / count
    around = around.masked_fill(~shown, 0.0)
    return around, (around.square().sum(-1, keepdim=True) / count).sqrt()


def standardise(x: torch.Tensor, size: torch.Tensor | None = None) -> torch.Tensor:
    """(x - mean) / std over the last axis, as of `centred`; zeros where all entries are equal."""
    around, deviation = centred(x, size)
    return around / (deviation + TINY)


@op("entropy(Tensor q, Tensor k, Tensor? mask, float? scale, int before, int after, float[] orders, int every,"
    " Tensor? size=None) -> Tensor")
def entropy(
    q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None, scale: float | None,
    before: int, after: int, orders: list[float], every: int, size: torch.Tensor | None = None,
) -> torch.Tensor:
    """Entropy of each grid token's attention row, standardised per image: [B, N] float32.

    The Tsallis entropies of `row_entropies`, over every `every`-th key, which samples the row. The scales (orders x
    heads) are averaged with dynamic weights: the standard deviation of a scale over the tokens of this image, its share
    in the sum over all scales (how well it separates the tokens; nothing is learned).

    Args:
        q, k: [B, H, L, D].
        mask: boolean or additive, broadcastable to [B, H, L, L], or None. A row that sees no sampled key is focused: 0.
        scale: of the scores; None means D ** -0.5.
        before, after: prefix and suffix tokens, which are attended to, but get no score.
        orders: the q's, > 0.
        every: >= 1.
        size: [B, N], where tokens are hidden: those of size 0, which get 0 and do not count.
    """
    stacked = row_entropies(q, k, mask, scale, before, after, orders, every)
    _, spread = centred(stacked, None if size is None else size.unsqueeze(1))
    dynamic = spread / (spread.sum(1, keepdim=True) + TINY)
    return standardise((stacked * dynamic).sum(1), size)


@op("received(Tensor q, Tensor k, Tensor? mask, float? scale, int before, int after, int every, Tensor? size=None)"
    " -> Tensor")
def received(
    q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None, scale: float | None,
    before: int, after: int, every: int, size: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention that each grid token receives, mean over heads and queries: [B, N] float32.

    Args:
        every: take one query in so many; 0: only the first one (a class token).
        Others as of `entropy`.
    """
    queries = slice(0, 1) if every == 0 else slice(None, None, every)
    attention = without_nan(scores(q, k, mask, scale, queries, slice(None)).softmax(-1), 0.0)
    if size is not None:  # what hidden queries attend to does not count
        shown = F.pad((size > 0).to(attention.dtype), (before, after), value=1.0)[:, queries]
        attention = attention * shown[:, None, :, None]
    return attention.mean((1, 2))[:, before : k.shape[2] - after]


@op("edges(Tensor image, int rows, int columns, Tensor? size=None) -> Tensor")
def edges(image: torch.Tensor, rows: int, columns: int, size: torch.Tensor | None = None) -> torch.Tensor:
    """Sobel gradient magnitude, averaged per patch and standardised per image: [B, rows * columns] float32.

    Args:
        image: [B, channels, height, width], on any scale; channels are averaged.
        size: [B, rows * columns], as of `entropy`.
    """
    grey = image.float().mean(1, keepdim=True)
    # The rim, repeated: joined on, since compilers clamp every index of a replicating pad, which costs four times more.
    grey = torch.cat([grey[..., :1], grey, grey[..., -1:]], dim=-1)
    grey = torch.cat([grey[..., :1, :], grey, grey[..., -1:, :]], dim=-2)
    across = grey[..., 2:] - grey[..., :-2]  # the Sobel kernels are separable: (1, 2, 1) x (-1, 0, 1)
    down = grey[..., 2:, :] - grey[..., :-2, :]
    gx = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    gy = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    magnitude = (gx * gx + gy * gy + TINY).sqrt()
    return standardise(F.adaptive_avg_pool2d(magnitude, (rows, columns)).flatten(1), size)


@op("blend(Tensor a, Tensor b, float a_weight, float b_weight) -> Tensor")
def blend(a: torch.Tensor, b: torch.Tensor, a_weight: float, b_weight: float) -> torch.Tensor:
    """a_weight * a + b_weight * b, [B, N]; importance is such a sum of standardised scores."""
    return a_weight * a + b_weight * b


@op("blank(Tensor position) -> Tensor")
def blank(position: torch.Tensor) -> torch.Tensor:
    """Zeros: [B, N] float32."""
    return torch.zeros(position.shape, dtype=torch.float32, device=position.device)


@op("hashed(Tensor position, int seed) -> Tensor")
def hashed(position: torch.Tensor, seed: int) -> torch.Tensor:
    """A fixed pseudo-random number in [0, 1) for each place: [B, N] float32 (multiplicative hashing, Knuth 6.4)."""
    mixed = (position + 1) * 2654435761 + (seed + 1) * 40503
    mixed = mixed ^ (mixed >> 15)
    return ((mixed * 2246822519) % 65521).float() / 65521


@op("spread(Tensor position, int columns) -> Tensor")
def spread(position: torch.Tensor, columns: int) -> torch.Tensor:
    """Places ranked so that the first K of any K are spread evenly: [B, N] float32 (an additive recurrence in two
    dimensions, on the plastic number)."""
    value = (position // columns) * 0.7548776662466927 + (position % columns) * 0.5698402909980532
    return value - value.floor()
