"""Rules for ops that treat every token alike: pointwise ops, linear layers, norms, reductions over other axes."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from lvtp_fx.passes.axes.flow import Flow, Reader, Rule, argument, broadcast, named, tensors
from lvtp_fx.passes.axes.label import Label, mixed, plain, token_axes

aten = torch.ops.aten


def pointwise(node: fx.Node, reader: Reader) -> Flow:
    """`add mul gelu where ...`: axes are lined up from the right."""
    return broadcast(reader, tensors(node), len(reader.out_sizes(node)))


def like_first(node: fx.Node, reader: Reader) -> Flow:
    """Casts, copies, dropout, tensors of zeros: the label of the first operand; others give a type or a layout."""
    first = tensors(node)[0]
    return Flow(reader.label(first), {first: reader.label(first)})


def linear(node: fx.Node, reader: Reader) -> Flow:
    x = tensors(node)[0]
    label = reader.label(x)
    out = (*label[:-1], plain(reader.out_sizes(node)[-1]))
    what = mixed(label[-1:])
    return Flow(out, {x: label}, f"a linear layer mixes {what}" if what else "")


def normalise_last(node: fx.Node, reader: Reader) -> Flow:
    """`layer_norm`, `rms_norm`: over the last axes, as many as `normalized_shape` names."""
    x = tensors(node)[0]
    label = reader.label(x)
    count = len(argument(node, 1, "normalized_shape"))
    what = mixed(label[len(label) - count :])
    out: Any = label
    if isinstance(node.meta["val"], (tuple, list)):  # with the mean and the inverse deviation
        out = (label, *((*label[: len(label) - count], *(plain(1),) * count) for _ in node.meta["val"][1:]))
    return Flow(out, {x: label}, f"a norm runs over {what}" if what else "")


def by_channel(node: fx.Node, reader: Reader) -> Flow:
    """`batch_norm` of a model in eval mode, `prelu`: numbers for each channel of axis 1, or one for all."""
    x, numbers, *_ = tensors(node)
    label, values = reader.label(x), node.meta["val"]
    what = mixed(label[1:2]) if numbers.meta["val"].numel() > 1 else ""
    out: Any = (label, *map(reader.unknown, values[1:])) if isinstance(values, (tuple, list)) else label
    return Flow(out, {x: label}, f"numbers of their own for {what}" if what else "")


def along(node: fx.Node, reader: Reader) -> Flow:
    """Softmax and the like over one axis, which keeps its length."""
    x = tensors(node)[0]
    label = reader.label(x)
    dim = argument(node, 1, "dim")
    what = mixed(label if dim is None else (label[dim],))
    return Flow(label, {x: label}, f"{node.target} runs over {what}" if what else "")


def reduction(node: fx.Node, reader: Reader) -> Flow:
    """`sum mean amax norm ...` over some axes."""
    x = tensors(node)[0]
    label = reader.label(x)
    dims = named(node, "dim")
    dims = list(range(len(label))) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    gone = {d % len(label) for d in dims}
    keepdim = bool(named(node, "keepdim", False))
    out: Label = tuple(
        plain(1) if i in gone else axis for i, axis in enumerate(label) if keepdim or i not in gone
    )
    what, values = mixed(tuple(label[i] for i in gone)), node.meta["val"]
    full = f"{node.target} reduces over {what}" if what else ""
    if any(token_axes((label[i],)) for i in gone):
        return Flow(reader.unknown(values), {}, full)
    return Flow((out,) * len(values) if isinstance(values, (tuple, list)) else out, {x: label}, full)


def halve(node: fx.Node, reader: Reader) -> Flow:
    """`glu`: one half of an axis gates the other."""
    x = tensors(node)[0]
    label = reader.label(x)
    dim = argument(node, 1, "dim", -1) % len(label)
    out = (*label[:dim], plain(reader.out_sizes(node)[dim]), *label[dim + 1 :])
    what = mixed((label[dim],))
    return Flow(out, {x: label}, f"half of {what} gate the others" if what else "")


# Pointwise, but torch does not tag them so.
_UNTAGGED = (aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar, aten.__and__.Tensor, aten.__or__.Tensor,
             aten.polar.default, aten.complex.default, aten.hardswish.default, aten.log_sigmoid.default,
             aten.rsub.Tensor, aten.masked_fill.Tensor, aten.floor_divide.default, aten.copy.default,
             aten.fill.Scalar, aten.fill.Tensor)


def is_pointwise(target: object) -> bool:
    return target in _UNTAGGED or (
        isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags)


RULES: dict[object, Rule] = {
    aten.linear.default: linear,
    aten.layer_norm.default: normalise_last,
    aten.native_layer_norm.default: normalise_last,
    aten.rms_norm.default: normalise_last,
    **dict.fromkeys((aten._native_batch_norm_legit_no_training.default, aten.prelu.default), by_channel),
    aten.softmax.int: along,
    aten._softmax.default: along,
    aten.log_softmax.int: along,
    aten._log_softmax.default: along,
    aten.sum.dim_IntList: reduction,
    aten.mean.dim: reduction,
    aten.amax.default: reduction,
    aten.amin.default: reduction,
    **dict.fromkeys((aten.var.correction, aten.var.dim, aten.std.correction, aten.std.dim), reduction),
    aten.linalg_vector_norm.default: reduction,
    aten.max.dim: reduction,
    aten.min.dim: reduction,
    aten.glu.default: halve,
    aten.to.dtype: like_first,
    aten.to.dtype_layout: like_first,
    aten.to.device: like_first,
    aten._to_copy.default: like_first,
    aten.dropout.default: like_first,
    aten.contiguous.default: like_first,
    aten.detach.default: like_first,
    aten.alias.default: like_first,
    aten.lift_fresh_copy.default: like_first,
    **dict.fromkeys((aten.zeros_like.default, aten.ones_like.default, aten.full_like.default), like_first),
    **dict.fromkeys(_UNTAGGED, pointwise),
}
