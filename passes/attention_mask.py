"""The mask that the steps between `q @ k^T` and the softmax add up to."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from lvtp_fx.passes.attention_forms import call
from lvtp_fx.passes.attention_scores import Scores, same

aten = torch.ops.aten

# A filled score must be so low that its weight is 0 beside any other: people write -inf, -1e9, and what float16 holds,
# -65504 or -1e4. (Rows without any other score are left out: they have no meaningful result.)
_FLOOR = -1e4


def refuse_steps(scores: Scores, shape: tuple[Any, ...]) -> str:
    """Why the steps cannot be a mask of scores of this shape, or ""."""
    if scores.floor > _FLOOR:
        return f"masked scores are filled with {scores.floor:g}, which is not far below every score"
    if not scores.scale > 0:
        return "the scores are scaled with a number that is not positive"
    if not same(scores.shape[-2:], shape[-2:]):
        return "a reshape mixes the rows or columns of the scores"
    return ""


def emit_mask(graph: fx.Graph, scores: Scores) -> fx.Node | None:
    """The steps done to a mask of zeros, which is None as long as it is zero."""
    mask: fx.Node | None = None
    for step in scores.steps:
        dtype = step.node.meta["val"].dtype
        if step.kind == "add":
            assert step.operand is not None
            term = cast(graph, step.operand, dtype)
            if step.number != 1:
                term = call(graph, aten.mul.Tensor, term, step.number)
            mask = term if mask is None else call(graph, aten.add.Tensor, mask, term)
        elif step.kind == "fill":
            assert step.operand is not None
            drop = call(graph, aten.logical_not.default, step.operand) if step.keeps else step.operand
            below = mask if mask is not None else call(graph, aten.zeros_like.default, drop, dtype=dtype)
            mask = call(graph, aten.masked_fill.Scalar, below, drop, step.number)
        elif mask is None:
            continue
        elif step.kind == "view":
            mask = _viewed(graph, mask, step.node)
        else:
            target = aten.div.Tensor if step.kind == "divide" else aten.mul.Tensor
            mask = call(graph, target, mask, step.operand if step.operand is not None else step.number)
    return mask


def _viewed(graph: fx.Graph, mask: fx.Node, view: fx.Node) -> fx.Node:
    """The mask at its full shape, reshaped as the scores were."""
    scores = view.args[0]
    assert isinstance(scores, fx.Node)
    wanted, value = scores.meta["val"].shape, mask.meta["val"]
    if not same(value.shape, wanted):
        sizes = [size if isinstance(size, int) else _size_node(graph, view, size) for size in wanted]
        mask = call(graph, aten.expand.default, mask, sizes)
    return call(graph, aten.reshape.default, mask, list(view.args[1]))  # type: ignore[arg-type]


def _size_node(graph: fx.Graph, before: fx.Node, size: Any) -> fx.Node:
    """A node before `before` that computes this symbolic size; capture makes one from the input's batch."""
    node: fx.Node
    for node in graph.nodes:
        if node is before:
            break
        if isinstance(node.meta.get("val"), torch.SymInt) and same(node.meta["val"], size):
            return node
    raise LookupError(f"no node computes the size {size}")


def sized(graph: fx.Graph, scores: Scores) -> bool:
    """Whether `emit_mask` finds the symbolic sizes that it needs."""
    try:
        for step in scores.steps:
            if step.kind == "view":
                inner = step.node.args[0]
                assert isinstance(inner, fx.Node)
                for size in inner.meta["val"].shape:
                    if not isinstance(size, int):
                        _size_node(graph, step.node, size)
    except LookupError:
        return False
    return True


def cast(graph: fx.Graph, node: fx.Node, dtype: torch.dtype) -> fx.Node:
    return node if node.meta["val"].dtype == dtype else call(graph, aten.to.dtype, node, dtype)
