"""Entropies of attention rows, at several orders: the reference, in parts where the scores would be large.

Letters: B batch, H heads, L tokens with prefix and suffix, N grid tokens, D head dim, Q entropy orders.
"""

from __future__ import annotations

from importlib.util import find_spec
from math import log

import torch

from lvtp_fx.ops.nan import without_nan

TINY = 1e-6
_PART, _PARTS = 1 << 22, 16  # scores that one head of one image may hold at a time; parts at most


def row_entropies(
    q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None, scale: float | None,
    before: int, after: int, orders: list[float], every: int,
) -> torch.Tensor:
    """Tsallis entropies of each grid token's attention row over every `every`-th key: [B, Q * H, N] float32, in [0, 1].

    S_q(p) = (1 - sum_j p_j^q) / (q - 1) (Tsallis 1988; q = 1: Shannon), divided by its value on the uniform row. A row
    that sees no sampled key is focused: 0.

    All rows are scored at once where that is little, which compilers fuse well; else a part of them at a time. On CUDA,
    where Triton is installed, a kernel then keeps the scores on the chip instead (`row_entropy_triton`), but not in
    files that `torch.export` writes, which are read where this package is not. The kernel has no gradients: only ranks
    are made of entropies.

    Args: as of `lvtp.entropy`.
    """
    N, keys = q.shape[2] - before - after, slice(None, None, every)
    parts = min(_PARTS, -(-N * -(-k.shape[2] // every) // _PART))
    if parts <= 1:
        return _entropies(scores(q, k, mask, scale, slice(before, before + N), keys), orders)
    if q.is_cuda and not torch.compiler.is_exporting() and find_spec("triton") is not None:
        from lvtp_fx.ops.row_entropy_triton import row_entropies_fused

        q, k, mask = q.detach(), k.detach(), mask if mask is None else mask.detach()
        fused: torch.Tensor = row_entropies_fused(q, k, mask, scale, before, after, orders, every)
        return fused
    step = -(-N // parts)
    found = [_entropies(scores(q, k, mask, scale, slice(start, min(start + step, before + N)), keys), orders)
             for start in range(before, before + N, step)]
    return torch.cat(found, dim=-1)


def scores(
    q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None, scale: float | None, queries: slice, keys: slice
) -> torch.Tensor:
    """Attention scores of some queries with some keys: [B, H, rows, columns] float32."""
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    found = torch.matmul(q[:, :, queries] * factor, k[:, :, keys].transpose(-2, -1)).float()
    if mask is None:
        return found
    mask = mask[..., queries, keys] if mask.ndim > 1 and mask.shape[-2] != 1 else mask[..., keys]
    return found + additive(mask, found.dtype)


def additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A boolean mask (true: attend) or an additive one as an additive one."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf)
    return mask.to(dtype)


def of_uniform_row(order: float, keys: int) -> float:
    """The entropy of a row that sees all keys alike; more than 0."""
    if order == 1:
        return max(log(keys), TINY)
    return max((1 - float(pow(keys, 1 - order))) / (order - 1), TINY)


def _entropies(scores: torch.Tensor, orders: list[float]) -> torch.Tensor:
    """Of rows of scores [B, H, rows, columns]: [B, Q * H, rows]."""
    keys = scores.shape[-1]
    scores = scores - scores.amax(-1, keepdim=True)
    weight = scores.exp()  # unnormalised attention
    total = weight.sum(-1)
    found = []
    for order in orders:
        if order == 1:
            # -sum p log p = log Z - sum w s / Z; a score of -inf has weight 0 and adds nothing.
            entropy = total.log() - (weight * scores.clamp(min=-1e4)).sum(-1) / total
        else:
            power = weight.sqrt() if order == 0.5 else weight * weight if order == 2 else weight**order
            entropy = (1 - power.sum(-1) / total**order) / (order - 1)
        found.append(entropy / of_uniform_row(order, keys))
    stacked = torch.cat(found, dim=1)
    return without_nan(stacked, 0.0)  # a row whose scores are all -inf
