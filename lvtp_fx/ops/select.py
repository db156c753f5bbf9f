"""Decisions: `lvtp.select` (exactly K tokens live on), `lvtp.owners` (who stands for the others) and `lvtp.supports`
(whom the others are restored from)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lvtp_fx.ops.nan import without_nan
from lvtp_fx.ops.nearest import FAR, nearest, nearest_few
from lvtp_fx.ops.registry import op
from lvtp_fx.ops.rows import rows


@op("positions(Tensor like, int count, str edition='') -> Tensor")
def positions(like: torch.Tensor, count: int, edition: str = "") -> torch.Tensor:
    """[B, count] int64: 0, 1, ... for each image; `like` gives the batch size and the device. `edition`: see
    `registry.edition`, changes nothing."""
    return torch.arange(count, device=like.device).expand(like.shape[0], count)


@op("features(Tensor x, int before, int after, int width) -> Tensor")
def features(x: torch.Tensor, before: int, after: int, width: int) -> torch.Tensor:
    """Features of the grid tokens: [B, N, width], so that tokens cost the same to compare whatever they are told by.

    Of keys [B, H, L, width] the mean over the heads. Of a stream [B, L, C] the channels c, c + width, c + 2 width, ...
    added up: a projection that keeps distances well enough to rank by.
    """
    grid = (x.mean(1) if x.ndim == 4 else x)[:, before : x.shape[-2] - after]
    if grid.shape[-1] == width:
        return grid
    wide = torch.promote_types(x.dtype, torch.float32)  # half types would round, or overflow
    parts: torch.Tensor = F.pad(grid, (0, -grid.shape[-1] % width)).unflatten(-1, (-1, width))
    return parts.sum(-2, dtype=wide)


@op("select(Tensor priority, int kept) -> Tensor")
def select(priority: torch.Tensor, kept: int) -> torch.Tensor:
    """The `kept` tokens of the highest priority, ascending: [B, K] int64."""
    return torch.sort(descending(priority)[:, :kept], dim=-1).values


@op("hide(Tensor priority, Tensor size) -> Tensor")
def hide(priority: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """The priority [B, N] with tokens of size 0 last."""
    return priority.masked_fill(size == 0, -torch.inf)


def descending(priority: torch.Tensor) -> torch.Tensor:
    """All tokens, those of the highest priority first: [B, N] int64. Ties go to the earlier one.

    A priority that is not a number ranks lowest, so that a bad image cannot make the order undefined.
    """
    rank = without_nan(priority.clamp(min=torch.finfo(priority.dtype).min), -torch.inf)
    return torch.sort(rank, dim=-1, descending=True, stable=True).indices


@op("owners(Tensor left, Tensor right, Tensor kept, Tensor dropped) -> Tensor")
def owners(left: torch.Tensor, right: torch.Tensor, kept: torch.Tensor, dropped: torch.Tensor) -> torch.Tensor:
    """For each token the kept token that stands for it, as an index into `kept`: [B, N] int64.

    The `nearest` kept token. Kept tokens own themselves, so only the dropped rows are compared.

    Args:
        left, right: [B, N, C + 4], of `lvtp.comparable`.
        kept: [B, K] int64, ascending. dropped: [B, N - K] int64, the others, ascending.
    """
    itself = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
    _, owner = nearest(left, right, dropped, kept)
    into = torch.cat([kept, dropped], 1)
    return torch.zeros_like(into).scatter(1, into, torch.cat([itself, owner], 1))


@op("supports(Tensor left, Tensor right, Tensor kept, Tensor dropped, Tensor? owner, int count, float softness)"
    " -> (Tensor, Tensor)")
def supports(
    left: torch.Tensor, right: torch.Tensor, kept: torch.Tensor, dropped: torch.Tensor, owner: torch.Tensor | None,
    count: int, softness: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each token the kept tokens that it is restored from, its owner first, and the share of each: [B, N, count]
    int64, indices into `kept`, and float32 (float64 of float64).

    The others are the nearest kept tokens; shares are a softmax of what tokens are compared by, over `softness`. Kept
    tokens are restored from themselves alone. Where too few tokens are kept, what is missing has a share of 0.

    Args:
        owner: [B, N] int64, indices into `kept`; None: the nearest kept token, as of `owners`.
        count: >= 2. softness: > 0, in units of the cosine. Others as of `owners`.
    """
    near, index = nearest_few(left, right, dropped, kept, count)
    if owner is not None:
        first = torch.gather(owner, 1, dropped).unsqueeze(-1)
        own = rows(right, torch.gather(kept, 1, first.squeeze(-1)))
        close = (rows(left, dropped) * own).sum(-1, keepdim=True)
        # One of the nearest makes room for the owner: the owner itself, or the last.
        near, order = near.masked_fill(index == first, FAR).sort(dim=-1, descending=True, stable=True)
        near = torch.cat([close, near[..., :-1]], dim=-1)
        index = torch.cat([first, torch.gather(index, 2, order[..., :-1])], dim=-1)
    itself = torch.arange(kept.shape[1], device=kept.device).expand_as(kept).unsqueeze(-1).expand(-1, -1, count)
    alone = (torch.arange(count, device=kept.device) == 0).to(near.dtype).expand(itself.shape)
    into = torch.cat([kept, dropped], 1).unsqueeze(-1).expand(-1, -1, count)
    return (torch.zeros_like(into).scatter(1, into, torch.cat([itself, index], 1)),
            near.new_zeros(into.shape).scatter(1, into, torch.cat([alone, (near / softness).softmax(-1)], 1)))


@op("owners_among(Tensor supports) -> Tensor")
def owners_among(supports: torch.Tensor) -> torch.Tensor:
    """The owner of each token, the first of its supports: [B, N, count] int64 -> [B, N]."""
    return supports.select(-1, 0).clone()
