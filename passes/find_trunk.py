"""Find the encoder: the attention blocks that share one residual stream over the patch grid."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import ClassVar

import networkx as nx
from torch import fx

from lvtp_fx import provenance
from lvtp_fx.errors import Code, LvtpError
from lvtp_fx.passes.axes.label import Kind, grids, has_kind, token_factor
from lvtp_fx.passes.find_image import find_image
from lvtp_fx.passes.label_axes import rule_of
from lvtp_fx.passes.residual_streams import (
    chains,
    computed_from,
    grid_of,
    later_streams,
    other_streams,
    value_graph,
)
from lvtp_fx.plan import AttentionMatch, Block, Miss, Plan, Trunk


@dataclass(frozen=True)
class FindTrunk:
    """Finds stream, blocks and cut points. A state of the stream is a *cut point* where it dominates the
    encoder's output: everything that comes later sees the tokens only through it, or as they were before the first
    attention (a long skip from the embedding, features of the image, the first block's values).

    Requires: `attentions`, `labels`. Ensures: `trunk` (the chain with the most attention), or `trunk` None with a
    miss for each attention.

        x0 -> norm -> attention -> add(x0, .) = x1 -> norm -> mlp -> add(x1, .) = x2 -> ...
        states: x1, x2, ...          block 0: attention, state x1
    """

    name: ClassVar[str] = "find_trunk"

    def __call__(self, plan: Plan) -> Plan:
        candidates, misses = _self_attentions(plan)
        if not candidates:
            return replace(plan, misses=(*plan.misses, *misses))
        flow = value_graph(plan.graph_module.graph)
        streams = chains(plan, flow)
        best: tuple[int, list[fx.Node], list[AttentionMatch]] = (0, [], [])
        for states in streams:
            own = [a for a in candidates if grid_of(plan, a.node) == grid_of(plan, states[-1])
                   and _between(flow, a.node, states)]
            if len(own) > best[0]:
                best = (len(own), states, own)
        _, states, own = best
        others = other_streams(flow, streams, states, candidates)
        root, members = _extent(plan, flow, states) if own else (None, frozenset())
        foreign = [a for a in own if reads_other_tokens(plan, a.node, members)]
        own = [a for a in own if a.node not in others and a not in foreign]
        later = later_streams(plan, flow, streams, states, candidates) if own else ()
        used = {a.node for a in own}.union(a.node for stream in later for a in stream.attentions)
        reason = "it is not part of the residual stream with the most attention blocks" if own else \
            "no residual stream [batch, tokens, channels] leads through it (tokens that a convolution or windows mix " \
            "in each block, a batch that the model makes of views or frames, or a block without a skip connection)"
        misses += [_miss(a, "its keys are not of the tokens that its stream is of (a second image)" if a in foreign else
                         reason, 4) for a in candidates if a.node not in used]
        if not own:
            return replace(plan, misses=(*plan.misses, *misses))
        assert root is not None
        blocks, grid = _blocks(plan, flow, states, own, (root, members)), grid_of(plan, states[-1])
        trunk = Trunk(root, find_image(plan, flow, root, grid), grid, blocks, tuple(states), members - others, later)
        return replace(plan, trunk=trunk, misses=(*plan.misses, *misses))


def _self_attentions(plan: Plan) -> tuple[list[AttentionMatch], list[Miss]]:
    good, misses = [], []
    for match in plan.attentions:
        q, k = (plan.labels.get(n, ()) for n in match.node.args[:2] if isinstance(n, fx.Node))
        rows, columns = (token_factor(label[-2]) if len(label) > 1 and len(label[-2]) == 1 else None
                         for label in (q, k))
        flow = plan.flows[match.node]
        if flow.full:
            misses.append(_miss(match, flow.full, 4))
        elif columns is None:
            misses.append(_miss(match, "its keys are not the tokens of a patch grid (a window, or channels)"
                                + _lost(plan, match.node), 3))
        elif rows is None:
            misses.append(_miss(match, "its queries are not the tokens of the grid (cross-attention, or some of them "
                                "only)", 3))
        elif not any(has_kind(axis, Kind.BATCH) for axis in q):
            misses.append(_miss(match, "its images are taken out of the batch one by one, batches are joined, or a "
                                "further axis (views, frames) is merged into the batch", 3))
        elif rows != columns:
            misses.append(_miss(match, "its queries and keys run over different tokens", 3))
        else:
            good.append(match)
    return good, misses


def _lost(plan: Plan, node: fx.Node) -> str:
    """The op without a rule at which the tokens were lost on the way to a node, the last there is, or ""."""
    seen, queue = {node}, deque([node])
    while queue:
        here = queue.popleft()
        for operand in here.all_input_nodes:
            if here is not node and grids(plan.labels.get(operand, ())):
                if rule_of(here.target) is None and (why := plan.flows[here].full):
                    return f"; the tokens were lost at {provenance.describe(here)}: {why}"
            elif operand not in seen:
                seen.add(operand)
                queue.append(operand)
    return ""


def _miss(match: AttentionMatch, reason: str, near: int) -> Miss:
    return Miss(match.path, provenance.describe(match.node), reason, near)


def _between(flow: nx.DiGraph, node: fx.Node, states: list[fx.Node]) -> bool:
    """Whether an attention lies on the stream: fed by its first state, and added to a later one."""
    return bool(nx.has_path(flow, states[0], node) and nx.has_path(flow, node, states[-1]))


def reads_other_tokens(plan: Plan, attention: fx.Node, members: frozenset[fx.Node]) -> bool:
    """Whether keys or values are tokens but not of these members, though on a grid of the same size (of a second image,
    say): all of them are there to be attended to, whatever lives on of the members'."""
    uses = plan.flows[attention].uses
    return any(isinstance(n, fx.Node) and n not in members and grids(uses.get(n, ())) for n in attention.args[1:3])


def _extent(plan: Plan, flow: nx.DiGraph, states: list[fx.Node]) -> tuple[fx.Node, frozenset[fx.Node]]:
    """Where the tokens of a stream are born, and all nodes from there to its last state."""
    order, grid = {n: i for i, n in enumerate(plan.graph_module.graph.nodes)}, grid_of(plan, states[-1])
    # Token by token: what else is on such a grid (a second image that is attended to) has no part in the stream.
    tokens = flow.subgraph([n for n in flow if grid in grids(plan.labels.get(n, ()))])
    root = min(nx.ancestors(tokens, states[0]) | {states[0]}, key=order.__getitem__)
    return root, frozenset(nx.ancestors(flow, states[-1]) | {states[-1]}) & (nx.descendants(flow, root) | {root})


def _blocks(
    plan: Plan, flow: nx.DiGraph, states: list[fx.Node], own: list[AttentionMatch],
    extent: tuple[fx.Node, frozenset[fx.Node]],
) -> tuple[Block, ...]:
    """Each attention with the first cut point behind it."""
    (root, members), end = extent, states[-1]
    order = {n: i for i, n in enumerate(plan.graph_module.graph.nodes)}
    cuts = _dominators(flow.subgraph(members), root, end)
    loose = _dominators(flow.subgraph(members & computed_from(flow, own)), root, end)
    blocks = []
    for match in own:
        after = nx.descendants(flow, match.node)
        strict = next(s for s in states if s in cuts and s in after)
        first = next(s for s in states if s in loose and s in after)
        # What no attention has changed may be read behind a block, but not in it: its MLP may run side by side.
        late = any(order[first] < order[other.node] < order[strict] for other in own)
        blocks.append(Block(match, first if late else strict))
    return tuple(blocks)


def _dominators(flow: nx.DiGraph, root: fx.Node, end: fx.Node) -> set[fx.Node]:
    """The nodes that all ways to `end` lead through, from the root or from where the graph begins."""
    rooted = nx.DiGraph(flow)
    rooted.add_edges_from([(root, node) for node, count in flow.in_degree() if count == 0 and node is not root])
    dominators = nx.immediate_dominators(rooted, root)
    found, node = {end}, end
    while dominators.get(node) not in (None, node):
        node = dominators[node]
        found.add(node)
    return found


def refuse_unmatched(plan: Plan) -> LvtpError:
    """The error where no attention can be used: it names the nearest miss and why."""
    nearest = plan.nearest_miss
    return LvtpError(
        Code.ATTENTION_NOT_MATCHED,
        where=nearest.where if nearest else "the whole graph",
        expected="at least one block softmax(q k^T) v over the tokens of a patch grid, added to a residual stream",
        got=f"{len(plan.attentions)} attention nodes; the nearest miss: {nearest.reason}" if nearest
        else "no softmax that looks like attention",
        why="without a matched block nothing can be pruned, and a silent no-op would look like success",
        hint="lvtp_fx.explain(model, example_inputs) lists every miss; pass the encoder alone if the model hides it",
    )
