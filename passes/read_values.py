"""What an operand of a node is in the new graph: the value itself, gathered, copied or restored."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from lvtp_fx.passes.assign_spaces import births, seen, sites_by_state
from lvtp_fx.passes.axes.flow import Flow
from lvtp_fx.passes.axes.label import Kind, Label, grids, has_kind, plain, token_axes
from lvtp_fx.passes.coerce import Coercer, SpaceNodes
from lvtp_fx.passes.reduce_nodes import from_full_grid
from lvtp_fx.passes.remember import copy_record
from lvtp_fx.passes.restore_nodes import restore_node
from lvtp_fx.passes.rewrite_sizes import resized
from lvtp_fx.plan import Plan
from lvtp_fx.record import CopyRecord


class Values:
    """What each old value became, space by space.

    Attributes:
        base: values where they were computed. moved: the same in another space.
        left: (before, after) the reduction of each state in `born`.
        restored, reduced, copied: as in `Record`.
    """

    def __init__(self, plan: Plan, to: Coercer) -> None:
        assert plan.trunk is not None
        self.plan, self.trunk, self.to = plan, plan.trunk, to
        self.numbers, self.born = sites_by_state(plan), births(plan)
        self.reducible, self.states = plan.reducible, frozenset(plan.states)
        self.entry = {state: stream.states[0] for stream in plan.later for state in stream.states}
        self.base: dict[fx.Node, fx.Node] = {}
        self.moved: dict[tuple[fx.Node, int, Label, Any], fx.Node] = {}
        self.left: dict[fx.Node, tuple[fx.Node, fx.Node]] = {}
        self.restored: set[tuple[str, str]] = set()
        self.reduced: set[tuple[str, str]] = set()
        self.copied: list[CopyRecord] = []

    def operand(self, value: fx.Node, reader: fx.Node, flow: Flow, target: int) -> fx.Node:
        """`value` as `reader` needs it: in space `target`."""
        label = flow.uses.get(value, self.plan.labels.get(value))
        inside = reader in self.reducible
        source = seen(value, self.plan.spaces, self.born) if inside else self.plan.spaces[value]
        if label is None or not isinstance(value.meta.get("val"), torch.Tensor):
            return self.base[value]
        if self.trunk.grid not in grids(label):
            return self.base[value]
        if value in self.states and target < self.plan.spaces[value]:
            self.restored.add((value.name, reader.name))
            return self._restore(value, target)
        out = flow.out if isinstance(flow.out, tuple) else ()
        own = self.plan.labels[value]
        if target < source and value not in self.states:
            self.copied.append(copy_record(value.name, reader.name, source, own))
        if source and value not in self.born and token_axes(own) and token_axes(own) != token_axes(label):
            return self._partly(value, own, label, source, target)
        if value in self.born and source == self.born[value]:
            # The state is seen after its reduction; an op that needs the full grid sees it as it was before.
            if target < source:
                source = self.plan.spaces[value]
            else:
                self.reduced.add((value.name, reader.name))
                return self._cached(value, self.left[value][1], label, source, target, out)
        return self._cached(value, self.base[value], label, source, target, out)

    def _partly(self, value: fx.Node, own: Label, label: Label, source: int, target: int) -> fx.Node:
        """A product of tokens and a table (q @ r^T, r a table over all tokens), read as tokens on both axes: one axis
        is in the value's space, the other still runs over the full grid."""
        node = self._cached(value, self.base[value], own, source, target, own)
        key = (value, target, label, None)
        if key not in self.moved:
            count = self.to.spaces[target].count
            rest = tuple(plain(resized(a, count)) if token_axes((a,)) else b for a, b in zip(own, label, strict=True))
            self.moved[key] = self.to.move(node, rest, 0, target, label)
        return self.moved[key]

    def _cached(
        self, value: fx.Node, node: fx.Node, label: Label, source: int, target: int, out: Any
    ) -> fx.Node:
        # What all images share is gathered for each of them: where the batch goes, the reader's result says.
        key = (value, target, label, None if any(has_kind(a, Kind.BATCH) for a in label) else out)
        if source == target:
            return node
        if key not in self.moved:
            self.moved[key] = self.to.move(node, label, source, target, out)
        return self.moved[key]

    def _restore(self, state: fx.Node, target: int) -> fx.Node:
        """Undo the reductions of a state of the stream, the latest first."""
        label = self.plan.labels[state]
        node, mode = self.base[state], self.plan.config.restore
        source = self.plan.spaces[state]
        if mode == "copy":
            return self._cached(state, node, label, source, target, label)
        key = (state, target, label, None)
        if key not in self.moved:
            for born, space in self._way_back(state, source, target):
                site = (*self.left[born], self.plan.labels[born])
                node = restore_node(self.to, mode, node, label, site, space)
            self.moved[key] = node
        return self.moved[key]

    def _way_back(self, state: fx.Node, source: int, target: int) -> list[tuple[fx.Node, SpaceNodes]]:
        """The reductions that lie between a state and space `target`: the states that were reduced, and the spaces."""
        if state in self.entry:  # it went from the full grid to the last space at once
            return [(self.entry[state], from_full_grid(self.to, source))]
        states = {space: site for site, space in self.numbers.items()}
        return [(states[space], self.to.spaces[space]) for space in range(source, target, -1)]
