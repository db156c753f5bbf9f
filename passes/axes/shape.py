"""Rules for ops that only move axes: views, permutations, repeats."""

from __future__ import annotations

import torch
from torch import fx

from lvtp_fx.passes.axes.flow import Flow, Reader, Rule, argument, named, tensors
from lvtp_fx.passes.axes.label import (
    Axis,
    Factor,
    Kind,
    has_kind,
    images,
    is_plain,
    length,
    normal,
    plain,
    regroup,
    token_axes,
)

aten = torch.ops.aten
PERMUTATIONS = (aten.permute.default, aten.transpose.int)


def view(node: fx.Node, reader: Reader) -> Flow:
    x = tensors(node)[0]
    label = reader.label(x)
    out, split = regroup(label, reader.out_sizes(node))
    if out is None:
        return Flow(reader.unknown(node.meta["val"]), {}, "a reshape cuts across the token axis")
    if split:
        return Flow(out, {x: label}, "a reshape lays the tokens out as a grid")
    # Rows and columns are whole, though the tokens beside them may be reduced.
    beside = 0 < len(token_axes(label)) < len(token_axes(out))
    return Flow(out, {x: label}, "a reshape flattens a grid beside the tokens" if beside else "")


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
    """`repeat tile repeat_interleave`: heads that several heads share are written out."""
    x = tensors(node)[0]
    label = reader.label(x)
    shape = reader.out_sizes(node)
    axes = (*[plain(1)] * (len(shape) - len(label)), *label)
    each = node.target is aten.repeat_interleave.self_int
    if len(axes) > len(shape):  # without an axis, each number is repeated, and all stand in one row
        return Flow(reader.unknown(node.meta["val"]), {}, "axes are flattened into one")
    out = tuple(axis if length(axis) == size else _repeated(axis, size, each)
                for axis, size in zip(axes, shape, strict=True))
    if all(is_plain(axis) or axis == after for axis, after in zip(axes, out, strict=True)):
        return Flow(out, {x: label})
    return Flow(reader.unknown(node.meta["val"]) if token_axes(label) else out, {}, "tokens or images are repeated")


def _repeated(axis: Axis, size: int, each: bool) -> Axis:
    """A batch that is repeated, as a whole or `each` of its images, is still one."""
    if not has_kind(axis, Kind.BATCH):
        return plain(size)
    times = plain(size // length(axis))
    return (*axis, *times) if each else (*times, *axis)


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
    out = (images(label[0]), plain(reader.out_sizes(node)[1]), patches)
    return Flow(out, {}, "patches are cut from an image")


RULES: dict[object, Rule] = {
    **dict.fromkeys((aten.view.default, aten.reshape.default, aten._unsafe_view.default,
                     aten.flatten.using_ints, aten.unflatten.int), view),
    **dict.fromkeys((*PERMUTATIONS, aten.t.default), permute),
    aten.unsqueeze.default: unsqueeze,
    **dict.fromkeys((aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims), squeeze),
    aten.expand.default: expand,
    **dict.fromkeys((aten.repeat.default, aten.tile.default, aten.repeat_interleave.self_int), repeat),
    aten.im2col.default: unfold,
}
