"""Re-emit the graph with token reduction after the sites, coercions where spaces differ, and restore."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import fx

from lvtp_fx.passes.axes.label import Kind, has_kind
from lvtp_fx.passes.coerce import Coercer, SpaceNodes
from lvtp_fx.passes.hidden_tokens import compute_early, find_hiding, full_grid
from lvtp_fx.passes.read_values import Values
from lvtp_fx.passes.reduce_nodes import from_full_grid, reduce_node
from lvtp_fx.passes.remember import ends, hook_record, hook_records, state_record
from lvtp_fx.passes.rewrite_sizes import arguments, true_size
from lvtp_fx.passes.site_nodes import key_ends, site_mask, site_nodes
from lvtp_fx.passes.weigh_keys import weigh_keys
from lvtp_fx.plan import Plan
from lvtp_fx.record import Record, SiteRecord
from lvtp_fx.strategies import Choice, get

aten = torch.ops.aten


@dataclass(frozen=True)
class InsertReduction:
    """Builds the pruned graph, node by node.

    Requires: all the others. Ensures: `pruned` and `record`.

        before                        after
        add_1 = add(x, attention)     add_1 = add(x, attention)
                                      comparable, entropy, edges, representatives, rank = lvtp...
                                      select = lvtp.select(rank, K); dropped = lvtp.dropped(select, N)
                                      owners = lvtp.owners(comparable, select, dropped)
                                      sizes = lvtp.sizes(ones, owners); merge = lvtp.merge(add_1, owners, sizes, ...)
        norm(add_1) ...               norm(merge) ...
        sdpa(q, k, v)                 sdpa(q, k, v, lvtp.key_bias(sizes))
        head(add_24)                  head(lvtp.restore(add_24, add_1, merge, owners))
    """

    name: ClassVar[str] = "insert_reduction"

    def __call__(self, plan: Plan) -> Plan:
        graph, record = _Emitter(plan).run()
        return replace(plan, pruned=graph, record=record)


class _Emitter:
    """State of one re-emission: the new graph and what is in it so far."""

    def __init__(self, plan: Plan) -> None:
        assert plan.trunk is not None
        self.plan, self.trunk = plan, plan.trunk
        self.graph = fx.Graph()
        self.to = Coercer(self.graph)
        self.hiding = find_hiding(plan)
        compute_early(plan, self.hiding)
        self.values = Values(plan, self.to)
        self.sites: list[SiteRecord] = []

    def run(self) -> tuple[fx.Graph, Record]:
        values = self.values
        for node in self.plan.graph_module.graph.nodes:
            self._emit(node)
            if node in values.numbers:
                self._reduce(node)
            elif node in values.born:
                self._enter(node)
        record = Record(
            self.plan.config, tuple(self.sites),
            tuple(state_record(self.plan, state, values.base[state].name, values.entry.get(state))
                  for state in self.plan.states),
            tuple(hook_records(self.plan)), frozenset(values.restored), frozenset(values.reduced),
            tuple(values.copied),
            self.trunk.grid, tuple(hook_record(self.plan, attention) for attention in self.hiding.attentions),
        )
        return self.graph, record

    def _emit(self, node: fx.Node) -> None:
        space, flow = self.plan.spaces[node], self.plan.flows[node]
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self.values.operand(n, node, flow, space))
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
        self.values.base[node] = self._true_size(node, new)

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

    def _reduce(self, state: fx.Node) -> None:
        """Insert the reduction of a site after its state."""
        number = self.values.numbers[state]
        site = self.plan.sites[number - 1]
        label, entered = self.plan.labels[state], self.values.base[state]
        stream, _ = self.to.as_tokens(entered, label)
        attention, config = self.trunk.blocks[site.block].attention, self.plan.config
        if not self.to.spaces:
            self.to.spaces.append(full_grid(self.to, stream, site.parent, list(self._hiding_masks(site.parent))))
        here = self.to.spaces[-1]
        context = site_nodes(self.plan, number - 1, stream, ends(label), self._image(), bool(self.hiding.attentions),
                             self.to, partial(self._read, site.block))
        choice = Choice(*get(config.strategy).decide(context, config))
        kept, owner = choice[:2]
        position = self.to.call("compose", here.position, kept)
        size = self.to.call("sizes", here.size, owner, site.kept)
        space = SpaceNodes(site.kept, kept, owner, position, size, choice.supports, choice.shares)
        self.values.left[state] = (entered, reduce_node(self.to, config.reduce, entered, label, here, space))
        self.to.spaces.append(space)
        self.sites.append(SiteRecord(attention.path, state.name, *(node.name if node else "" for node in choice)))

    def _hiding_masks(self, tokens: int) -> Iterator[tuple[fx.Node, tuple[int, int]]]:
        """As of `full_grid`."""
        for attention in self.hiding.attentions:
            node, flow = attention.node, self.plan.flows[attention.node]
            read = partial(self.values.operand, reader=node, flow=flow, target=0)
            mask = site_mask(self.plan, node, tokens, self.to, read)
            assert mask is not None
            yield mask, key_ends(self.plan, node)

    def _enter(self, state: fx.Node) -> None:
        """A later stream goes on with the tokens that live on behind the last site."""
        space = from_full_grid(self.to, self.values.born[state])
        reduced = reduce_node(self.to, self.plan.config.reduce, self.values.base[state], self.plan.labels[state],
                              self.to.spaces[0], space)
        self.values.left[state] = (self.values.base[state], reduced)

    def _read(self, block: int, value: fx.Node) -> fx.Node:
        """A value as the attention of a block reads it, of the tokens that live there; the attention itself may run on
        the full grid."""
        attention, state = self.trunk.blocks[block].attention.node, self.trunk.blocks[block].state
        return self.values.operand(value, attention, self.plan.flows[attention], self.plan.spaces[state])

    def _image(self) -> fx.Node | None:
        """The picture, [B, channels, height, width]."""
        image = self.trunk.image
        if image is None:
            return None
        if has_kind(self.plan.labels[image][1], Kind.HEIGHT):  # [B, height, width, channels]
            return self.graph.call_function(aten.permute.default, (self.values.base[image], [0, 3, 1, 2]))
        return self.values.base[image]
