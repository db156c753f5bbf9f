"""How each op is written when rows and columns of its values are merged into one axis of tokens.

Letters: B batch, h rows, w columns, C channels. A *pair* is two neighbouring axes [.., h, w, ..] of a value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from operator import getitem
from typing import Any, cast

import torch
from torch import fx

from lvtp_fx.passes.axes import pointwise
from lvtp_fx.passes.axes.flow import argument
from lvtp_fx.passes.axes.label import Kind, Label
from lvtp_fx.passes.axes.shape import PERMUTATIONS, axis_order

aten = torch.ops.aten
_RESHAPES = (aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int)


@dataclass(frozen=True)
class Layout:
    """Which axes of a value are merged: `pairs` holds the first one of each pair."""

    rank: int
    pairs: tuple[int, ...]

    def at(self, dim: int) -> int | None:
        """Where an axis goes; None for one that is merged."""
        dim %= self.rank
        if any(dim in (pair, pair + 1) for pair in self.pairs):
            return None
        return dim - sum(pair < dim for pair in self.pairs)


def layout_of(label: Label | tuple[Label, ...], grids: set[tuple[int, int]]) -> Layout | None:
    """The pairs of a value (of each piece of a split), or None where it has none."""
    if label and label[0] and isinstance(label[0][0], tuple):
        return layout_of(label[0], grids)  # type: ignore[arg-type]
    axes = cast(Label, label)
    pairs = [i for i, (a, b) in enumerate(pairwise(axes)) if len(a) == len(b) == 1
             and (a[0].kind, b[0].kind) == (Kind.HEIGHT, Kind.WIDTH) and (a[0].size, b[0].size) in grids]
    return Layout(len(label), tuple(pairs)) if pairs else None


@dataclass(frozen=True)
class Rewriter:
    """What the ops ask for.

    Attributes:
        layout: of any value, by its label; None where nothing of it can be merged.
        merged: an operand with the pairs of a layout merged, axes lined up from the right with a value of that layout
            and of that shape.
    """

    layout: Callable[[fx.Node], Layout | None]
    merged: Callable[[fx.Node, Layout, Any], fx.Node]

    def like(self, node: fx.Node) -> fx.Node:
        """An operand with its own pairs merged."""
        layout = self.layout(node)
        assert layout is not None
        value = node.meta["val"]
        return self.merged(node, layout, value.shape)


Written = tuple[Any, tuple[Any, ...], dict[str, Any]] | None  # target, args and kwargs; None: it needs the pairs apart


def written(node: fx.Node, to: Rewriter) -> Written:
    """The op on merged values, for a node whose output has pairs."""
    target = node.target
    if target in _RESHAPES:
        return _reshape(node, to)
    if target in _ALONG:
        return _along(node, to)
    if rule := _RULES.get(target):
        return rule(node, to)
    if target is getitem:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        return (target, node.args, dict(node.kwargs)) if to.layout(source) and written(source, to) else None
    if pointwise.is_pointwise(target) or pointwise.RULES.get(target) is pointwise.like_first:
        return _pointwise(node, to)
    return None


def _pointwise(node: fx.Node, to: Rewriter) -> Written:
    """`[B, h, w, C] + [h, w, C]` as `[B, h * w, C] + [h * w, C]`."""
    layout = to.layout(node)
    if layout is None or node.kwargs.get("memory_format") not in (None, torch.contiguous_format, torch.preserve_format):
        return None

    def one(n: fx.Node) -> fx.Node:
        value = n.meta.get("val")
        return to.merged(n, layout, node.meta["val"].shape) if isinstance(value, torch.Tensor) else n

    args, kwargs = fx.map_arg((node.args, node.kwargs), one)
    return node.target, args, kwargs


def _last(node: fx.Node, to: Rewriter) -> Written:
    """`linear`, `layer_norm`, and products with a matrix: what they work on lies behind the pairs."""
    x = node.args[0]
    assert isinstance(x, fx.Node)
    layout, count = to.layout(x), 1
    if node.target in _NORMS:
        count = len(argument(node, 1, "normalized_shape"))
    elif node.target is aten.matmul.default:
        other = node.args[1]
        if not isinstance(other, fx.Node) or other.meta["val"].ndim != 2:
            return None
    if layout is None or layout.pairs[-1] + 1 >= layout.rank - count:
        return None
    return node.target, (to.like(x), *node.args[1:]), dict(node.kwargs)


def _channels(node: fx.Node, to: Rewriter) -> Written:
    """Batch norms in eval mode and the like: [B, C, h, w], numbers for each channel."""
    x = node.args[0]
    assert isinstance(x, fx.Node)
    layout = to.layout(x)
    return (node.target, (to.like(x), *node.args[1:]), dict(node.kwargs)) if layout and layout.pairs[0] > 1 else None


def _along(node: fx.Node, to: Rewriter) -> Written:
    """Softmax, reductions, slices, splits and the like along other axes."""
    assert isinstance(node.target, torch._ops.OpOverload)
    x, schema = node.args[0], node.target._schema.arguments
    assert isinstance(x, fx.Node)
    at = [a.name for a in schema].index("dim")
    layout, dims = to.layout(x), argument(node, at, "dim", schema[at].default_value)
    if layout is None or dims is None or dims == []:
        return None
    found = [layout.at(d) for d in (dims if isinstance(dims, (list, tuple)) else [dims])]
    if None in found:
        return None
    moved: Any = found if isinstance(dims, (list, tuple)) else found[0]
    args = (to.like(x), *node.args[1:at], *([moved] if at < len(node.args) else []), *node.args[at + 1 :])
    kwargs = dict(node.kwargs) if len(node.args) > at else {**node.kwargs, "dim": moved}
    return node.target, args, kwargs


def _permute(node: fx.Node, to: Rewriter) -> Written:
    """Pairs that stay neighbours move as one."""
    x = node.args[0]
    assert isinstance(x, fx.Node)
    layout, after = to.layout(x), to.layout(node)
    if layout is None or after is None or len(layout.pairs) != len(after.pairs):
        return None
    seconds = {pair + 1 for pair in layout.pairs}
    order = [d - sum(s <= d for s in seconds) for d in axis_order(node, layout.rank) if d not in seconds]
    return aten.permute.default, (to.like(x), order), {}


def _unsqueeze(node: fx.Node, to: Rewriter) -> Written:
    x, layout = node.args[0], to.layout(node)
    assert isinstance(x, fx.Node)
    if layout is None or to.layout(x) is None:
        return None
    return node.target, (to.like(x), layout.at(argument(node, 1, "dim"))), {}


def _cat(node: fx.Node, to: Rewriter) -> Written:
    """`cat`, `stack` along an axis that is not merged."""
    layout, operands = to.layout(node), list(argument(node, 0, "tensors"))
    dim = None if layout is None else layout.at(argument(node, 1, "dim", 0))
    first = to.layout(operands[0])
    if dim is None or first is None or any(to.layout(n) != first for n in operands):
        return None
    return node.target, ([to.like(n) for n in operands], dim), {}


def _reshape(node: fx.Node, to: Rewriter) -> Written:
    """A reshape to [.., h, w, ..] is one to [.., h * w, ..], whatever it reads."""
    layout, shape = to.layout(node), reshaped(node)
    if layout is None or shape is None:
        return None
    sizes = node.meta["val"].shape
    for pair in reversed(layout.pairs):
        shape[pair : pair + 2] = [int(sizes[pair]) * int(sizes[pair + 1])]
    return aten.reshape.default, (node.args[0], shape), {}


def reshaped(node: fx.Node) -> list[Any] | None:
    """The shape that a view takes, as `reshape` wants it; None where that is not known, and for other ops."""
    if node.target not in _RESHAPES:
        return None
    if node.target is aten.reshape.default:
        return list(argument(node, 1, "shape"))
    sizes = [s if isinstance(s, int) else -1 for s in node.meta["val"].shape]
    return sizes if sizes.count(-1) < 2 else None


_NORMS = (aten.layer_norm.default, aten.rms_norm.default)
_ALONG = (
    aten.softmax.int, aten._softmax.default, aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default,
    aten.max.dim, aten.min.dim, aten.var.correction, aten.var.dim, aten.std.correction, aten.std.dim,
    aten.linalg_vector_norm.default, aten.glu.default, aten.slice.Tensor, aten.select.int, aten.unbind.int,
    aten.squeeze.dim, aten.squeeze.dims, aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)
_RULES: dict[object, Callable[[fx.Node, Rewriter], Written]] = {
    **dict.fromkeys((aten.linear.default, aten.matmul.default, *_NORMS), _last),
    **dict.fromkeys((aten._native_batch_norm_legit_no_training.default, aten.prelu.default), _channels),
    **dict.fromkeys(PERMUTATIONS, _permute),
    aten.unsqueeze.default: _unsqueeze,
    **dict.fromkeys((aten.cat.default, aten.stack.default), _cat),
}
