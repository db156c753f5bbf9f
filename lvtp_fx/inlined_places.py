"""Places in the model of what torch.export wraps into a graph of its own (autocast, no_grad, a checkpoint), and what
`run_decompositions` puts back into the whole graph as if all of it came from the one place of the wrapper."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

Places = dict[tuple[str, str], dict[str, Any]]
_NAME = re.compile(r"(\w+) = torch\.ops\.")  # how the code of a wrapped graph begins a line, and names its node
_KEPT = ("nn_module_stack", "stack_trace")


def wrapped_places(program: ExportedProgram) -> Places:
    """By the names of the wrapping node and of the wrapped one."""
    found: Places = {}
    for node in program.graph.nodes:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            for operand in node.all_input_nodes:
                wrapped = getattr(program.graph_module, str(operand.target), None) if operand.op == "get_attr" else None
                for inner in wrapped.graph.nodes if isinstance(wrapped, fx.GraphModule) else ():
                    if inner.meta.get("nn_module_stack"):
                        found[node.name, inner.name] = {key: inner.meta[key] for key in _KEPT if key in inner.meta}
    return found


def give_places(graph: fx.Graph, places: Places) -> None:
    """Changes the `meta` of nodes that were wrapped: `nn_module_stack` and `stack_trace`."""
    for node in graph.nodes if places else ():
        sources = [source for source in node.meta.get("from_node") or () if source.from_node]
        wrapper = sources[0].from_node[-1].name if sources else ""
        lines = (node.meta.get("stack_trace") or "").strip().splitlines()
        if lines and (name := _NAME.match(lines[-1].strip())):
            node.meta.update(places.get((wrapper, name[1]), {}))
