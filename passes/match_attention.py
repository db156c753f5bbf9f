"""Find attention in every form it is written in, and say of near misses why they are not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import fx

from lvtp_fx import provenance
from lvtp_fx.passes.axes.flow import argument
from lvtp_fx.plan import AttentionMatch, Miss, Plan

aten = torch.ops.aten

SOFTMAXES = (aten.softmax.int, aten._softmax.default)
PRODUCTS = (aten.matmul.default, aten.bmm.default)
# Value-preserving in eval mode: they may stand between the parts of an attention.
_TRANSPARENT = (aten.to.dtype, aten._to_copy.default, aten.type_as.default, aten.clone.default,
                aten.contiguous.default, aten.expand.default, aten.dropout.default, aten.alias.default)
_ADDS = (aten.add.Tensor, aten.sub.Tensor)
_SCALES = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar)


@dataclass(frozen=True)
class Parts:
    """The parts of `softmax(scale * q @ k_t + mask) @ v`; `product` is the last matrix product."""

    q: fx.Node
    k_t: fx.Node
    v: fx.Node
    scale: float
    scale_tensors: tuple[fx.Node, ...]
    masks: tuple[fx.Node, ...]
    softmax: fx.Node
    product: fx.Node


@dataclass(frozen=True)
class Scores:
    """What the input of a softmax is made of."""

    q: fx.Node
    k_t: fx.Node
    scale: float = 1.0
    scale_tensors: tuple[fx.Node, ...] = ()
    masks: tuple[fx.Node, ...] = ()


@dataclass(frozen=True)
class MatchAttention:
    """Writes every attention as one `scaled_dot_product_attention` node.

    Requires: a captured graph. Ensures: `attentions`, in graph order, and `misses`.

        before                                   after
        kt = transpose(k, -2, -1)                kt = transpose(k, -2, -1); k2 = transpose(kt, -2, -1)
        s = matmul(q, kt); s2 = mul(s, 0.125)    o = scaled_dot_product_attention(q, k2, v, mask, scale=0.125)
        s3 = add(s2, mask); p = softmax(s3, -1)
        o = matmul(p, v)
    """

    name: ClassVar[str] = "match_attention"

    def __call__(self, plan: Plan) -> Plan:
        attentions: list[AttentionMatch] = []
        misses: list[Miss] = list(plan.misses)
        for node in list(plan.graph_module.graph.nodes):
            if node.target is aten.scaled_dot_product_attention.default:
                attentions.append(_match_of(node, node.name, node))
            elif node.target in SOFTMAXES and _looks_like_attention(node):
                found = match_softmax(node)
                if isinstance(found, Miss):
                    misses.append(found)
                else:
                    attentions.append(_match_of(_normalise(found), node.name, node))
        plan.graph_module.graph.eliminate_dead_code()
        return replace(plan, attentions=tuple(attentions), misses=tuple(misses))


def _match_of(node: fx.Node, hook: str, place: fx.Node) -> AttentionMatch:
    return AttentionMatch(node, hook, provenance.module_path(place), provenance.source_line(place))


def _looks_like_attention(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.ndim >= 3 and value.shape[-1] != 1


def match_softmax(softmax: fx.Node) -> Parts | Miss:
    """The parts of the attention around a softmax, or the reason why it is none."""
    value = softmax.meta["val"]
    if argument(softmax, 1, "dim") not in (-1, value.ndim - 1):
        return _miss(softmax, "the softmax does not run over the last axis", 1)
    start = softmax.args[0]
    assert isinstance(start, fx.Node)
    scores = _scores(start)
    if isinstance(scores, str):
        return _miss(softmax, scores, 2)
    node = softmax
    while True:
        if len(node.users) != 1:
            reason = "the attention map has a second consumer" if len(node.users) > 1 else "the map is not used"
            return _miss(softmax, reason, 3)
        user = next(iter(node.users))
        if user.target in PRODUCTS and user.args[0] is node:
            v = user.args[1]
            assert isinstance(v, fx.Node)
            break
        if user.target not in _TRANSPARENT or user.args[0] is not node:
            return _miss(softmax, f"the attention map goes into {user.target} before the values", 3)
        node = user
    q, k_t = scores.q.meta["val"], scores.k_t.meta["val"]
    if not q.ndim == k_t.ndim == v.meta["val"].ndim or q.dtype != v.meta["val"].dtype:
        return _miss(softmax, "queries, keys and values differ in rank or dtype", 3)
    return Parts(scores.q, scores.k_t, v, scores.scale, scores.scale_tensors, scores.masks, softmax, user)


def _scores(node: fx.Node) -> Scores | str:
    """Walk up from the softmax to `q @ k_t`, collecting scales and masks; a string says where the walk ended."""
    if node.target in PRODUCTS:
        q, k_t = node.args[:2]
        assert isinstance(q, fx.Node) and isinstance(k_t, fx.Node)
        return Scores(q, k_t)
    if node.target is aten.baddbmm.default:
        mask, q, k_t = node.args[:3]
        assert isinstance(mask, fx.Node) and isinstance(q, fx.Node) and isinstance(k_t, fx.Node)
        if node.kwargs.get("beta", 1) != 1:
            return "a scaled baddbmm"
        return Scores(q, k_t, float(node.kwargs.get("alpha", 1)), masks=(mask,))
    if node.target in _TRANSPARENT and isinstance(node.args[0], fx.Node):
        return _scores(node.args[0])
    if node.target in _SCALES:
        return _scaled(node)
    if node.target is aten.add.Tensor and node.kwargs.get("alpha", 1) == 1:
        return _masked(node)
    return f"the scores come from {node.target}, not from a product of queries and keys"


def _masked(node: fx.Node) -> Scores | str:
    reasons = []
    for inner, mask in (node.args[:2], node.args[1::-1]):
        if isinstance(inner, fx.Node) and isinstance(mask, fx.Node):
            found = _scores(inner)
            if isinstance(found, Scores):
                return replace(found, masks=(*found.masks, mask))
            reasons.append(found)
    return reasons[0] if reasons else "a number is added to the scores"


def _scaled(node: fx.Node) -> Scores | str:
    inner, factor = node.args[:2]
    divide = node.target in (aten.div.Tensor, aten.div.Scalar)
    if not isinstance(inner, fx.Node):
        inner, factor = factor, inner
    assert isinstance(inner, fx.Node)
    found = _scores(inner)
    if isinstance(found, str) and isinstance(factor, fx.Node) and not divide:
        found, factor = _scores(factor), inner
    if isinstance(found, str):
        return found
    if found.masks:
        return "the scores are scaled after the mask"
    if isinstance(factor, fx.Node):
        value = factor.meta["val"]
        if divide or any(size != 1 for size in value.shape[-2:]):
            return "the scores are scaled token by token"
        return replace(found, scale_tensors=(*found.scale_tensors, factor))
    number: Any = factor
    return replace(found, scale=found.scale / number if divide else found.scale * number)


def _normalise(parts: Parts) -> fx.Node:
    """Put one fused attention in the place of the parts."""
    graph = parts.product.graph
    with graph.inserting_before(parts.product):
        q = parts.q
        for factor in parts.scale_tensors:
            q = call(graph, aten.mul.Tensor, q, factor)
        k = call(graph, aten.transpose.int, parts.k_t, -2, -1)
        mask: fx.Node | None = None
        for term in parts.masks:
            mask = term if mask is None else call(graph, aten.add.Tensor, mask, term)
        if mask is not None:
            mask = _as_mask(graph, mask, q)
        node = call(graph, aten.scaled_dot_product_attention.default, q, k, parts.v, mask, scale=parts.scale)
    for key in ("nn_module_stack", "stack_trace"):
        if key in parts.softmax.meta:
            node.meta[key] = parts.softmax.meta[key]
    parts.product.replace_all_uses_with(node)
    return node


def _as_mask(graph: fx.Graph, mask: fx.Node, q: fx.Node) -> fx.Node:
    value, dtype = mask.meta["val"], q.meta["val"].dtype
    return mask if value.dtype == dtype else call(graph, aten.to.dtype, mask, dtype)


def call(graph: fx.Graph, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """Insert a call and infer its value from its operands' fake values."""
    node = graph.call_function(target, args, kwargs)
    fake_args, fake_kwargs = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
    node.meta["val"] = target(*fake_args, **fake_kwargs)
    return node


def _miss(node: fx.Node, reason: str, near: int) -> Miss:
    return Miss(provenance.module_path(node), provenance.describe(node), reason, near)
