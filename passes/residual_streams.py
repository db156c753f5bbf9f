"""Residual streams: the values [B, N, C] that blocks add to, one after the other."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from operator import getitem
from typing import Any

import networkx as nx
import torch
from torch import fx

from lvtp_fx.passes.axes.flow import tensors
from lvtp_fx.passes.axes.label import Kind, Label, grids, has_kind, length
from lvtp_fx.passes.axes.pointwise import is_pointwise
from lvtp_fx.passes.axes.shape import PERMUTATIONS
from lvtp_fx.plan import AttentionMatch, LaterStream, Plan

aten = torch.ops.aten
ADDS = (aten.add.Tensor, aten.sub.Tensor, aten.addcmul.default, aten.lerp.Scalar, aten.lerp.Tensor)
_GATES = {aten.addcmul.default: 1, aten.lerp.Tensor: 2}  # the arguments from there on may scale the others
# What a residual stream may pass through, pointwise ops (a scale, a clamp) besides, and still be the same stream.
_UNCHANGED = (aten.cat.default, aten.slice.Tensor, aten.clone.default, aten.to.dtype, aten._to_copy.default,
              aten.dropout.default, aten.contiguous.default, aten.alias.default, aten.split_with_sizes.default, getitem,
              *PERMUTATIONS)
_SAME_STREAM = (aten.layer_norm.default, aten.rms_norm.default, *_UNCHANGED)


def value_graph(graph: fx.Graph) -> nx.DiGraph:
    """Values and their consumers."""
    flow = nx.DiGraph()
    for node in graph.nodes:
        flow.add_node(node)
        # Sizes are left out: every value would seem to be computed from the image through the batch size.
        flow.add_edges_from((operand, node) for operand in node.all_input_nodes
                            if isinstance(operand.meta.get("val"), (torch.Tensor, tuple, list)))
    return flow


def is_state(plan: Plan, node: fx.Node, label: Label | None = None) -> bool:
    """A value [B, N, C] over the tokens, nothing else merged into these axes: each image has one sequence. `label`: as
    it is read, where that is another one."""
    label = plan.labels.get(node, ()) if label is None else label
    if len(label) != 3 or not isinstance(node.meta.get("val"), torch.Tensor):
        return False
    return sorted(axis[0].kind.value for axis in label if len(axis) == 1) == ["batch", "plain", "token"]


def _is_column(plan: Plan, node: fx.Node) -> bool:
    """One number a token: [B, N, 1], as a norm written out divides by."""
    return any(length(axis) == 1 and not has_kind(axis, Kind.BATCH) for axis in plan.labels[node])


def grid_of(plan: Plan, node: fx.Node) -> tuple[int, int]:
    """The grid that the tokens of a state, or the rows of an attention, lie on."""
    return next(iter(grids(plan.labels[node])))


def chains(plan: Plan, flow: nx.DiGraph) -> list[list[fx.Node]]:
    """Maximal residual streams, each as its states in graph order."""
    links = nx.Graph()
    changed = computed_from(flow, plan.attentions)
    base_of = {total: base for base, total in _residual_adds(plan, flow, changed)}
    links.add_edges_from(base_of.items())
    bases, summed = set(base_of.values()), set(links)
    for base in bases:  # post-norm blocks and the like: the base of the next add is the stream seen through a norm
        path = [base]
        while len(path) == 1 or path[-1] not in summed:
            seen = _seen_through(plan, path[-1], set() if path[-1] in base_of else changed)
            if seen is None:
                break
            if seen in bases and path[-1].target not in _UNCHANGED:  # pre-norm: it goes on in front of the norm
                break
            path.append(seen)
        if path[-1] not in summed:  # where the stream begins: its axes moved to where they are in it
            path = path[: next((i + 1 for i, node in enumerate(path) if node.target in PERMUTATIONS), len(path))]
        nx.add_path(links, path)
    order = {n: i for i, n in enumerate(plan.graph_module.graph.nodes)}
    return [sorted(component, key=order.__getitem__) for component in nx.connected_components(links)]


def computed_from(flow: nx.DiGraph, attentions: Iterable[AttentionMatch]) -> set[fx.Node]:
    """These attentions, and what is computed from them."""
    found, stack = set[fx.Node](), [attention.node for attention in attentions]
    while stack:
        if (node := stack.pop()) not in found:
            found.add(node)
            stack.extend(flow.successors(node))
    return found


def _seen_through(plan: Plan, node: fx.Node, changed: set[fx.Node]) -> fx.Node | None:
    """The state that this one is, seen through a norm, a scale or the like; with what no attention has `changed`
    (features of the image) it may be added up."""
    made: Any = node.args[0] if node.target is getitem else node  # a piece of a split
    if made.target not in _SAME_STREAM and not is_pointwise(made.target):
        return None
    operands = [n for n in tensors(made) if is_state(plan, n) and not _is_column(plan, n)]
    operands = [n for n in operands if n in changed or len(operands) == 1]
    return operands[0] if len(operands) == 1 and grid_of(plan, operands[0]) == grid_of(plan, node) else None


def _is_sum(plan: Plan, node: fx.Node, sums: Container[fx.Node], changed: set[fx.Node]) -> bool:
    """Whether a state is one of these sums, or one of them seen through a norm, a scale or the like."""
    state: fx.Node | None = node
    while state is not None and state not in sums:
        state = _seen_through(plan, state, changed)
    return state is not None


def _residual_adds(plan: Plan, flow: nx.DiGraph, changed: set[fx.Node]) -> Iterator[tuple[fx.Node, fx.Node]]:
    """(stream, sum) pairs: an add of the stream and of something computed from it, or from what it was before the adds
    that led to it (`x + f(x) + g(x)`, where branches run side by side) or before a scale (`2 * x + f(x)`)."""
    order = {n: i for i, n in enumerate(plan.graph_module.graph.nodes)}
    before: dict[fx.Node, fx.Node] = {}
    for node in plan.graph_module.graph.nodes:
        if node.target not in ADDS or not is_state(plan, node):
            continue
        uses = plan.flows[node].uses  # what windows put together again is a state as it is read here
        terms = sorted({n for n in tensors(node) if is_state(plan, n, uses.get(n))}, key=order.__getitem__)
        gates = node.args[_GATES.get(node.target, len(node.args)) :]  # may be of what no attention has changed
        terms = [n for n in terms if n in changed or n is node.args[0] or n not in gates]
        if len(terms) != 2:
            continue
        for stream, term in (terms, terms[::-1]):
            if not is_state(plan, stream) or (node.target is aten.sub.Tensor and stream is not node.args[0]):
                continue
            if stream not in changed and _is_sum(plan, term, before, changed):
                continue  # the term is the stream, and this a skip from in front of it
            source: fx.Node | None = stream
            while source is not None and source not in between(flow, source, term, order):
                source = before.get(source) or _seen_through(plan, source, changed)
            if source is not None:
                before[node] = stream
                yield stream, node
                break


def between(flow: nx.DiGraph, source: fx.Node, target: fx.Node, order: dict[fx.Node, int]) -> set[fx.Node]:
    """What `target` is computed from, back to `source`, which is among it where `target` is computed from it."""
    seen: set[fx.Node] = set()
    stack = [target]
    while stack:
        for operand in flow.predecessors(stack.pop()):
            if operand not in seen and order[operand] >= order[source]:
                seen.add(operand)
                stack.append(operand)
    return seen


def other_streams(
    flow: nx.DiGraph, streams: list[list[fx.Node]], states: list[fx.Node], candidates: list[AttentionMatch]
) -> set[fx.Node]:
    """Other residual streams with attention that exchange values with this one, and the branches between their
    states. They keep the full grid: only this stream remembers what its dropped tokens were. A stream that lies
    between two states of this one is a part of a block."""
    apart = flow.subgraph(flow.nodes - set(states))
    found: set[fx.Node] = set()
    for chain in streams:
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


def later_streams(
    plan: Plan, flow: nx.DiGraph, streams: list[list[fx.Node]], states: list[fx.Node], candidates: list[AttentionMatch]
) -> tuple[LaterStream, ...]:
    """Residual streams with attention over the grid of `states` that begin behind the last of these. Two that exchange
    values are both found: each remembers its own dropped tokens. One inside a block of another is a part of that."""
    grid, behind = grid_of(plan, states[-1]), nx.descendants(flow, states[-1])
    found: list[LaterStream] = []
    for chain in streams:
        if chain[0] not in behind or any(grid_of(plan, state) != grid for state in chain):
            continue
        after, before = nx.descendants(flow, chain[0]), nx.ancestors(flow, chain[-1])
        others = other_streams(flow, streams, chain, candidates)
        members = frozenset(after & (before | {chain[-1]})) - others
        own = tuple(a for a in candidates if a.node in members and grid_of(plan, a.node) == grid)
        apart = all(members.isdisjoint(other.members) for other in found)
        if own and apart and members.issuperset(chain[1:]):
            found.append(LaterStream(own, tuple(chain), members))
    return tuple(found)
