"""Run a graph as often as need be, without a trace in the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter

import torch
from torch import fx


@contextmanager
def kept_state(module: fx.GraphModule) -> Iterator[None]:
    """Put back the buffers that the graph writes into (a counter, a running mean), which are the user's model's."""
    written = [attrgetter(str(node.args[0].target))(module) for node in module.graph.nodes
               if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
               and isinstance(node.args[0], fx.Node) and node.args[0].op == "get_attr"]
    before = [tensor.clone() for tensor in written]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, old in zip(written, before, strict=True):
                tensor.copy_(old)
