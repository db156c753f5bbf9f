"""Coercions between token spaces: gathers down by `kept`, up by `owner`, on every token axis of a value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from lvtp_fx.passes.axes.label import Axis, Factor, Kind, Label, has_kind, plain, token_axes
from lvtp_fx.passes.rewrite_sizes import resized

aten = torch.ops.aten


@dataclass(frozen=True)
class SpaceNodes:
    """The tensors of one token space (nodes of the new graph).

    Attributes:
        count: K, grid tokens. kept: [B, K] into the parent space. owner: [B, K_parent] into this space.
        position: [B, K] on the full grid. size: [B, K] float32, grid tokens each one stands for.
        supports, shares: [B, K_parent, count], whom tokens of the parent are restored from (`lvtp.supports`); None
            where that is their owner alone.
    """

    count: int
    kept: fx.Node | None
    owner: fx.Node | None
    position: fx.Node
    size: fx.Node
    supports: fx.Node | None = None
    shares: fx.Node | None = None


@dataclass
class Coercer:
    """Inserts the coercions into a graph under construction.

    Attributes:
        graph: the new graph. spaces: space 0, 1, ... as they are born.
    """

    graph: fx.Graph
    spaces: list[SpaceNodes] = field(default_factory=list)
    _called: dict[str, fx.Node] = field(default_factory=dict)

    def call(self, name: str, *args: Any) -> fx.Node:
        """Insert `torch.ops.lvtp.<name>`, or return the node that computes the same already."""
        key = f"{name}{args}"  # a node prints as its name, which is unique
        if key not in self._called:
            target = getattr(torch.ops.lvtp, name).default
            self._called[key] = self.graph.create_node("call_function", target, args, name=f"lvtp_{name}")
        return self._called[key]

    def index(self, source: int, target: int) -> fx.Node:
        """Index tensor that takes a value of space `source` to space `target`."""
        if source < target:
            kept = self.spaces[target].kept
            assert kept is not None
            return kept if target == source + 1 else self.call("compose", self.index(source, target - 1), kept)
        owner = self.spaces[target + 1].owner
        assert owner is not None
        return owner if source == target + 1 else self.call("compose", self.index(source, target + 1), owner)

    def move(self, node: fx.Node, label: Label, source: int, target: int, out: Label) -> fx.Node:
        """Take a value with `label` from one space to another.

        A value without a batch axis (a table) gets one where `out`, the label of the op that reads it, has it.
        """
        if source == target or not token_axes(label):
            return node
        index = self.index(source, target)
        batch = next((i for i, axis in enumerate(label) if has_kind(axis, Kind.BATCH)), None)
        if batch is None:
            return self._move_table(node, label, index, out)
        tokens = self.spaces[source].count
        flat: Label = tuple((f,) for axis in label for f in axis)
        if len(flat) != len(label):
            node = self.view(node, flat, tokens)
        batch = next(i for i, axis in enumerate(flat) if has_kind(axis, Kind.BATCH))
        node = self._gather(node, flat, index, batch)
        return node if len(flat) == len(label) else self.view(node, label, self.spaces[target].count)

    def _move_table(self, node: fx.Node, label: Label, index: fx.Node, out: Label) -> fx.Node:
        lead = len(out) - len(label)
        for _ in range(lead):
            node = self.graph.call_function(aten.unsqueeze.default, (node, 0))
        padded: Label = (*(plain(1) for _ in range(lead)), *label)
        batch = next(i for i, axis in enumerate(out) if has_kind(axis, Kind.BATCH))
        index = self.per_axis(index, out[batch])
        return self._gather(node, padded, index, batch)

    def per_axis(self, index: fx.Node, axis: Axis) -> fx.Node:
        """A per-image tensor [B, J] repeated for an axis that merges the batch with others (B*H)."""
        at = next(i for i, f in enumerate(axis) if f.kind is Kind.BATCH)
        outer, inner = (resized(part, 0) if part else 1 for part in (axis[:at], axis[at + 1 :]))
        return index if outer == inner == 1 else self.call("repeat", index, outer, inner)

    def _gather(self, node: fx.Node, label: Label, index: fx.Node, batch: int) -> fx.Node:
        for axis in token_axes(label):
            factor = next(f for f in label[axis] if f.kind is Kind.TOKEN)
            node = self.call("gather", node, index, batch, axis, factor.before, factor.after)
        return node

    def view(self, node: fx.Node, label: Label, tokens: int) -> fx.Node:
        """Reshape to the axes of `label`, with `tokens` grid tokens."""
        shape = [-1 if has_kind(axis, Kind.BATCH) else resized(axis, tokens) for axis in label]
        return self.graph.call_function(aten.reshape.default, (node, shape))

    def arranged(self, node: fx.Node, label: Label, tokens: int) -> tuple[fx.Node, Label]:
        """A value [..] as [B, others, tokens, last] (others left out where there are none), and that label."""
        flat = [(f,) for axis in label[:-1] for f in axis if f.size != 1 or f.kind is Kind.BATCH] + [label[-1]]
        if len(flat) != len(label) or any(len(a) > 1 for a in label[:-1]):
            node = self.view(node, tuple(flat), tokens)
        order = sorted(range(len(flat) - 1), key=lambda i: arranged_rank(flat[i][0]))
        order.append(len(flat) - 1)
        if order != list(range(len(flat))):
            node = self.graph.call_function(aten.permute.default, (node, order))
        return node, tuple(flat[i] for i in order)

    def as_tokens(self, state: fx.Node, label: Label) -> tuple[fx.Node, list[int]]:
        """A state of the stream as [B, L, C], permuted once however often it is asked for, and the permutation."""
        batch = next(i for i, axis in enumerate(label) if has_kind(axis, Kind.BATCH))
        token = token_axes(label)[0]
        order = [batch, token, 3 - batch - token]
        if order == [0, 1, 2]:
            return state, order
        key = f"permute{(state, order)}"
        if key not in self._called:
            self._called[key] = self.graph.call_function(aten.permute.default, (state, order))
        return self._called[key], order

    def as_before(self, tokens: fx.Node, order: list[int]) -> fx.Node:
        """The inverse of `as_tokens`."""
        if order == [0, 1, 2]:
            return tokens
        return self.graph.call_function(aten.permute.default, (tokens, [order.index(i) for i in range(3)]))


def arranged_rank(factor: Factor) -> int:
    """Batch first, tokens last, others between."""
    return {Kind.BATCH: 0, Kind.TOKEN: 2}.get(factor.kind, 1)
