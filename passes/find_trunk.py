"""Find the encoder: the attention blocks that share one residual stream over the patch grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import networkx as nx
import torch
from torch import fx

from lvtp_fx import provenance
from lvtp_fx.errors import Code, LvtpError
from lvtp_fx.passes.axes.flow import tensors
from lvtp_fx.passes.axes.label import Kind, grids, has_kind, token_axes, token_factor
from lvtp_fx.plan import AttentionMatch, Block, Miss, Plan, Trunk

aten = torch.ops.aten
_ADDS = (aten.add.Tensor, aten.addcmul.default)
# What a residual stream may pass through and still be the same stream.
_SAME_STREAM = (aten.add.Tensor, aten.layer_norm.default, aten.rms_norm.default, aten.cat.default, aten.concat.default,
                aten.slice.Tensor, aten.clone.default, aten.to.dtype, aten._to_copy.default, aten.dropout.default,
                aten.contiguous.default, aten.alias.default)


@dataclass(frozen=True)
class FindTrunk:
    """Finds stream, blocks and cut points. A state of the stream is a *cut point* where it dominates the
    encoder's output: everything that comes later sees the tokens only through it.

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
        flow = _value_graph(plan)
        chains = _chains(plan, flow)
        best: tuple[int, list[fx.Node], list[AttentionMatch]] = (0, [], [])
        for states in chains:
            own = [a for a in candidates if _between(flow, a.node, states)]
            if len(own) > best[0]:
                best = (len(own), states, own)
        _, states, own = best
        others = _other_streams(flow, chains, states, candidates)
        own = [a for a in own if a.node not in others]
        reason = "it is not part of the residual stream with the most attention blocks" if own else \
            "no residual stream [batch, tokens, channels] leads through it (tokens kept as rows and columns between " \
            "blocks, or a block without a skip connection)"
        misses += [_miss(a, reason, 4) for a in candidates if a not in own]
        if not own:
            return replace(plan, misses=(*plan.misses, *misses))
        trunk = _trunk(plan, flow, states, own, others)
        return replace(plan, trunk=trunk, misses=(*plan.misses, *misses))


def _self_attentions(plan: Plan) -> tuple[list[AttentionMatch], list[Miss]]:
    good, misses = [], []
    for match in plan.attentions:
        q, k = (plan.labels.get(n, ()) for n in match.node.args[:2] if isinstance(n, fx.Node))
        rows, columns = (token_factor(label[-2]) if len(label) > 1 else None for label in (q, k))
        flow = plan.flows[match.node]
        if flow.full:
            misses.append(_miss(match, flow.full, 4))
        elif columns is None:
            misses.append(_miss(match, "its keys are not the tokens of a patch grid (a window, or channels)", 3))
        elif rows is None:
            misses.append(_miss(match, "its queries are not the tokens of the grid (cross-attention)", 3))
        elif rows != columns:
            misses.append(_miss(match, "its queries and keys run over different tokens", 3))
        else:
            good.append(match)
    return good, misses


def _miss(match: AttentionMatch, reason: str, near: int) -> Miss:
    return Miss(match.path, provenance.describe(match.node), reason, near)


def _value_graph(plan: Plan) -> nx.DiGraph:
    """Values and their consumers."""
    graph = nx.DiGraph()
    for node in plan.graph_module.graph.nodes:
        graph.add_node(node)
        # Sizes are left out: every value would seem to be computed from the image through the batch size.
        graph.add_edges_from((operand, node) for operand in node.all_input_nodes
                             if isinstance(operand.meta.get("val"), (torch.Tensor, tuple, list)))
    return graph


def _is_state(plan: Plan, node: fx.Node) -> bool:
    """A value [B, N, C] over the tokens."""
    label = plan.labels.get(node, ())
    return len(label) == 3 and isinstance(node.meta.get("val"), torch.Tensor) and len(token_axes(label)) == 1 \
        and any(has_kind(axis, Kind.BATCH) for axis in label)


def _residual_adds(plan: Plan, flow: nx.DiGraph) -> Iterator[tuple[fx.Node, fx.Node]]:
    """(stream, sum) pairs: an add of the stream and of something computed from it, or, where branches run side by
    side (`x + f(x) + g(x)`), from what it was before the adds that led to it."""
    order = {n: i for i, n in enumerate(plan.graph_module.graph.nodes)}
    before: dict[fx.Node, fx.Node] = {}
    for node in plan.graph_module.graph.nodes:
        if node.target not in _ADDS or not _is_state(plan, node):
            continue
        terms = sorted({n for n in tensors(node) if _is_state(plan, n)}, key=order.__getitem__)
        if len(terms) != 2:
            continue
        for stream, term in (terms, terms[::-1]):
            source = stream if stream is terms[0] else before.get(stream)
            while source is not None and not _reaches(flow, source, term, order):
                source = before.get(source)
            if source is not None:
                before[node] = stream
                yield stream, node
                break


def _reaches(flow: nx.DiGraph, source: fx.Node, target: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Whether target is computed from source; only the nodes between the two are looked at."""
    seen, stack = {target}, [target]
    while stack:
        for operand in flow.predecessors(stack.pop()):
            if operand is source:
                return True
            if operand not in seen and order[operand] > order[source]:
                seen.add(operand)
                stack.append(operand)
    return False


def _chains(plan: Plan, flow: nx.DiGraph) -> list[list[fx.Node]]:
    """Maximal residual streams, each as its states in graph order."""
    links = nx.Graph()
    bases: set[fx.Node] = set()
    for base, total in _residual_adds(plan, flow):
        links.add_edge(base, total)
        bases.add(base)
    for base in bases:  # post-norm blocks and the like: the base of the next add is the stream seen through a norm
        node = base
        while node.target in _SAME_STREAM:
            operands = [n for n in tensors(node) if _is_state(plan, n)]
            if len(operands) != 1 or (node in links and node is not base):
                break
            links.add_edge(operands[0], node)
            node = operands[0]
    order = {n: i for i, n in enumerate(plan.graph_module.graph.nodes)}
    return [sorted(component, key=order.__getitem__) for component in nx.connected_components(links)]


def _between(flow: nx.DiGraph, node: fx.Node, states: list[fx.Node]) -> bool:
    """Whether an attention lies on the stream: fed by its first state, and added to a later one."""
    return bool(nx.has_path(flow, states[0], node) and nx.has_path(flow, node, states[-1]))


def _other_streams(
    flow: nx.DiGraph, chains: list[list[fx.Node]], states: list[fx.Node], candidates: list[AttentionMatch]
) -> set[fx.Node]:
    """Other residual streams with attention that exchange values with this one, and the branches between their
    states. They keep the full grid: only this stream remembers what its dropped tokens were. A stream that lies
    between two states of this one is a part of a block."""
    apart = flow.subgraph(flow.nodes - set(states))
    found: set[fx.Node] = set()
    for chain in chains:
        if chain is states:
            continue
        inside = [s for s in chain if s in apart]
        earlier, later = nx.ancestors(flow, inside[0]), nx.descendants(flow, inside[-1])
        if all(state in earlier or state in later for state in states):
            continue
        after = set(inside).union(*(nx.descendants(apart, s) for s in inside))
        stream = after.intersection(set(inside).union(*(nx.ancestors(apart, s) for s in inside)))
        if any(match.node in stream for match in candidates):
            found |= stream
    return found


def _trunk(
    plan: Plan, flow: nx.DiGraph, states: list[fx.Node], own: list[AttentionMatch], others: set[fx.Node]
) -> Trunk:
    end = states[-1]
    factor = token_factor(plan.labels[end][token_axes(plan.labels[end])[0]])
    assert factor is not None
    before_end = nx.ancestors(flow, end) | {end}
    root = next(n for n in plan.graph_module.graph.nodes
                if n in before_end and factor.grid in grids(plan.labels.get(n, ()))
                and nx.has_path(flow, n, own[0].node))
    members = before_end & (nx.descendants(flow, root) | {root})
    dominators = nx.immediate_dominators(flow.subgraph(members), root)
    cuts = {end}
    node = end
    while dominators.get(node) not in (None, node):
        node = dominators[node]
        cuts.add(node)
    blocks = []
    for match in own:
        after = nx.descendants(flow, match.node)
        state = next(s for s in states if s in cuts and s in after)
        blocks.append(Block(match, state))
    return Trunk(root, _image(plan, flow, root), factor.grid, tuple(blocks), tuple(states),
                 frozenset(members - others))


def _image(plan: Plan, flow: nx.DiGraph, root: fx.Node) -> fx.Node | None:
    """The picture that enters the patch embedding: the placeholder of four axes that the root is computed from."""
    found = [n for n in nx.ancestors(flow, root) | {root} if n.op == "placeholder" and n.meta["val"].ndim == 4
             and n.meta["val"].is_floating_point()]
    return found[0] if found else None


def refuse_unmatched(plan: Plan) -> LvtpError:
    """The error where no attention can be used: it names the nearest miss and why."""
    nearest = max(plan.misses, key=lambda m: m.near, default=None)
    return LvtpError(
        Code.ATTENTION_NOT_MATCHED,
        where=nearest.where if nearest else "the whole graph",
        expected="at least one block softmax(q k^T) v over the tokens of a patch grid, added to a residual stream",
        got=f"{len(plan.attentions)} attention nodes; the nearest miss: {nearest.reason}" if nearest
        else "no softmax that looks like attention",
        why="without a matched block nothing can be pruned, and a silent no-op would look like success",
        hint="lvtp_fx.explain(model, example_inputs) lists every miss; pass the encoder alone if the model hides it",
    )
