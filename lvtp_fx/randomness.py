"""Ops of a graph that draw random numbers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

aten = torch.ops.aten


def random_nodes(graph: fx.Graph) -> Iterator[fx.Node]:
    """Nodes that draw random numbers, attention with dropout among them."""
    for node in graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target is aten.scaled_dot_product_attention.default:  # tagged as random, whatever its dropout
            if (node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0.0)) != 0:
                yield node
        elif torch.Tag.nondeterministic_seeded in node.target.tags:
            yield node
