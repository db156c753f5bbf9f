"""Re-emit the graph with token reduction after the sites, coercions where spaces differ, and restore."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import fx

from lvtp_fx.passes.assign_spaces import births, seen, sites_by_state
from lvtp_fx.passes.axes.flow import Flow
from lvtp_fx.passes.axes.label import Kind, Label, grids, has_kind, plain, token_axes
from lvtp_fx.passes.coerce import Coercer, SpaceNodes
from lvtp_fx.passes.hidden_tokens import compute_early, find_hiding, full_grid
from lvtp_fx.passes.reduce_nodes import from_full_grid, reduce_node
from lvtp_fx.passes.remember import copy_record, ends, hook_record, hook_records, state_record
from lvtp_fx.passes.restore_nodes import restore_node
from lvtp_fx.passes.rewrite_sizes import arguments, resized, true_size
from lvtp_fx.passes.site_nodes import key_ends, site_mask, site_nodes
from lvtp_fx.passes.weigh_keys import weigh_keys
from lvtp_fx.plan import Plan
from lvtp_fx.record import CopyRecord, Record, SiteRecord
from lvtp_fx.strategies import Choice, get

aten = torch.ops.aten


@dataclass(frozen=True)
class InsertReduction:
    """Builds the pruned graph, node by node.

    Requires: all the others. Ensures: `pruned` and `record`.

        before                        after
        add_1 = add(x, attention)     add_1 = add(x, attention)
                                      entropy, edges, representatives, rank = lvtp...
                                      select = lvtp.select(rank, K); owners = lvtp.owners(...)
                                      merge = lvtp.merge(add_1, owners, ...)
        norm(add_1) ...               norm(merge) ...
        sdpa(q, k, v)                 sdpa(q, k, v, lvtp.key_bias(sizes))
        head(add_24)                  head(lvtp.restore(add_24, add_1, merge, owners))
    """

    name: ClassVar[str] = "insert_reduction"

    def __call__(self, plan: Plan) -> Plan:
        graph, record = _Emitter(plan).run()
        return replace(plan, pruned=graph, record=record)


class _Emitter:
    """State of one re-emission: the new graph and what each old value became, space by space."""

    def __init__(self, plan: Plan) -> None:
        assert plan.trunk is not None
        self.plan, self.trunk = plan, plan.trunk
        self.graph = fx.Graph()
        self.to = Coercer(self.graph)
        self.numbers = sites_by_state(plan)
        self.hiding = find_hiding(plan)
        compute_early(plan, self.hiding)
        self.born = births(plan)
        self.reducible, self.states = plan.reducible, frozenset(plan.states)
        self.entry = {state: stream.states[0] for stream in plan.later for state in stream.states}
        self.base: dict[fx.Node, fx.Node] = {}  # values where they were computed
        self.moved: dict[tuple[fx.Node, int, Label], fx.Node] = {}
        self.left: dict[fx.Node, tuple[fx.Node, fx.Node]] = {}  # (before, after) the reduction of each state in `born`
        self.sites: list[SiteRecord] = []
        self.restored: set[tuple[str, str]] = set()
        self.reduced: set[tuple[str, str]] = set()
        self.copied: list[CopyRecord] = []

    def run(self) -> tuple[fx.Graph, Record]:
        for node in self.plan.graph_module.graph.nodes:
            self._emit(node)
            if node in self.numbers:
                self._reduce(node)
            elif node in self.born:
                self._enter(node)
        record = Record(
            self.plan.config, tuple(self.sites),
            tuple(state_record(self.plan, state, self.base[state].name, self.entry.get(state))
                  for state in self.plan.states),
            tuple(hook_records(self.plan)), frozenset(self.restored), frozenset(self.reduced), tuple(self.copied),
            self.trunk.grid, tuple(hook_record(self.plan, attention) for attention in self.hiding.attentions),
        )
        return self.graph, record

    def _emit(self, node: fx.Node) -> None:
        space, flow = self.plan.spaces[node], self.plan.flows[node]
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self._operand(n, node, flow, space))
        if space:
            args = arguments(self.graph, node, args, flow, self.to.spaces[space].count)
            if node.target is aten.scaled_dot_product_attention.default:
                kwargs = dict(kwargs)
                mask = kwargs.pop("attn_mask", None) if len(args) < 4 else args[3]
                args = (*args[:3], mask, *args[4:])
                if self.plan.config.proportional_attention:
                    args = weigh_keys(self.to, node, args, flow, self.trunk.grid, space)
        new = self.graph.create_node(node.op, node.target, args, kwargs, node.name, node.type)
        new.meta = {k: v for k, v in node.meta.items() if k != "val" or not space}
        self.base[node] = self._true_size(node, new)

    def _true_size(self, node: fx.Node, new: fx.Node) -> fx.Node:
        """Code that asks a reduced value for its size must hear the size of the full grid."""
        if node.target is not aten.sym_size.int:
            return new
        source, dim = node.args
        assert isinstance(source, fx.Node) and isinstance(dim, int)
        space, label = self.plan.spaces[source], self.plan.labels.get(source)
        if not space or label is None:
            return new
        return true_size(self.graph, new, label[dim], self.to.spaces[space].count)

    def _operand(self, value: fx.Node, reader: fx.Node, flow: Flow, target: int) -> fx.Node:
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
        if (value, target, label) not in self.moved:
            count = self.to.spaces[target].count
            rest = tuple(plain(resized(a, count)) if token_axes((a,)) else b for a, b in zip(own, label, strict=True))
            self.moved[value, target, label] = self.to.move(node, rest, 0, target, label)
        return self.moved[value, target, label]

    def _cached(
        self, value: fx.Node, node: fx.Node, label: Label, source: int, target: int, out: Any
    ) -> fx.Node:
        key = (value, target, label if any(has_kind(a, Kind.BATCH) for a in label) else out)
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
        if (state, target, label) not in self.moved:
            for born, space in self._way_back(state, source, target):
                site = (*self.left[born], self.plan.labels[born])
                node = restore_node(self.to, mode, node, label, site, space)
            self.moved[state, target, label] = node
        return self.moved[state, target, label]

    def _way_back(self, state: fx.Node, source: int, target: int) -> list[tuple[fx.Node, SpaceNodes]]:
        """The reductions that lie between a state and space `target`: the states that were reduced, and the spaces."""
        if state in self.entry:  # it went from the full grid to the last space at once
            return [(self.entry[state], from_full_grid(self.to, source))]
        states = {space: site for site, space in self.numbers.items()}
        return [(states[space], self.to.spaces[space]) for space in range(source, target, -1)]

    def _reduce(self, state: fx.Node) -> None:
        """Insert the reduction of a site after its state."""
        number = self.numbers[state]
        site = self.plan.sites[number - 1]
        label, entered = self.plan.labels[state], self.base[state]
        stream, _ = self.to.as_tokens(entered, label)
        attention, config = self.trunk.blocks[site.block].attention, self.plan.config
        if not self.to.spaces:
            self.to.spaces.append(full_grid(self.to, stream, site.parent, list(self._hiding_masks(site.parent))))
        here = self.to.spaces[-1]
        context = site_nodes(self.plan, number - 1, stream, ends(label), self._image(), bool(self.hiding.attentions),
                             self.to, partial(self._read, site.block))
        choice = Choice(*get(config.strategy).decide(context, config))
        kept, owner = choice[:2]
        reduced = reduce_node(self.to, config.reduce, entered, label, here.size, kept, owner)
        position = self.to.call("compose", here.position, kept)
        size = self.to.call("sizes", here.size, owner, site.kept)
        self.to.spaces.append(SpaceNodes(site.kept, kept, owner, position, size, choice.supports, choice.shares))
        self.left[state] = (entered, reduced)
        self.sites.append(SiteRecord(attention.path, state.name, *(node.name if node else "" for node in choice)))

    def _hiding_masks(self, tokens: int) -> Iterator[tuple[fx.Node, tuple[int, int]]]:
        """As of `full_grid`."""
        for attention in self.hiding.attentions:
            node, flow = attention.node, self.plan.flows[attention.node]
            mask = site_mask(self.plan, node, tokens, self.to, partial(self._operand, reader=node, flow=flow, target=0))
            assert mask is not None
            yield mask, key_ends(self.plan, node)

    def _enter(self, state: fx.Node) -> None:
        """A later stream goes on with the tokens that live on behind the last site."""
        space = from_full_grid(self.to, self.born[state])
        assert space.kept is not None and space.owner is not None
        reduced = reduce_node(self.to, self.plan.config.reduce, self.base[state], self.plan.labels[state],
                              self.to.spaces[0].size, space.kept, space.owner)
        self.left[state] = (self.base[state], reduced)

    def _read(self, block: int, value: fx.Node) -> fx.Node:
        """A value as the attention of a block reads it, of the tokens that live there; the attention itself may run on
        the full grid."""
        attention, state = self.trunk.blocks[block].attention.node, self.trunk.blocks[block].state
        return self._operand(value, attention, self.plan.flows[attention], self.plan.spaces[state])

    def _image(self) -> fx.Node | None:
        """The picture, [B, channels, height, width]."""
        image = self.trunk.image
        if image is None:
            return None
        if has_kind(self.plan.labels[image][1], Kind.HEIGHT):  # [B, height, width, channels]
            return self.graph.call_function(aten.permute.default, (self.base[image], [0, 3, 1, 2]))
        return self.base[image]
