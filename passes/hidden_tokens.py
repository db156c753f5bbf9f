"""Tokens that masks of the inputs hide from all (padding): they are dropped first, and mixed into no other.

    before                      after
    mask = unsqueeze(seen)      size = lvtp.shown(mask, positions)        1 a token, 0 where it is hidden
    sdpa(q, k, v, mask)         select = lvtp.select(lvtp.hide(rank, size), K)
                                merge = lvtp.merge(add_1, ..., size)      a mean, in which 0 counts nothing
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import networkx as nx
import torch
from torch import fx

from lvtp_fx.ops.registry import edition
from lvtp_fx.passes.axes.flow import argument
from lvtp_fx.passes.coerce import Coercer, SpaceNodes
from lvtp_fx.passes.remember import attended
from lvtp_fx.passes.residual_streams import value_graph
from lvtp_fx.plan import AttentionMatch, Plan

aten = torch.ops.aten


@dataclass(frozen=True)
class Hiding:
    """Who hides tokens.

    Attributes:
        first: the first mask that comes in with the images, or None.
        attentions: one for each different mask, where all attentions that read the tokens have one; else none: what one
            hides another reads.
    """

    first: fx.Node | None = None
    attentions: tuple[AttentionMatch, ...] = ()


def find_hiding(plan: Plan) -> Hiding:
    """Of the attentions over the tokens, in the encoder and in later streams that are reduced."""
    if plan.trunk is None:
        return Hiding()
    masks = {a: argument(a.node, 3, "attn_mask") for a in plan.attentions if _reads_tokens(plan, a)}
    if not any(masks.values()):  # most models: the graph need not be searched
        return Hiding()
    given, alike = _of_inputs(plan), _Alike()
    first = next((mask for mask in masks.values() if mask in given), None)
    if any(mask not in given or not _before(mask).isdisjoint(plan.trunk.members) for mask in masks.values()):
        return Hiding(first)
    different = {alike.number(mask): attention for attention, mask in reversed(masks.items())}
    return Hiding(first, tuple(reversed(different.values())))


def compute_early(plan: Plan, hiding: Hiding) -> None:
    """Move what makes the masks to the front of the tokens' stream, where the first site needs all of them."""
    assert plan.trunk is not None
    order = {node: i for i, node in enumerate(plan.graph_module.graph.nodes)}
    start = plan.trunk.states[0]
    masks = [argument(attention.node, 3, "attn_mask") for attention in hiding.attentions]
    for node in sorted(set().union(*(_before(mask) for mask in masks)), key=order.__getitem__):
        if order[node] > order[start]:
            start.prepend(node)


def full_grid(
    to: Coercer, stream: fx.Node, tokens: int, masks: list[tuple[fx.Node, tuple[int, int]]]
) -> SpaceNodes:
    """The space of all tokens.

    Args:
        stream: a value with the batch in front.
        masks: of the attentions that hide some, broadcastable to [B, H, L, L], with the prefix and suffix tokens of
            their keys.
    """
    position = to.call("positions", stream, tokens, edition())
    shown = [to.call("shown", mask, position, *ends) for mask, ends in masks] or [to.call("ones", position)]
    size = reduce(lambda a, b: to.graph.call_function(aten.maximum.default, (a, b)), shown)
    return SpaceNodes(tokens, None, None, position, size)


def _reads_tokens(plan: Plan, attention: AttentionMatch) -> bool:
    """Whether it may run on fewer tokens, and its keys are some."""
    assert plan.trunk is not None
    _, keys = attended(plan, attention.node)
    return attention.node in plan.reducible and keys is not None and keys.grid == plan.trunk.grid


def _of_inputs(plan: Plan) -> set[fx.Node]:
    """What is computed from the values of inputs, but not from the tokens."""
    assert plan.trunk is not None
    flow = value_graph(plan.graph_module.graph)
    found: set[fx.Node] = {node for node in flow if node.op == "placeholder"}
    found.update(*[nx.descendants(flow, node) for node in found])
    return found.difference(nx.descendants(flow, plan.trunk.states[0]))


def _before(value: fx.Node) -> set[fx.Node]:
    """A value and all that it is computed from, sizes too."""
    found, waiting = {value}, [value]
    while waiting:
        new = [n for n in waiting.pop().all_input_nodes if n not in found]
        found.update(new)
        waiting += new
    return found


class _Alike:
    """Numbers values; those that are computed alike get the same: each layer may make the mask for itself."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._known: dict[fx.Node, int] = {}

    def number(self, node: fx.Node) -> int:
        if node not in self._known:
            text = node.name
            if node.op == "call_function":
                operands = fx.map_arg((node.args, node.kwargs), lambda n: f"%{self.number(n)}")
                text = f"{node.target}{operands}"
            self._known[node] = self._numbers.setdefault(text, len(self._numbers))
        return self._known[node]
