"""`row_entropies` as one Triton kernel: scores stay on the chip, of which only row sums leave it.

It is a kernel of its own, and not a part of attention: scores with the 64 keys a row that `Config.entropy_keys` samples
are a small part of attention's, and attention keeps its fused kernel.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton
from torch.utils.flop_counter import register_flop_formula

from lvtp_fx.ops.row_entropy import of_uniform_row

BLOCK_N, BLOCK_M = 64, 32  # rows, keys


@triton.jit  # type: ignore[untyped-decorator]
def row_entropy_kernel(  # type: ignore[no-untyped-def]
    q, k, mask, out, q_b, q_h, q_n, q_d, k_b, k_h, k_n, k_d, mask_b, mask_h, mask_q, mask_k,
    H, N, every, before, depth,
    KEYS: tl.constexpr, SCALE: tl.constexpr, ORDERS: tl.constexpr, UNIFORM: tl.constexpr, Q: tl.constexpr,
    WIDE: tl.constexpr, MASKED: tl.constexpr, HIDING: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):
    """Row sums over blocks of keys, rescaled whenever a row's largest score grows (Milakov and Gimelshein 2018).

    SCALE is a constant, since compilers pass other floats in double precision; KEYS, since UNIFORM follows from it
    anyway, and since Triton 3.6's interpreter under NumPy 2.4 cannot count to a number that it was passed. HIDING: the
    mask is boolean.
    """
    n, d = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    b, h = (tl.program_id(0) // H).to(tl.int64), (tl.program_id(0) % H).to(tl.int64)
    row = (before + n).to(tl.int64)
    q_at = q + b * q_b + h * q_h + row[:, None] * q_n + d[None, :] * q_d
    queries = tl.load(q_at, mask=(n < N)[:, None] & (d < depth)[None, :], other=0.0)
    column = tl.arange(0, WIDE)[None, :]  # an order each
    top = tl.full([BLOCK_N], float("-inf"), tl.float32)
    total, inner = tl.zeros([BLOCK_N], tl.float32), tl.zeros([BLOCK_N], tl.float32)
    powers = tl.zeros([BLOCK_N, WIDE], tl.float32)
    for start in range(0, KEYS, BLOCK_M):
        j = start + tl.arange(0, BLOCK_M)
        key = j.to(tl.int64) * every
        k_at = k + b * k_b + h * k_h + key[None, :] * k_n + d[:, None] * k_d
        some = tl.load(k_at, mask=(j < KEYS)[None, :] & (d < depth)[:, None], other=0.0)
        score = tl.dot(queries, some, input_precision="ieee") * SCALE
        if MASKED:
            mask_at = mask + b * mask_b + h * mask_h + row[:, None] * mask_q + key[None, :] * mask_k
            said = tl.load(mask_at, mask=(n < N)[:, None] & (j < KEYS)[None, :], other=0)
            score = tl.where(said != 0, score, float("-inf")) if HIDING else score + said.to(tl.float32)
        score = tl.where((j < KEYS)[None, :], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)  # of a row that has seen nothing yet
        score -= safe[:, None]
        weight = tl.exp(score)
        # Finite, also where a row had seen hidden keys only, at -inf or at the type's lowest number: its product with a
        # sum stays finite too, and exp of it is 0.
        fall = tl.maximum(top - safe, -1e30)
        inner = tl.exp(fall) * (inner + total * fall) + tl.sum(weight * tl.maximum(score, -1e4), 1)
        total = tl.exp(fall) * total + tl.sum(weight, 1)
        for i in tl.static_range(Q):
            if ORDERS[i] != 1:
                sums = tl.sum(weight * weight if ORDERS[i] == 2 else tl.exp(ORDERS[i] * score), 1)
                powers = tl.where(column == i, tl.exp(ORDERS[i] * fall)[:, None] * powers + sums[:, None], powers)
        top = higher
    seen = tl.where(total > 0, total, 1.0)
    for i in tl.static_range(Q):
        if ORDERS[i] == 1:
            entropy = (tl.log(seen) - inner / seen) / UNIFORM[i]
        else:
            power = tl.sum(tl.where(column == i, powers, 0.0), 1)
            entropy = (1 - power / tl.exp(ORDERS[i] * tl.log(seen))) / (ORDERS[i] - 1) / UNIFORM[i]
        # [B, Q * H, N]
        to = out + ((b * Q + i) * H + h) * N + n
        tl.store(to, tl.where(total > 0, entropy, 0.0), mask=n < N)


@triton_op("lvtp::row_entropies_fused", mutates_args={})
def row_entropies_fused(
    q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None, scale: float | None,
    before: int, after: int, orders: list[float], every: int,
) -> torch.Tensor:
    """As `row_entropies`."""
    return launch(wrap_triton(row_entropy_kernel), q, k, mask, scale, before, after, orders, every)


@register_flop_formula(torch.ops.lvtp.row_entropies_fused)  # type: ignore[untyped-decorator]
def _flops(q: list[int], k: list[int], mask: Any, scale: Any, before: int, after: int, orders: Any, every: int,
           **_: Any) -> int:
    """Of the products, from the shapes of q and k, as the reference's are counted."""
    B, H, L, D = q
    return 2 * B * H * (L - before - after) * -(-k[2] // every) * D


def launch(
    kernel: Any, q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None, scale: float | None,
    before: int, after: int, orders: list[float], every: int,
) -> torch.Tensor:
    """Run `row_entropy_kernel`, wrapped or as it is, on as many programs as it takes."""
    B, H, L, D = q.shape
    N, keys = L - before - after, -(-k.shape[2] // every)
    if q.dtype != k.dtype or q.dtype == torch.float64:
        q, k = q.float(), k.float()  # `tl.dot` takes two of one type, and float32 is what is summed up in
    # A view; without a mask any tensor of four axes, which is not read.
    bias = q if mask is None else mask.expand(B, H, L, k.shape[2])
    out = torch.empty(B, len(orders) * H, N, dtype=torch.float32, device=q.device)
    kernel[(B * H, triton.cdiv(N, BLOCK_N))](  # CUDA allows 65,535 on the second axis
        q, k, bias, out, *q.stride(), *k.stride(), *bias.stride(), H, N, every, before, D,
        KEYS=keys, SCALE=D**-0.5 if scale is None else scale,
        ORDERS=tuple(orders), UNIFORM=tuple(of_uniform_row(order, keys) for order in orders), Q=len(orders),
        WIDE=triton.next_power_of_2(len(orders)), MASKED=mask is not None, HIDING=bias.dtype == torch.bool,
        BLOCK_N=BLOCK_N, BLOCK_M=BLOCK_M, BLOCK_D=max(16, triton.next_power_of_2(D)),
    )
    return out
