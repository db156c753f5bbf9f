"""What tests/test_row_entropy.py starts with TRITON_INTERPRET=1: the kernel against the reference, on the CPU.

Prints the largest error of each case that it reads from stdin, as JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from lvtp_fx.ops.row_entropy import row_entropies
from lvtp_fx.ops.row_entropy_triton import launch, row_entropy_kernel


def tensors(case: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """q and k as a projection makes them, so not contiguous, and a mask."""
    torch.manual_seed(case["seed"])
    B, H, L, D = case["shape"]
    q, k, _ = (2 * torch.randn(B, L, 3, H, D)).permute(2, 0, 3, 1, 4)
    mask = None
    if case["mask"] == "bool":
        mask = torch.rand(B, 1, L, L) < 0.7
        mask[0, 0, L // 2] = False  # a row that sees nothing
        mask[-1, 0, L - 1, : L // 2] = False  # one that sees none of the first blocks
    elif case["mask"] == "lowest":  # how transformers hides keys
        hidden = torch.rand(B, 1, L, L) < 0.3
        hidden[:, :, : L // 2, : 3 * L // 4] = True  # rows that see the last blocks only
        hidden[0, 0, L // 2] = True
        mask = torch.zeros(B, 1, L, L).masked_fill(hidden, torch.finfo(torch.float32).min)
    elif case["mask"] == "bias":
        mask = torch.randn(H, L, L)
    elif case["mask"] == "keys":
        mask = torch.randn(B, 1, 1, L)
    return q, k, mask


def error(case: dict[str, Any]) -> float:
    q, k, mask = tensors(case)
    options = (case["scale"], case["before"], case["after"], case["orders"], case["every"])
    found = launch(row_entropy_kernel, q, k, mask, *options)
    mask = mask.double() if mask is not None and mask.is_floating_point() else mask
    wanted = row_entropies(q.double(), k.double(), mask, *options)
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max())


if __name__ == "__main__":
    print(json.dumps([error(case) for case in json.load(sys.stdin)]))
