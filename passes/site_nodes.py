"""What a strategy reads at a site: queries and keys as [B, H, L, D] and the mask to fit, however the model has them."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import fx

from lvtp_fx.passes.axes.flow import argument
from lvtp_fx.passes.axes.label import Kind, Label, length, plain
from lvtp_fx.passes.coerce import Coercer, arranged_rank
from lvtp_fx.passes.remember import attended
from lvtp_fx.passes.rewrite_sizes import resized
from lvtp_fx.plan import Plan
from lvtp_fx.strategies import SiteNodes
from lvtp_fx.strategies.base import both

aten = torch.ops.aten


def site_mask(
    plan: Plan, attention: fx.Node, tokens: int, to: Coercer, read: Callable[[fx.Node], fx.Node]
) -> fx.Node | None:
    """The mask of an attention of `tokens` grid tokens, broadcastable to [B, H, L, L], or None.

    It is without log sizes: the entropy looks at what the model attends to, not at how much was merged.
    """
    q, mask, uses = attention.args[0], argument(attention, 3, "attn_mask"), plan.flows[attention].uses
    if not isinstance(mask, fx.Node):
        return None
    assert isinstance(q, fx.Node)
    return _mask(to, read(mask), uses[mask], uses[q], tokens)


def key_ends(plan: Plan, attention: fx.Node) -> tuple[int, int]:
    """Prefix and suffix tokens of the keys of an attention of the encoder."""
    _, factor = attended(plan, attention)
    assert factor is not None
    return factor.before, factor.after


def site_nodes(
    plan: Plan, index: int, stream: fx.Node, feature_ends: tuple[int, int], image: fx.Node | None, hides: bool,
    to: Coercer, read: Callable[[fx.Node], fx.Node],
) -> SiteNodes:
    """The nodes of site number `index`.

    Args:
        stream: [B, L, C], what is about to be reduced, with `feature_ends` prefix and suffix tokens.
        hides: whether some tokens may have size 0.
        image: the picture that enters the patch embedding, in the new graph.
        read: the new node of a value that the site's attention reads, in the space of that attention.
    """
    assert plan.trunk is not None
    attention = plan.trunk.blocks[plan.sites[index].block].attention.node
    uses, tokens, config = plan.flows[attention].uses, to.spaces[-1].count, plan.config
    old_q, old_k = attention.args[:2]
    assert isinstance(old_q, fx.Node) and isinstance(old_k, fx.Node)
    (q, q_heads), (k, k_heads) = (_heads(to, read(n), uses[n], tokens) for n in (old_q, old_k))
    if k_heads < q_heads:
        k = _shared(to, k, q_heads // k_heads)
    ends = key_ends(plan, attention)
    told_by_keys = config.feature == "keys" or (config.feature == "auto" and plan.sites[index].block > 0)
    source, source_ends = (k, ends) if told_by_keys else (stream, feature_ends)
    feature = to.call("features", source, *source_ends, length(uses[old_k][-1]))
    position, grid = to.spaces[-1].position, plan.trunk.grid
    left, right = both(
        to.call("comparable", feature, position, grid[1], max(grid), config.neighbour_weight), "left", "right")
    return SiteNodes(
        q=q, k=k, mask=site_mask(plan, attention, tokens, to, read), scale=argument(attention, 6, "scale"),
        stream=stream, feature=feature, left=left, right=right, N=tokens, position=position,
        size=to.spaces[-1].size, shown=to.spaces[0].size if hides else None, image=image,
        before=ends[0], after=ends[1], grid=grid, kept=plan.sites[index].kept, call=to.call,
    )


def _heads(to: Coercer, node: fx.Node, label: Label, tokens: int) -> tuple[fx.Node, int]:
    """Queries or keys as [B, H, L, D], and H."""
    node, label = to.arranged(node, label, tokens)
    heads = prod(length(axis) for axis in label[1:-2])
    if len(label) == 3:  # one head without an axis of its own
        return to.graph.call_function(aten.unsqueeze.default, (node, 1)), heads
    if len(label) > 4:
        return to.graph.call_function(aten.flatten.using_ints, (node, 1, len(label) - 3)), heads
    return node, heads


def _shared(to: Coercer, k: fx.Node, times: int) -> fx.Node:
    """Keys [B, H, L, D] that `times` heads share, once for each of them."""
    k = to.graph.call_function(aten.unsqueeze.default, (k, 2))
    k = to.graph.call_function(aten.expand.default, (k, [-1, -1, times, -1, -1]))
    return to.graph.call_function(aten.flatten.using_ints, (k, 1, 2))


def _mask(to: Coercer, mask: fx.Node, label: Label, like: Label, tokens: int) -> fx.Node:
    """A mask, broadcastable to the scores of queries `like`, as one broadcastable to [B, H, L, L]."""
    if [len(axis) for axis in like] == [1] * 4 and like[0][0].kind is Kind.BATCH:
        return mask
    lead = [f for axis in like[:-2] for f in axis]
    shape, whole = [], (plain(1),) * (len(like) - len(label)) + label
    for axis, mine in zip(like[:-2], whole, strict=False):
        sizes = [-1 if f.kind is Kind.BATCH else f.size for f in axis]
        shape += sizes if length(mine) == length(axis) else [1] * len(axis)
    shape += [resized(axis, tokens) for axis in whole[-2:]]
    mask = to.graph.call_function(aten.reshape.default, (mask, shape))
    order = sorted(range(len(lead)), key=lambda i: arranged_rank(lead[i]))
    mask = to.graph.call_function(aten.permute.default, (mask, [*order, len(lead), len(lead) + 1]))
    heads = [shape[i] for i in order[1:]]
    if any(h != 1 for h in heads):  # a mask may differ along some of these axes only
        heads = [lead[i].size for i in order[1:]]
        mask = to.graph.call_function(aten.expand.default, (mask, [-1, *heads, -1, -1]))
    batch = -1 if shape[order[0]] == -1 else 1
    return to.graph.call_function(aten.reshape.default, (mask, [batch, prod(heads), *shape[-2:]]))
