"""Fold away masks that mask nothing: libraries make them as tensors of True or 0 as soon as a model is traced."""

from __future__ import annotations

from math import isfinite
from typing import Any

import torch
from torch import fx

from lvtp_fx.passes.attention_scores import same
from lvtp_fx.passes.axes.flow import argument
from lvtp_fx.passes.axes.pointwise import is_pointwise

aten = torch.ops.aten

_MADE = {  # ops that fill a tensor with one number: where in their arguments it is
    aten.full.default: 1, aten.full_like.default: 1, aten.new_full.default: 2, aten.scalar_tensor.default: 0,
}
_ONES = (aten.ones.default, aten.ones_like.default, aten.new_ones.default)
_ZEROS = (aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default)
# They rearrange, repeat or pick entries: of a uniform tensor they make a uniform one, whatever their other arguments.
_REARRANGE = (
    aten.expand.default, aten.reshape.default, aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim,
    aten.squeeze.dims, aten.permute.default, aten.transpose.int, aten.slice.Tensor, aten.select.int, aten.clone.default,
    aten.contiguous.default, aten.alias.default, aten.detach.default, aten.repeat.default, aten.index.Tensor,
    aten.flatten.using_ints, aten.unflatten.int,
)
_CASTS = (aten.to.dtype, aten._to_copy.default, aten.to.dtype_layout, aten.to.device)
_LARGEST = 1 << 22  # entries of a constant that is looked at: a mask of 2048 x 2048 tokens


def fold_masks(graph: fx.Graph) -> None:
    """Replace what masks nothing. Changes `graph`; leaves the dead nodes to the caller.

        before                                      after
        m = ge(arange(N), 0); m2 = expand(m, ...)   sdpa(q, k, v)
        sdpa(q, k, v, m2)
        sdpa(q, k, v, add(bias, m2))                sdpa(q, k, v, bias)       (softmax(s + c) = softmax(s))
        where(m2, scores, -inf)                     scores
    """
    uniform = Uniform(graph)
    for node in list(graph.nodes):
        if node.target is aten.scaled_dot_product_attention.default:
            _fold_attention(node, uniform)
        elif node.target in (aten.where.self, aten.where.ScalarOther):
            _replace(node, node.args[1 if uniform.of(node.args[0]) == 1 else 2], uniform.of(node.args[0]) in (0, 1))
        elif node.target in (aten.masked_fill.Scalar, aten.masked_fill.Tensor):
            _replace(node, node.args[0], uniform.of(node.args[1]) == 0)
        elif node.target is aten.add.Tensor:
            a, b = node.args[:2]
            _replace(node, a, uniform.of(b) == 0)
            _replace(node, b, uniform.of(a) == 0 and not node.kwargs)


def _fold_attention(node: fx.Node, uniform: Uniform) -> None:
    mask = argument(node, 3, "attn_mask")
    if not isinstance(mask, fx.Node):
        return
    boolean = mask.meta["val"].dtype == torch.bool
    number, rest = uniform.of(mask), None
    if number is None and not boolean and mask.target is aten.add.Tensor and not mask.kwargs:
        number, rest = _constant_and_rest(mask, uniform)
    if number is None or (number == 0 if boolean else not isfinite(number)):
        return
    if len(node.args) > 3:
        node.update_arg(3, rest)
    else:
        node.update_kwarg("attn_mask", rest)


def _constant_and_rest(total: fx.Node, uniform: Uniform) -> tuple[float | None, fx.Node | None]:
    """A sum of one number and something that attention can broadcast as the sum would have, or (None, None)."""
    a, b = total.args[:2]
    for constant, rest in ((b, a), (a, b)):
        number = uniform.of(constant)
        if number is not None and isinstance(rest, fx.Node) and rest.meta["val"].dtype == total.meta["val"].dtype:
            return number, rest
    return None, None


def _replace(node: fx.Node, other: Any, allowed: bool) -> None:
    """Let readers of a node read another one, where that has its shape and type."""
    if not allowed or not isinstance(other, fx.Node):
        return
    x, y = node.meta.get("val"), other.meta.get("val")
    if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor) and x.dtype == y.dtype and same(x.shape, y.shape):
        node.replace_all_uses_with(other)


class Uniform:
    """Says of the values of a graph whether all their entries are one number, for every input and every batch size."""

    def __init__(self, graph: fx.Graph) -> None:
        self._numbers: dict[fx.Node, float | None] = {}
        self._constants: dict[fx.Node, torch.Tensor] = {}  # what is computed from nothing but numbers
        for node in graph.nodes:  # in order, so that operands are known
            if isinstance(node.meta.get("val"), torch.Tensor) and isinstance(node.target, torch._ops.OpOverload):
                self._numbers[node] = self._number(node, node.target)

    def of(self, value: Any) -> float | None:
        """That number, or None."""
        if isinstance(value, (bool, int, float)):
            return float(value)
        return self._numbers.get(value) if isinstance(value, fx.Node) else None

    def _number(self, node: fx.Node, target: torch._ops.OpOverload[..., Any]) -> float | None:
        if target in _MADE:
            given = node.args[_MADE[target]]
            return float(given) if isinstance(given, (bool, int, float)) else None
        if target in _ONES or target in _ZEROS:
            return float(target in _ONES)
        if torch.Tag.nondeterministic_seeded in target.tags:
            return None
        if target in _REARRANGE and (number := self.of(node.args[0])) is not None:
            return number
        operands = {n: self.of(n) for n in node.all_input_nodes}
        if operands and (is_pointwise(target) or target in _CASTS) and None not in operands.values():
            entries = {n: torch.tensor(number).to(n.meta["val"].dtype) for n, number in operands.items()}
            return float(_call(node, target, entries))
        return self._looked_at(node, target)

    def _looked_at(self, node: fx.Node, target: torch._ops.OpOverload[..., Any]) -> float | None:
        """Compute a value that depends on nothing but numbers (`arange` and what follows from it), and look."""
        shape = node.meta["val"].shape
        if any(n not in self._constants for n in node.all_input_nodes) or not all(isinstance(s, int) for s in shape):
            return None
        if not 0 < node.meta["val"].numel() <= _LARGEST:
            return None
        value = self._constants[node] = _call(node, target, self._constants)
        first = value.flatten()[0]
        return float(first) if bool((value == first).all()) else None


def _call(node: fx.Node, target: torch._ops.OpOverload[..., Any], values: dict[fx.Node, torch.Tensor]) -> torch.Tensor:
    kwargs = {name: value for name, value in node.kwargs.items() if name != "device"}
    args, kwargs = fx.map_arg((node.args, kwargs), values.__getitem__)
    result: torch.Tensor = target(*args, **kwargs)
    return result
