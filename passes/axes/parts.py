"""Rules for ops that take an axis apart, or join several: slices, splits, concatenations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from lvtp_fx.passes.axes.flow import Flow, Reader, Rule, align, argument, read_as, tensors
from lvtp_fx.passes.axes.label import (
    Axis,
    Factor,
    Kind,
    Label,
    has_kind,
    is_plain,
    length,
    mixed,
    plain,
    token,
    token_axes,
    token_factor,
)

aten = torch.ops.aten


def select(node: fx.Node, reader: Reader) -> Flow:
    """One entry of an axis: a prefix or suffix token may be picked in any space."""
    x = tensors(node)[0]
    label = reader.label(x)
    dim, index = argument(node, 1, "dim") % len(label), argument(node, 2, "index")
    axis, out = label[dim], label[:dim] + label[dim + 1 :]
    factor = token_factor(axis)
    if factor is None:
        return Flow(out, {x: label}, "one image of the batch is picked" if mixed((axis,)) else "")
    inside = isinstance(index, int) and len(axis) == 1 and (
        0 <= index < factor.before or -factor.after <= index < 0
    )
    return Flow(out, {x: label}, "" if inside else "one token of the grid is picked")


def unbind(node: fx.Node, reader: Reader) -> Flow:
    x = tensors(node)[0]
    label = reader.label(x)
    dim = argument(node, 1, "dim", 0) % len(label)
    out = label[:dim] + label[dim + 1 :]
    pieces = (out,) * len(node.meta["val"])
    what = mixed((label[dim],))
    return Flow(pieces, {x: label}, f"an axis of {what} is unbound" if what else "")


def cut(axis: Axis, start: int, stop: int) -> tuple[Axis, bool]:
    """The label of entries [start, stop) of an axis, and whether cutting there needs the full grid."""
    factor = token_factor(axis)
    if start == 0 and stop == length(axis):
        return axis, False
    if factor is None:
        # A part of an image axis or of a batch is no longer that axis.
        return plain(stop - start), has_kind(axis, Kind.BATCH)
    if len(axis) > 1:
        return plain(stop - start), True
    first, last = factor.before, factor.size - factor.after
    if start <= first and stop >= last:
        return (token(factor.grid, first - start, stop - last),), False
    outside = stop <= first or start >= last
    return plain(stop - start), not outside


def slice_(node: fx.Node, reader: Reader) -> Flow:
    x = tensors(node)[0]
    label = reader.label(x)
    dim = argument(node, 1, "dim", 0) % len(label)
    if is_plain(label[dim]):
        return Flow((*label[:dim], plain(reader.out_sizes(node)[dim]), *label[dim + 1 :]), {x: label})
    start, stop = slice_bounds(node, length(label[dim]))
    step = argument(node, 4, "step", 1)
    if step != 1 or not isinstance(start, int) or not isinstance(stop, int):
        axes = list(reader.unknown(node.meta["val"]))
        rows = label[dim][0]
        if rows.kind in (Kind.HEIGHT, Kind.WIDTH) and len(label[dim]) == 1 and length(axes[dim]) * step == rows.size:
            axes = [*label[:dim], (Factor(rows.kind, length(axes[dim])),), *label[dim + 1 :]]  # patches are merged
        return Flow(tuple(axes), {}, "a strided slice of the tokens")
    axis, full = cut(label[dim], start, stop)
    return Flow((*label[:dim], axis, *label[dim + 1 :]), {x: label}, "a slice cuts the grid" if full else "")


def slice_bounds(node: fx.Node, n: int) -> tuple[object, object]:
    """Start and stop of a slice of an axis of length n, as non-negative integers where they are static."""
    start, stop = argument(node, 2, "start", None), argument(node, 3, "end", None)
    start = 0 if start is None else start
    stop = n if stop is None else stop
    wrap = [max(0, min(n, s + n if s < 0 else s)) if isinstance(s, int) else s for s in (start, stop)]
    return wrap[0], wrap[1]


def split(node: fx.Node, reader: Reader) -> Flow:
    """`split chunk split_with_sizes`: the pieces of the token axis must be prefix, grid and suffix."""
    x = tensors(node)[0]
    label = reader.label(x)
    dim = argument(node, 2, "dim", 0) % len(label)
    pieces: list[Label] = []
    full, start = False, 0
    for value in node.meta["val"]:
        stop = start + reader.sizes(value)[dim]
        axis, bad = cut(label[dim], start, stop)
        pieces.append((*label[:dim], axis, *label[dim + 1 :]))
        full, start = full or bad, stop
    # Only explicit sizes can be rewritten for a smaller space.
    full = full or (bool(token_axes((label[dim],))) and node.target is not aten.split_with_sizes.default)
    return Flow(tuple(pieces), {x: label}, "the grid is cut into pieces" if full else "")


def cat(node: fx.Node, reader: Reader) -> Flow:
    """Prefix or suffix tokens may be joined to one token axis; other axes are lined up."""
    operands = list(argument(node, 0, "tensors"))
    labels = [reader.label(n) for n in operands]
    rank = len(reader.out_sizes(node))
    if any(len(label) != rank for label in labels):
        return Flow(reader.unknown(node.meta["val"]), {}, "tensors of different rank are joined")
    dim = argument(node, 1, "dim", 0) % rank
    columns = align([(*label[:dim], plain(1), *label[dim + 1 :]) for label in labels], rank)
    joined, reason = _join([label[dim] for label in labels])
    if any(c is None for c in columns):
        return Flow(reader.unknown(node.meta["val"]), {}, "joined tensors line different axes up with the tokens")
    out = tuple(joined if i == dim else c for i, c in enumerate(columns) if c is not None)
    uses = {}
    for n, label in zip(operands, labels, strict=True):
        aligned = read_as(label, columns)
        uses[n] = (*aligned[:dim], label[dim], *aligned[dim + 1 :])
    return Flow(out, uses, reason)


def _join(axes: Sequence[Axis]) -> tuple[Axis, str]:
    """The label of axes one behind the other, and why joining them needs the full grid, if it does."""
    total = sum(length(a) for a in axes)
    with_tokens = [i for i, a in enumerate(axes) if token_axes((a,))]
    if not with_tokens and any(has_kind(a, Kind.BATCH) for a in axes):
        whole = all(len(a) == 1 for a in axes) and all(a == axes[0] for a in axes)
        return ((Factor(Kind.PLAIN, len(axes)), *axes[0]) if whole else plain(total)), "batches are joined"
    if not with_tokens:
        return plain(total), ""
    (at, *more), axis = with_tokens, axes[with_tokens[0]]
    factor = token_factor(axis)
    if more or len(axis) > 1 or factor is None:
        return plain(total), "two token axes are joined"
    before = factor.before + sum(length(a) for a in axes[:at])
    after = factor.after + sum(length(a) for a in axes[at + 1 :])
    return (token(factor.grid, before, after),), ""


def stack(node: fx.Node, reader: Reader) -> Flow:
    operands = list(argument(node, 0, "tensors"))
    labels = [reader.label(n) for n in operands]
    columns = align(labels, len(labels[0]))
    if any(c is None for c in columns):
        return Flow(reader.unknown(node.meta["val"]), {}, "stacked tensors line different axes up with the tokens")
    dim = argument(node, 1, "dim", 0) % (len(columns) + 1)
    axes = [c for c in columns if c is not None]
    out = (*axes[:dim], plain(len(operands)), *axes[dim:])
    return Flow(out, {n: read_as(label, columns) for n, label in zip(operands, labels, strict=True)})


RULES: dict[object, Rule] = {
    aten.select.int: select,
    aten.unbind.int: unbind,
    aten.slice.Tensor: slice_,
    **dict.fromkeys((aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default), split),
    aten.cat.default: cat,
    aten.stack.default: stack,
}
