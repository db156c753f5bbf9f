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
    lost = torch.ones(kept.shape[0], count, dtype=torch.uint8, device=kept.device).scatter(1, kept, 0)
    return torch.sort(lost, dim=-1, descending=True, stable=True).indices[:, : count - kept.shape[1]]
