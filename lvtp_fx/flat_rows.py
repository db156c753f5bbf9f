"""Tokens that a model keeps as rows and columns between its blocks (SAM, ViTDet), put on one axis."""

from __future__ import annotations

from itertools import permutations
from operator import getitem
from typing import Any

import networkx as nx
import torch
from torch import fx

from lvtp_fx.flat_ops import Layout, Rewriter, layout_of, reshaped, written
from lvtp_fx.passes.attention_forms import call, fake_value
from lvtp_fx.passes.axes.label import Label, grids
from lvtp_fx.passes.axes.shape import PERMUTATIONS
from lvtp_fx.passes.label_axes import label_graph
from lvtp_fx.passes.match_attention import SOFTMAXES
from lvtp_fx.passes.residual_streams import ADDS, between, value_graph
from lvtp_fx.provenance import told_by

aten = torch.ops.aten
_ATTENTION = (*SOFTMAXES, aten.scaled_dot_product_attention.default)


def flatten_rows(graph: fx.Graph, batch: int) -> None:
    """Merges rows and columns of the tokens where a residual stream with attention keeps them apart, from the sums
    outwards as far as each op allows it; the same numbers in the same order. `batch` stands for the batch size.

    Changes `graph`; leaves dead nodes to the caller.

        before                                          after
        x1 = add(x0, attention)       [B, 14, 14, C]    x1 = add(flatten(x0), ...)               [B, 196, C]
        linear(layer_norm(x1))        [B, 14, 14, C]    linear(layer_norm(x1))                   [B, 196, C]
        reshape(x1, [B, 2, 7, 2, 7, C])                 the same
        conv2d(permute(x1))           [B, C, 14, 14]    conv2d(permute(unflatten(x1, 1, [14, 14])))
    """
    nodes = list(graph.nodes)
    sums = [n for n in nodes if n.target in ADDS and n.meta["val"].ndim > 3]
    if not sums or not any(n.target in _ATTENTION for n in nodes):
        return
    labels, _ = label_graph(graph, batch)
    attended = _attended(labels)
    flow, order = value_graph(graph), {n: i for i, n in enumerate(nodes)}
    seeds = {n for n in sums if _is_state(labels[n]) and layout_of(labels[n], attended)
             and _around_attention(n, labels, flow, order)}
    if seeds:
        _Merging(graph, labels, attended, seeds, set()).run()


def flatten_between(graph: fx.Graph, batch: int, convolutions: set[fx.Node]) -> None:
    """Merges them around convolutions of single places, too, from one to the next; these still read rows.

        before                                          after
        c = conv2d(a, w1)           [B, 4C, 14, 14]     c = conv2d(a, w1)                        [B, 4C, 14, 14]
        d = gelu(c)                 [B, 4C, 14, 14]     d = gelu(flatten(c, 2, 3))               [B, 4C, 196]
        e = conv2d(d, w2)           [B, C, 14, 14]      e = conv2d(unflatten(d, 2, [14, 14]))    [B, C, 14, 14]
    """
    labels, _ = label_graph(graph, batch)
    _Merging(graph, labels, _attended(labels), convolutions, convolutions).run()


def _attended(labels: dict[fx.Node, Any]) -> set[tuple[int, int]]:
    """The grids that an attention runs over; windows attend to none."""
    return set().union(*(grids(label) for node, label in labels.items() if node.target in _ATTENTION))


def _is_state(label: Label) -> bool:
    """[B, h, w, C] or [B, C, h, w], nothing else merged into these axes."""
    kinds = sorted(axis[0].kind.value for axis in label if len(axis) == 1)
    return len(label) == 4 and kinds == ["batch", "height", "plain", "width"]


def _around_attention(
    node: fx.Node, labels: dict[fx.Node, Any], flow: nx.DiGraph, order: dict[fx.Node, int]
) -> bool:
    """Whether a sum adds to a stream what an attention, over the grid or in windows, made of it."""
    for stream, term in permutations([n for n in node.all_input_nodes if len(labels.get(n, ())) == 4], 2):
        before = between(flow, stream, term, order)
        if stream in before and any(
                n.target in _ATTENTION and stream in between(flow, stream, n, order) for n in before):
            return True
    return False


class _Merging:
    """The nodes whose pairs are merged, `members`, and how they looked before.

    Attributes:
        seeds: where to begin. crossed: no members, but what is around them may be.
    """

    def __init__(
        self, graph: fx.Graph, labels: dict[fx.Node, Any], grids: set[tuple[int, int]], seeds: set[fx.Node],
        crossed: set[fx.Node],
    ) -> None:
        self.graph, self.labels, self.grids = graph, labels, grids
        self.values = {n: n.meta.get("val") for n in graph.nodes}
        self.apart: dict[fx.Node, fx.Node] = {}
        looking = Rewriter(self.layout, lambda node, layout, shape: node)
        queue, reached = list(seeds), set[fx.Node]()
        while queue:
            node = queue.pop()
            if node not in reached and self.layout(node) and (node in crossed or written(node, looking)):
                reached.add(node)
                queue += [*node.all_input_nodes, *node.users]
        for node in reversed(graph.nodes):  # the last permutations, before a convolution, are better made of rows
            if node.target in PERMUTATIONS and reached.isdisjoint(node.users):
                reached.discard(node)
        self.members = reached - crossed

    def layout(self, node: fx.Node) -> Layout | None:
        return layout_of(self.labels.get(node, ()), self.grids)

    def run(self) -> None:
        for node in list(self.graph.nodes):
            with self.graph.inserting_before(node):
                if node not in self.members:
                    self._read(node)
                    continue
                if node.target is not getitem:  # which takes a piece of what is rewritten already
                    found = written(node, Rewriter(self.layout, self.merged))
                    assert found is not None
                    node.target, node.args, node.kwargs = found
                node.meta["val"] = fake_value(node.target, node.args, dict(node.kwargs))

    def _read(self, node: fx.Node) -> None:
        """A node outside reads merged values as they were, unless it is a view, which reads them as they are."""
        shape = reshaped(node)
        if shape is not None and node.args[0] in self.members:
            node.target, node.args, node.kwargs = aten.reshape.default, (node.args[0], shape), {}
            return
        if node.target is aten.sym_size.int and node.args[0] in self.members:
            source, dim = node.args
            assert isinstance(source, fx.Node) and isinstance(dim, int)
            layout = self.layout(source)
            assert layout is not None
            node.args = (source, layout.at(dim))  # merged sizes are numbers, which nobody asks for
            return
        for operand in node.all_input_nodes:
            if operand in self.members and isinstance(self.values[operand], torch.Tensor):
                node.replace_input_with(operand, self._apart(operand))

    def _apart(self, node: fx.Node) -> fx.Node:
        """A merged value as it was before."""
        if node not in self.apart:
            layout, x = self.layout(node), node
            assert layout is not None
            for pair in layout.pairs:
                with self.graph.inserting_after(x):
                    x = self._call(node, aten.unflatten.int, x, pair, list(self.values[node].shape[pair : pair + 2]))
            self.apart[node] = x
        return self.apart[node]

    def merged(self, node: fx.Node, layout: Layout, shape: Any) -> fx.Node:
        """As of `Rewriter`."""
        lead = layout.rank - self.values[node].ndim
        pairs = [pair - lead for pair in layout.pairs if pair + 1 >= lead]
        sides = [list(shape[pair : pair + 2]) for pair in layout.pairs if pair + 1 >= lead]
        own = self.layout(node) if node in self.members else None
        if own and list(own.pairs) == pairs:
            return node
        x = self._apart(node) if node in self.members else node
        for pair, side in zip(reversed(pairs), reversed(sides), strict=True):
            if pair < 0:  # [w, C] beside [B, h, w, C]
                x, pair = self._call(node, aten.unsqueeze.default, x, 0), 0
            sizes = list(x.meta["val"].shape)
            if sizes[pair : pair + 2] not in (side, [1, 1]):
                whole = [-1] * pair + side + [-1] * (len(sizes) - pair - 2)
                x = self._call(node, aten.expand.default, x, whole)
            x = self._call(node, aten.flatten.using_ints, x, pair, pair + 1)
        return x

    def _call(self, source: fx.Node, target: Any, *args: Any) -> fx.Node:
        """A new node, at the place in the model of the value that it is a view of."""
        return told_by(source, call(self.graph, target, *args))
