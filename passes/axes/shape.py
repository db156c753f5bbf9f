"""Rules for ops that only move axes: views, permutations, slices, concatenations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from lvtp_fx.passes.axes.flow import Flow, Reader, Rule, align, argument, named, read_as, tensors
from lvtp_fx.passes.axes.label import (
    Axis,
    Factor,
    Kind,
    Label,
    has_kind,
    is_plain,
    length,
    mixed,
    normal,
    plain,
    regroup,
    token,
    token_axes,
    token_factor,
)

aten = torch.ops.aten


def view(node: fx.Node, reader: Reader) -> Flow:
    x = tensors(node)[0]
    label = reader.label(x)
    out, split = regroup(label, reader.out_sizes(node))
    if out is None:
        return Flow(reader.unknown(node.meta["val"]), {}, "a reshape cuts across the token axis")
    full = "a reshape lays the tokens out as a grid" if split else ""
    return Flow(out, {x: label}, full)


def permute(node: fx.Node, reader: Reader) -> Flow:
    x = tensors(node)[0]
    label = reader.label(x)
    return Flow(tuple(label[d] for d in axis_order(node, len(label))), {x: label})


def axis_order(node: fx.Node, rank: int) -> list[int]:
    """Which axis of its operand each axis of a `permute`, `transpose` or `t` is."""
    if node.target is aten.permute.default:
        return [d % rank for d in argument(node, 1, "dims")]
    a, b = (0, 1) if node.target is aten.t.default else (named(node, "dim0"), named(node, "dim1"))
    order = list(range(rank))
    order[a], order[b] = order[b], order[a]
    return order


def unsqueeze(node: fx.Node, reader: Reader) -> Flow:
    x = tensors(node)[0]
    label = reader.label(x)
    dim = argument(node, 1, "dim") % (len(label) + 1)
    return Flow((*label[:dim], plain(1), *label[dim:]), {x: label})


def squeeze(node: fx.Node, reader: Reader) -> Flow:
    x = tensors(node)[0]
    label = reader.label(x)
    dims = argument(node, 1, "dim")
    dims = range(len(label)) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {d % len(label) for d in dims if length(label[d]) == 1}
    return Flow(tuple(axis for i, axis in enumerate(label) if i not in gone), {x: label})


def expand(node: fx.Node, reader: Reader) -> Flow:
    """Axes of length 1 are repeated; the batch axis is the one whose new length is the batch."""
    x = tensors(node)[0]
    label = reader.label(x)
    shape = reader.out_sizes(node)
    lead = len(shape) - len(label)
    fresh = reader.unknown(node.meta["val"])
    out = tuple(
        label[i - lead] if i >= lead and length(label[i - lead]) == size else fresh[i]
        for i, size in enumerate(shape)
    )
    return Flow(out, {x: label})


def repeat(node: fx.Node, reader: Reader) -> Flow:
    """`repeat tile repeat_interleave`: heads that several heads share are written out; other axes stay as they are."""
    x = tensors(node)[0]
    label = reader.label(x)
    shape = reader.out_sizes(node)
    axes = (*[plain(1)] * (len(shape) - len(label)), *label)
    repeated = [axis for axis, size in zip(axes, shape, strict=True) if length(axis) != size]
    if not all(map(is_plain, repeated)):
        return Flow(reader.unknown(node.meta["val"]), {}, "tokens or images are repeated")
    return Flow(tuple(axis if length(axis) == size else plain(size)
                      for axis, size in zip(axes, shape, strict=True)), {x: label})


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
    if argument(node, 4, "step", 1) != 1 or not isinstance(start, int) or not isinstance(stop, int):
        return Flow(reader.unknown(node.meta["val"]), {}, "a strided slice of the tokens")
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


def unfold(node: fx.Node, reader: Reader) -> Flow:
    """`F.unfold` of an image: its last axis runs over the patches, row by row."""
    x = tensors(node)[0]
    label, (height, width) = reader.label(x), reader.out_sizes(tensors(node)[0])[-2:]
    kernel, dilation, padding, stride = (named(node, n) for n in ("kernel_size", "dilation", "padding", "stride"))
    grid = tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip((height, width), padding, dilation, kernel, stride, strict=True)
    )
    patches = normal([Factor(Kind.HEIGHT, grid[0]), Factor(Kind.WIDTH, grid[1])])
    out = (label[0], plain(reader.out_sizes(node)[1]), patches)
    return Flow(out, {}, "patches are cut from an image")


RULES: dict[object, Rule] = {
    **dict.fromkeys((aten.view.default, aten.reshape.default, aten._unsafe_view.default,
                     aten.flatten.using_ints, aten.unflatten.int), view),
    **dict.fromkeys((aten.permute.default, aten.transpose.int, aten.t.default), permute),
    aten.unsqueeze.default: unsqueeze,
    **dict.fromkeys((aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims), squeeze),
    aten.expand.default: expand,
    **dict.fromkeys((aten.repeat.default, aten.tile.default, aten.repeat_interleave.self_int), repeat),
    aten.select.int: select,
    aten.unbind.int: unbind,
    aten.slice.Tensor: slice_,
    **dict.fromkeys((aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default), split),
    aten.cat.default: cat,
    aten.stack.default: stack,
    aten.im2col.default: unfold,
}
