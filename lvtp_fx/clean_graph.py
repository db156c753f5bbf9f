"""From what torch.export hands over to a graph that is easy to read: no checks, one name an op, no views that change
nothing."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import fx

from lvtp_fx.batch_axis import fixed_size
from lvtp_fx.flat_rows import flatten_rows
from lvtp_fx.fold_masks import fold_masks
from lvtp_fx.join_writes import join_writes
from lvtp_fx.passes.attention_scores import same

aten = torch.ops.aten
_PADS = (aten.pad.default, aten.constant_pad_nd.default)
OTHER_NAMES = {  # of ops with the same overloads
    "multiply": "mul", "subtract": "sub", "divide": "div", "true_divide": "div", "negative": "neg", "absolute": "abs",
    "concat": "cat", "concatenate": "cat", "fix": "trunc", "special_expit": "sigmoid", "special_erf": "erf",
    "special_exp2": "exp2", "special_expm1": "expm1", "special_log1p": "log1p", "greater": "gt", "greater_equal": "ge",
    "less": "lt", "less_equal": "le", "not_equal": "ne", "arctan": "atan",
}


def clean(module: fx.GraphModule, batch: int) -> fx.GraphModule:
    """Drop checks of metadata and the modules that export adds, which would keep dead values alive, masks that mask
    nothing and pads by nothing; let views be reshapes, since gathered values have other strides than the captured ones
    (and what is read as it lies in memory is laid out so), writes into parts joins, and tokens in rows and columns one
    axis; give ops that torch has under two names one of them (`torch.multiply` is `mul`). `batch` stands for the batch
    size."""
    graph = copy_graph(module.graph)
    for node in reversed(graph.nodes):
        name = str(node.target)
        target = node.target
        if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten" and \
                target._opname in OTHER_NAMES:
            node.target = getattr(getattr(aten, OTHER_NAMES[target._opname]), target._overloadname)
        elif target in _PADS and not any(node.args[1]):
            node.replace_all_uses_with(node.args[0])
        elif target is aten.hstack.default and node.meta["val"].ndim > 1:
            node.target, node.args = aten.cat.default, (node.args[0], 1)
        elif target is aten.special_softmax.default:
            node.target = aten.softmax.int
        elif target is aten.type_as.default:  # of the other tensor nothing is read but its type
            node.target, node.args = aten.to.dtype, (node.args[0], node.meta["val"].dtype)
        elif target is aten.as_strided.default and (order := _order_in_memory(node.args[0].meta["val"])):
            with graph.inserting_before(node):
                turned = graph.call_function(aten.permute.default, (node.args[0], order))
                laid_out = graph.call_function(aten.clone.default, (turned,),
                                               {"memory_format": torch.contiguous_format})
            for made in (turned, laid_out):
                made.meta = {**node.args[0].meta, "val": node.args[0].meta["val"].permute(order)}
            node.update_arg(0, laid_out)
        if node.op == "call_module" or "_assert_" in name or "sym_constrain_range" in name:
            graph.erase_node(node)
        elif node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
    drop_views(graph)
    join_writes(graph)
    fold_masks(graph)
    flatten_rows(graph, batch)
    drop_views(graph)
    graph.eliminate_dead_code()
    # A fresh module leaves export's hooks behind; parameters stay the same objects.
    return fx.GraphModule(module, graph)


def _order_in_memory(value: torch.Tensor) -> list[int]:
    """The axes from the outermost in memory to the innermost; none where the value has gaps in memory, or overlaps."""
    order, strides = list(range(value.ndim)), value.stride()
    if not value.is_contiguous() and None not in map(fixed_size, strides):
        order.sort(key=lambda axis: -strides[axis])
    return order if value.permute(order).is_contiguous() else []


def drop_views(graph: fx.Graph) -> None:
    """Drop reshapes that change nothing (a hook's, or those of a model that serves several shapes: they would hide a
    residual stream), or lead back to the shape that an earlier one began with."""
    for node in graph.find_nodes(op="call_function", target=aten.reshape.default):
        source = node
        while source.target is aten.reshape.default:
            source = source.args[0]
            if same(source.meta["val"].shape, node.meta["val"].shape):
                node.replace_all_uses_with(source)
                graph.erase_node(node)
                break


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """A deep copy."""
    with quiet_copies():
        return copy.deepcopy(graph)


@contextmanager
def quiet_copies() -> Iterator[None]:
    """torch up to 2.13 warns of its own pytree classes while graphs are copied."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
        yield
