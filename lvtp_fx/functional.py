"""The graph of a program that writes into nothing that is read elsewhere, without a second trace."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from lvtp_fx.batch_axis import fixed_size

aten = torch.ops.aten
Sizes = dict[Any, fx.Node]  # nodes by the symbolic expression that they are

_VIEWS = frozenset({  # views that stay as they are
    aten.alias.default, aten.detach.default, aten.diagonal.default, aten.expand.default, aten.permute.default,
    aten.select.int, aten.slice.Tensor, aten.split.Tensor, aten.split_with_sizes.default, aten.squeeze.default,
    aten.squeeze.dim, aten.squeeze.dims, aten.t.default, aten.transpose.int, aten.unbind.int, aten.unfold.default,
    aten.unsqueeze.default, aten.view.default, aten.view_as_complex.default, aten.view_as_real.default,
})
_MAKES = frozenset({  # ops that surely return a tensor of their own: einsum, say, may return a view without a word
    aten.add.Tensor, aten.batch_norm.default, aten.conv2d.default, aten.conv_transpose2d.input, aten.div.Tensor,
    aten.layer_norm.default, aten.linear.default, aten.mul.Tensor, aten.sub.Tensor,
})
_ELSEWHERE = {  # what writes its result elsewhere than in its first argument, in the same type
    aten.add_.Tensor: aten.add.Tensor, aten.div_.Tensor: aten.div.Tensor, aten.gelu_.default: aten.gelu.default,
    aten.hardswish_.default: aten.hardswish.default, aten.hardtanh_.default: aten.hardtanh.default,
    aten.leaky_relu_.default: aten.leaky_relu.default, aten.mul_.Tensor: aten.mul.Tensor,
    aten.relu_.default: aten.relu.default, aten.silu_.default: aten.silu.default, aten.sub_.Tensor: aten.sub.Tensor,
}


class _Unknown(Exception):
    """A node that is left to torch."""


def functional(program: ExportedProgram) -> fx.GraphModule | None:
    """What `program.run_decompositions({}).module()` is, or None where that is left to torch.

    Tracing a program again takes longer than tracing the model did, and most programs need it for ops alone that stand
    for others, as `flatten` does for `reshape` and a dropout in eval mode for nothing. These are written out here:

        %0 = aten.flatten.using_ints(%conv, 2)                %0 = aten.reshape(%conv, [%sym_size, 64, 196])
        %1 = aten.dropout(%0, 0.0, False)               ->
        %2 = aten.chunk(%1, 2, 1)                             %2 = aten.split.Tensor(%0, 32, 1)

    Ops that write into what nothing else reads, as a ReLU behind a convolution, write elsewhere. Programs with other
    writes, wrapped graphs (autocast, no_grad), or other ops that may return a view are left to torch. A `reshape` stays
    one op; torch makes `clone` and `_unsafe_view` of those that copy.
    """
    if not all(_is_known(node) for node in program.graph.nodes):
        return None
    module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    sizes: Sizes = {}
    try:
        for node in list(module.graph.nodes):
            value = node.meta.get("val")
            if isinstance(value, torch.SymInt):
                sizes.setdefault(value.node.expr, node)
            elif node.target in _ELSEWHERE:
                node.target = _ELSEWHERE[node.target]
            elif node.target in _WRITTEN_OUT:
                with module.graph.inserting_before(node):
                    other = _WRITTEN_OUT[node.target](node, sizes)
                node.replace_all_uses_with(other)
                module.graph.erase_node(node)
    except _Unknown:
        return None
    module.recompile()
    return module


def _is_known(node: fx.Node) -> bool:
    """Whether it stays as it is, or may be written out."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return not isinstance(target, torch._ops.HigherOrderOperator)
    plain = torch.Tag.maybe_aliasing_or_mutating not in target.tags and \
        not any(argument.alias_info for argument in target._schema.arguments)
    return plain or target in _VIEWS or target in _WRITTEN_OUT or _writes_unseen(node)


def _writes_unseen(node: fx.Node) -> bool:
    """Whether a node writes into a tensor that nothing else reads, as the ReLU behind a convolution does."""
    while node.target in _ELSEWHERE:
        own = node.args[0]
        values = [x.meta["val"] for x in node.args if isinstance(x, fx.Node)]
        types = {value.dtype for value in values if isinstance(value, torch.Tensor)}
        if not isinstance(own, fx.Node) or len(own.users) > 1 or len(types) > 1:
            return False
        if own.target in _MAKES:
            return True
        node = own
    return False


def _given(node: fx.Node) -> dict[str, Any]:
    """A node's arguments by their names, without the defaults."""
    names = (argument.name for argument in node.target._schema.arguments)  # type: ignore[union-attr]
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _call(node: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """In the place of `node`."""
    made = node.graph.call_function(target, args, kwargs)
    made.meta = dict(node.meta)
    return made


def _shape(node: fx.Node, sizes: Sizes) -> list[int | fx.Node]:
    return [_size(node, size, sizes) for size in node.meta["val"].shape]


def _size(node: fx.Node, size: int | torch.SymInt, sizes: Sizes) -> int | fx.Node:
    """As an argument of `node`, or of what takes its place."""
    fixed = fixed_size(size)
    if fixed is not None:
        return fixed
    expression = size.node.expr  # type: ignore[union-attr]
    found = _node_of(expression, node.graph, sizes)
    if found is not None:
        return found
    factor, symbol = expression.as_coeff_Mul()
    base = _node_of(symbol, node.graph, sizes)
    if base is None or not factor.is_Integer:
        raise _Unknown
    sizes[expression] = made = node.graph.call_function(operator.mul, (base, int(factor)))
    made.meta["val"] = size
    return made


def _node_of(expression: Any, graph: fx.Graph, sizes: Sizes) -> fx.Node | None:
    """The node that is that size; where only an input has it, one that reads it off is made."""
    if expression in sizes:
        return sizes[expression]
    inputs = graph.find_nodes(op="placeholder")
    for node in inputs:
        for axis, size in enumerate(getattr(node.meta.get("val"), "shape", ())):
            if isinstance(size, torch.SymInt) and size.node.expr == expression:
                with graph.inserting_after(inputs[-1]):
                    sizes[expression] = made = graph.call_function(aten.sym_size.int, (node, axis))
                made.meta["val"] = size
                return made
    return None


def _reshape(node: fx.Node, sizes: Sizes) -> fx.Node:
    return _call(node, aten.reshape.default, node.args[0], _shape(node, sizes))


def _expand(node: fx.Node, sizes: Sizes) -> fx.Node:
    return _call(node, aten.expand.default, node.args[0], _shape(node, sizes))


def _dropout(node: fx.Node, _: Sizes) -> Any:
    if _given(node)["train"]:
        raise _Unknown
    return node.args[0]


def _contiguous(node: fx.Node, _: Sizes) -> Any:
    source: Any = node.args[0]
    if node.kwargs:  # another memory format
        raise _Unknown
    if source.meta["val"].is_contiguous():
        return source
    return _call(node, aten.clone.default, source, memory_format=torch.contiguous_format)


def _to(node: fx.Node, _: Sizes) -> Any:
    source: Any = node.args[0]
    before, after, given = source.meta["val"], node.meta["val"], _given(node)
    if given.get("copy") or given.get("memory_format") or \
            (before.device, before.layout) != (after.device, after.layout):
        raise _Unknown
    return source if before.dtype == after.dtype else _call(node, aten._to_copy.default, source, dtype=after.dtype)


def _chunk(node: fx.Node, sizes: Sizes) -> fx.Node:
    given = _given(node)
    dim = given.get("dim", 0)
    first = _size(node, node.meta["val"][0].shape[dim], sizes)
    if first == 0:  # which split cuts into one piece, whatever was asked for
        raise _Unknown
    return _call(node, aten.split.Tensor, given["self"], first, dim)


def _transpose(node: fx.Node, _: Sizes) -> fx.Node:
    return _call(node, aten.transpose.int, node.args[0], -2, -1)


def _batch_norm(node: fx.Node, _: Sizes) -> fx.Node:
    given = _given(node)
    if given["training"]:
        raise _Unknown
    names = ("input", "weight", "bias", "running_mean", "running_var", "momentum", "eps")
    both = _call(node, aten._native_batch_norm_legit_no_training.default, *(given[name] for name in names))
    value = node.meta["val"]
    both.meta["val"] = value, value.new_empty(0), value.new_empty(0)
    return _call(node, operator.getitem, both, 0)


_WRITTEN_OUT: dict[Any, Callable[[fx.Node, Sizes], Any]] = {
    aten.reshape.default: _reshape,
    aten.flatten.using_ints: _reshape,
    aten.unflatten.int: _reshape,
    aten.view_as.default: _reshape,
    aten.expand_as.default: _expand,
    aten.dropout.default: _dropout,
    aten.contiguous.default: _contiguous,
    aten.to.dtype: _to,
    aten.to.dtype_layout: _to,
    aten.to.device: _to,
    aten.chunk.default: _chunk,
    aten.mT.default: _transpose,
    aten.batch_norm.default: _batch_norm,
}
