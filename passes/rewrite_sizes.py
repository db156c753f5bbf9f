"""Rewrite literal sizes of a node for a smaller token space."""

from __future__ import annotations

import operator
from math import prod
from typing import Any, cast

import torch
from torch import fx

from lvtp_fx.passes.axes.flow import Flow, argument
from lvtp_fx.passes.axes.label import Axis, Kind, Label, length, token_factor
from lvtp_fx.passes.axes.parts import slice_bounds

aten = torch.ops.aten
_SHAPED = (aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.expand.default)


def resized(axis: Axis, tokens: int) -> int:
    """Length of an axis whose token factor holds `tokens` grid tokens."""
    return prod(f.before + tokens + f.after if f.kind is Kind.TOKEN else f.size for f in axis)


def arguments(graph: fx.Graph, node: fx.Node, args: tuple[Any, ...], flow: Flow, tokens: int) -> tuple[Any, ...]:
    """The (already mapped) arguments of `node` with token counts replaced; other nodes' arguments as they are."""
    if node.target in _SHAPED:
        out = cast(Label, flow.out)
        shape = [_scaled(graph, size, axis, tokens) for size, axis in zip(args[1], out, strict=True)]
        return (args[0], shape, *args[2:])
    if node.target is aten.unflatten.int:
        (source, dim, inner), out = args[:3], cast(Label, flow.out)
        first = dim % len(next(iter(flow.uses.values())))
        return (source, dim, [_scaled(graph, s, out[first + i], tokens) for i, s in enumerate(inner)])
    if node.target is aten.slice.Tensor:
        return _slice(node, args, flow, tokens)
    if node.target is aten.split_with_sizes.default:
        dim = argument(node, 2, "dim", 0)
        pieces = cast(tuple[Label, ...], flow.out)
        sizes = [_scaled(graph, s, piece[dim], tokens) for s, piece in zip(args[1], pieces, strict=True)]
        return (args[0], sizes, *args[2:])
    return args


def _scaled(graph: fx.Graph, size: Any, axis: Axis, tokens: int) -> Any:
    """One literal or symbolic size of an axis, for the new token count; -1 and sizes without tokens stay."""
    if token_factor(axis) is None or (isinstance(size, int) and size < 0):
        return size
    new, old = resized(axis, tokens), length(axis)
    if isinstance(size, int):
        return size * new // old
    return _times(graph, size, new, old)


def true_size(graph: fx.Graph, size: fx.Node, axis: Axis, tokens: int) -> fx.Node:
    """The length of `axis` on the full grid, from the `size` it has with `tokens` grid tokens."""
    if token_factor(axis) is None:
        return size
    return _times(graph, size, length(axis), resized(axis, tokens))


def _times(graph: fx.Graph, size: fx.Node, new: int, old: int) -> fx.Node:
    """A symbolic size that is a multiple of `old`, as the same multiple of `new`."""
    return graph.call_function(operator.floordiv, (graph.call_function(operator.mul, (size, new)), old))


def _slice(node: fx.Node, args: tuple[Any, ...], flow: Flow, tokens: int) -> tuple[Any, ...]:
    """Bounds behind the grid move with its end; a bound inside the grid would have needed the full grid."""
    label: Label = next(iter(flow.uses.values()))
    dim = argument(node, 1, "dim", 0) % len(label)
    factor = token_factor(label[dim])
    if factor is None or len(label[dim]) > 1:
        return args
    start, stop = slice_bounds(node, factor.size)
    shift = factor.size - (factor.before + tokens + factor.after)
    moved = [b - shift if isinstance(b, int) and b >= factor.size - factor.after else b for b in (start, stop)]
    return (args[0], dim, *moved)
