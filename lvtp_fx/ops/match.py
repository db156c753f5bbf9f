"""Matching tokens to partners that can stand for them: `lvtp.partners`, `lvtp.partners_across`, `lvtp.superpixels`.

Letters: B batch, N tokens, K kept, C channels. A partner is an index into the same N tokens; a token that is its own
partner can stand for others.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lvtp_fx.ops.nan import without_nan
from lvtp_fx.ops.nearest import FAR, left_factor, placed, right_factor
from lvtp_fx.ops.registry import op
from lvtp_fx.ops.rows import rows
from lvtp_fx.ops.score import spread
from lvtp_fx.ops.select import hide, select

_TIE = 1e-5  # of cosines
_JUMPS = 5  # doublings: a chain of up to 32 partners is followed to its end


@op("partners(Tensor feature, Tensor? size=None) -> Tensor")
def partners(feature: torch.Tensor, size: torch.Tensor | None = None) -> torch.Tensor:
    """For each token the other token that is most similar to it: [B, N] int64, from features [B, N, C].

    size: [B, N], where tokens are hidden: those of size 0, which are nobody's partners as long as there is another one.
    """
    unit = F.normalize(feature.float(), dim=-1)
    similarity = torch.matmul(unit, unit.transpose(1, 2))
    itself = torch.eye(similarity.shape[1], dtype=torch.bool, device=feature.device)
    similarity = _shown(torch.nan_to_num(similarity, nan=-2.0), size)
    return similarity.masked_fill(itself, -3.0).argmax(-1)


@op("partners_across(Tensor feature, Tensor? size=None) -> Tensor")
def partners_across(feature: torch.Tensor, size: torch.Tensor | None = None) -> torch.Tensor:
    """Tokens alternate between two sets; one of the first gets the most similar one of the second: [B, N] int64.

    Tokens of the second set (odd places) are their own partners. A single token is its own. size: as of `partners`.
    """
    B, N, _ = feature.shape
    unit = F.normalize(feature.float(), dim=-1)
    itself = torch.arange(N, device=feature.device).expand(B, N)
    if N < 2:
        return itself
    similarity = torch.matmul(unit[:, ::2], unit[:, 1::2].transpose(1, 2))
    across = 2 * _shown(torch.nan_to_num(similarity, nan=-2.0), None if size is None else size[:, 1::2]).argmax(-1) + 1
    return itself.scatter(1, itself[:, ::2], across)


@op("superpixels(Tensor feature, Tensor position, int columns, int reach, int count, int rounds,"
    " float neighbour_weight, Tensor? size=None) -> Tensor")
def superpixels(
    feature: torch.Tensor, position: torch.Tensor, columns: int, reach: int, count: int, rounds: int,
    neighbour_weight: float, size: torch.Tensor | None = None,
) -> torch.Tensor:
    """k-means over features and places from evenly spread seeds; partner is the cluster's most central token.

    Args:
        feature: [B, N, C]. position: [B, N] int64, places on the full grid, `columns` wide.
        reach: tokens that make a distance of one. neighbour_weight: as of `lvtp.comparable`.
        count: clusters, <= N. rounds: of assigning and averaging, >= 1.
        size: [B, N], where tokens are hidden: those of size 0, which make no mean, and stand for no other.

    Returns:
        [B, N] int64. At most `count` tokens are their own partners: a cluster may end empty.
    """
    keyed = placed(feature.float(), position, columns, reach)
    B, N, C = keyed.shape
    seeds, member, counted = spread(position, columns), keyed.new_ones(B, N), keyed
    if size is not None:
        seeds, member = hide(seeds, size), (size > 0).to(keyed.dtype)
        counted = keyed * member.unsqueeze(-1)
    left, centre = left_factor(keyed, neighbour_weight), rows(keyed, select(seeds, count))
    for _ in range(rounds):
        near = torch.matmul(left, right_factor(centre).transpose(1, 2))
        cluster = without_nan(near, FAR).argmax(-1)  # [B, N]
        into = cluster.unsqueeze(-1).expand(-1, -1, C)
        number = keyed.new_zeros(B, count).scatter_add(1, cluster, member).unsqueeze(-1)
        mean = torch.zeros_like(centre).scatter_add(1, into, counted) / number.clamp(min=1)
        # The mean of unit vectors is none, and the last channel is the square of the two before it.
        unit, place = F.normalize(mean[..., :-3], dim=-1), mean[..., -3:-1]
        mean = torch.cat([unit, place, place.square().sum(-1, keepdim=True)], dim=-1)
        centre = torch.where(number > 0, mean, centre)
    close = (keyed[..., :-3] * rows(centre[..., :-3], cluster)).sum(-1)
    if size is not None:
        close = close.masked_fill(size == 0, -2.0)
    best = close.new_full((B, count), -torch.inf).scatter_reduce(1, cluster, close, "amax")
    index = torch.arange(N, device=feature.device).expand(B, N)
    # The two tokens of a pair are equally central but for rounding: the first is taken, compiled or not.
    central = torch.where(close >= torch.gather(best, 1, cluster) - _TIE, index, N)
    medoid = central.new_full((B, count), N).scatter_reduce(1, cluster, central, "amin")
    return torch.gather(medoid, 1, cluster).clamp(max=N - 1)


def _shown(similarity: torch.Tensor, size: torch.Tensor | None) -> torch.Tensor:
    """[.., J, M], the columns of hidden tokens below all others."""
    return similarity if size is None else similarity.masked_fill((size == 0).unsqueeze(-2), -2.5)


@op("pair_rank(Tensor feature, Tensor partner, float unpaired) -> Tensor")
def pair_rank(feature: torch.Tensor, partner: torch.Tensor, unpaired: float) -> torch.Tensor:
    """Priority of each token to live on: [B, N] float32.

    First come tokens that are their own partners, and of two that are each other's the earlier one. Then the others,
    the least similar to their partner first; `unpaired` is added to the priority of those whose partner has another.

    Args:
        feature: [B, N, C]. partner: [B, N] int64.
    """
    unit = F.normalize(feature.float(), dim=-1)
    similarity = (unit * rows(unit, partner)).sum(-1)
    index = torch.arange(partner.shape[1], device=partner.device)
    back = torch.gather(partner, 1, partner)
    priority = torch.where(back == index, -similarity, unpaired - similarity)
    return priority.masked_fill((back == index) & (index <= partner), torch.inf)


@op("owners_of(Tensor partner, Tensor kept) -> Tensor")
def owners_of(partner: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """For each token the kept one that its chain of partners leads to, as an index into `kept`: [B, N] int64.

    Where the chain ends at a token that is dropped, the kept one before that end in the order of tokens, or the first.

    Args:
        partner: [B, N] int64. kept: [B, K] int64, ascending.
    """
    lives = torch.zeros_like(partner).scatter(1, kept, 1)
    index = torch.arange(partner.shape[1], device=partner.device).expand_as(partner)
    step = torch.where(lives.bool(), index, partner)
    for _ in range(_JUMPS):
        step = torch.gather(step, 1, step)
    return torch.gather(lives.cumsum(1) - 1, 1, step).clamp(min=0)


@op("owners_fused(Tensor priority, Tensor kept) -> Tensor")
def owners_fused(priority: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """One kept token, that of the lowest priority, stands for all dropped ones: [B, N] int64 into `kept`.

    Args:
        priority: [B, N]. kept: [B, K] int64, ascending.
    """
    K = kept.shape[1]
    host = torch.gather(priority, 1, kept).argmin(-1, keepdim=True).expand_as(priority)
    return host.scatter(1, kept, torch.arange(K, device=kept.device).expand_as(kept))
