"""Tokens that a mask of the inputs hides (padding): they are dropped first, and mixed into no other.

    before                      after
    mask = unsqueeze(seen)      size = lvtp.shown(mask, positions)        1 a token, 0 where it is hidden
    sdpa(q, k, v, mask)         select = lvtp.select(lvtp.hide(rank, size), K)
                                merge = lvtp.merge(add_1, ..., size)      a mean, in which 0 counts nothing
"""

from __future__ import annotations

import networkx as nx
from torch import fx

from lvtp_fx.ops.registry import edition
from lvtp_fx.passes.axes.flow import argument
from lvtp_fx.passes.coerce import Coercer, SpaceNodes
from lvtp_fx.passes.residual_streams import value_graph
from lvtp_fx.plan import AttentionMatch, Plan


def masks_of_inputs(plan: Plan) -> tuple[fx.Node, ...]:
    """The masks of the encoder's attentions, in order, that come in with the images and are not made of the tokens."""
    assert plan.trunk is not None
    given = _after_inputs(plan)
    masks = (argument(block.attention.node, 3, "attn_mask") for block in plan.trunk.blocks)
    return tuple(mask for mask in masks if mask in given)


def hiding_attention(plan: Plan) -> AttentionMatch | None:
    """The attention of the first site, where each block has such a mask. Where some have none, what one block hides
    another one reads."""
    if plan.trunk is None or not plan.sites or len(masks_of_inputs(plan)) < len(plan.trunk.blocks):
        return None
    return plan.trunk.blocks[plan.sites[0].block].attention


def full_grid(to: Coercer, stream: fx.Node, tokens: int, mask: fx.Node | None, ends: tuple[int, int]) -> SpaceNodes:
    """The space of all tokens.

    Args:
        stream: a value with the batch in front. mask: [B or 1, H or 1, L or 1, L] of the attention that hides some of
            them, or None; its keys have `ends` prefix and suffix tokens.
    """
    position = to.call("positions", stream, tokens, edition())
    size = to.call("ones", position) if mask is None else to.call("shown", mask, position, *ends)
    return SpaceNodes(tokens, None, None, position, size)


def _after_inputs(plan: Plan) -> set[fx.Node]:
    """What is computed from the values of inputs, but not from the tokens."""
    assert plan.trunk is not None
    flow = value_graph(plan)
    found: set[fx.Node] = {node for node in flow if node.op == "placeholder"}
    found.update(*[nx.descendants(flow, node) for node in found])
    return found.difference(nx.descendants(flow, plan.trunk.states[0]))
