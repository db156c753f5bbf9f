"""Random weights at which an error of a rewritten graph shows."""

from __future__ import annotations

import torch
from torch import nn


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Overwrite all weights with ones at which nothing is close to neutral, and return the model.

    Libraries initialise LayerScale, gates and biases to almost nothing, and attention to almost uniform: a rewrite
    that lost them would pass. Here LayerScale, norms, biases, tables and tokens are of order one, and matrices make
    attention far from uniform. Buffers, running statistics among them, stay as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            leaf = name.rsplit(".", 1)[-1]
            if p.is_meta or not p.is_floating_point():
                continue
            if "gamma" in leaf or (leaf == "weight" and p.ndim == 1):  # LayerScale and norms
                p.uniform_(0.5, 1.5, generator=generator)
            elif p.ndim <= 1 or "pos" in leaf or "table" in leaf:
                p.normal_(0, 0.5, generator=generator)
            elif "token" in leaf or "queries" in leaf:
                p.normal_(0, 1, generator=generator)
            else:
                gain = 1.0 if p.ndim == 4 else 1.5  # rows of convolutions have no norms between them
                p.normal_(0, gain / p[0].numel() ** 0.5, generator=generator)
    return model
