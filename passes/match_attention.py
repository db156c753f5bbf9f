"""Find attention in every form it is written in, and say of near misses why they are not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import fx

from lvtp_fx import provenance
from lvtp_fx.passes.attention_forms import Product, call, product_of, swaps_last, turned_product
from lvtp_fx.passes.attention_mask import cast, emit_mask, refuse_steps, sized
from lvtp_fx.passes.attention_scores import VIEWS, Scores, Step, find_scores, is_transparent, same
from lvtp_fx.passes.axes.flow import argument
from lvtp_fx.plan import AttentionMatch, Miss, Plan

aten = torch.ops.aten

SOFTMAXES = (aten.softmax.int, aten._softmax.default)


@dataclass(frozen=True)
class Parts:
    """The parts of `softmax(scale * q @ k_t + mask) @ v`; `values` is the last matrix product, at `product`."""

    scores: Scores
    softmax: fx.Node
    values: Product
    product: fx.Node


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
    scores = find_scores(start)
    if isinstance(scores, str):
        return _miss(softmax, scores, 2)
    node, turned = softmax, False
    while True:
        if len(node.users) != 1:
            reason = "the attention map has a second consumer" if len(node.users) > 1 else "the map is not used"
            return _miss(softmax, reason, 3)
        user = next(iter(node.users))
        values = turned_product(user, node) if turned else product_of(user, node)
        if values is not None and values.added is None:
            break
        view = user.target in VIEWS and not turned
        if not (is_transparent(user) or view or swaps_last(user)) or user.args[0] is not node:
            return _miss(softmax, f"the attention map goes into {user.target} before the values", 3)
        if view:  # the mask must follow
            scores = replace(scores, steps=(*scores.steps, Step("view", user)))
        node, turned = user, turned != swaps_last(user)
    reason = _refuse(scores, softmax, values)
    if reason:
        return _miss(softmax, reason, 3)
    return Parts(scores, softmax, values, user)


def _refuse(scores: Scores, softmax: fx.Node, values: Product) -> str:
    """Why the parts do not make one fused attention, or ""."""
    shape, v = values.left.value.shape, values.right.value
    if reason := refuse_steps(scores, softmax.meta["val"].shape) or refuse_steps(scores, shape):
        return reason
    q, k = scores.q.value, scores.k_t.value
    if q.ndim != k.ndim or len(shape) != v.ndim:
        return "queries, keys and values differ in rank"
    if not same(scores.shape, shape):
        # The heads are split or merged in between; queries and keys must follow, as they are.
        if not same(q.shape[:-2], scores.shape[:-2]) or not same(k.shape[:-2], scores.shape[:-2]):
            return "heads are split or merged in broadcast scores"
        if sum(not isinstance(size, int) for size in shape[:-2]) > 1:
            return "heads are split or merged in a way that depends on several sizes of the input"
    if not sized(softmax.graph, scores):
        return "a mask is reshaped with a size that no node computes"
    return ""


def _normalise(parts: Parts) -> fx.Node:
    """Put one fused attention in the place of the parts."""
    graph, scores, values = parts.product.graph, parts.scores, parts.values
    with graph.inserting_before(parts.product):
        q, k, v = scores.q.emit(graph), scores.k_t.swapped().emit(graph), values.right.emit(graph)
        for step in scores.steps:
            if step.kind in ("scale", "divide") and step.operand is not None:
                q = call(graph, aten.mul.Tensor if step.kind == "scale" else aten.div.Tensor, q, step.operand)
        lead = values.left.value.shape[:-2]
        if not same(scores.shape[:-2], lead):
            q, k = (_regrouped(graph, x, lead) for x in (q, k))
        mask = emit_mask(graph, scores)
        dtype = _common_dtype([q, k, v])
        q, k, v = (cast(graph, x, dtype) for x in (q, k, v))
        if mask is not None:
            mask = cast(graph, mask, dtype)
            while mask.meta["val"].ndim < q.meta["val"].ndim:
                mask = call(graph, aten.unsqueeze.default, mask, 0)
        node = call(graph, aten.scaled_dot_product_attention.default, q, k, v, mask, scale=scores.scale)
        out = cast(graph, node, parts.product.meta["val"].dtype)
        if values.order:
            out = call(graph, aten.permute.default, out, list(values.order))
    for key in ("nn_module_stack", "stack_trace"):
        if key in parts.softmax.meta:
            node.meta[key] = parts.softmax.meta[key]
    assert same(out.meta["val"].shape, parts.product.meta["val"].shape)
    parts.product.replace_all_uses_with(out)
    return node


def _regrouped(graph: fx.Graph, x: fx.Node, lead: Any) -> fx.Node:
    """[..., M, K] with the axes before M reshaped; at most one of their sizes is symbolic."""
    tail = list(x.meta["val"].shape[-2:])
    return call(graph, aten.reshape.default, x, [s if isinstance(s, int) else -1 for s in lead] + tail)


def _common_dtype(nodes: list[fx.Node]) -> torch.dtype:
    """Softmax in float32 between products in less: the fused kernels do so by themselves. Otherwise the widest."""
    dtype: torch.dtype = nodes[0].meta["val"].dtype
    for node in nodes[1:]:
        dtype = torch.promote_types(dtype, node.meta["val"].dtype)
    return dtype


def _miss(node: fx.Node, reason: str, near: int) -> Miss:
    return Miss(provenance.module_path(node), provenance.describe(node), reason, near)
