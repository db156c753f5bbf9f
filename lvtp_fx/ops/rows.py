"""Rows of tokens by index, and the tokens that an index leaves out: `lvtp.dropped`."""

from __future__ import annotations

import torch

from lvtp_fx.ops.registry import op


def rows(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """x[b, index[b, j]]: x [B, N, C], index [B, J] -> [B, J, C]."""
    return torch.gather(x, 1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


@op("dropped(Tensor kept, int count) -> Tensor")
def dropped(kept: torch.Tensor, count: int) -> torch.Tensor:
    """The tokens that do not live on, of `count`: kept [B, K] int64 -> [B, count - K] int64, ascending."""
    return _parted(kept, count)[:, : count - kept.shape[1]]


def ascending(kept: torch.Tensor, count: int) -> torch.Tensor:
    """The same tokens, of `count`, in the order of tokens: [B, K] int64, no two alike, -> [B, K]."""
    return _parted(kept, count)[:, count - kept.shape[1] :]


def _parted(kept: torch.Tensor, count: int) -> torch.Tensor:
    """All tokens, the dropped ones before the kept ones, both ascending: [B, count] int64. A running sum says where
    each belongs, which costs a fraction of a sort."""
    token = torch.arange(count, device=kept.device).expand(kept.shape[0], count)
    lost = torch.ones_like(token).scatter(1, kept, 0)
    upto = lost.cumsum(1)  # dropped tokens up to each
    place = torch.where(lost == 1, upto - 1, count - kept.shape[1] + token - upto)
    return torch.zeros_like(token).scatter(1, place, token)
