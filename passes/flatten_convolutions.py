"""Write convolutions of single places on the token axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from lvtp_fx.clean_graph import drop_views
from lvtp_fx.flat_ops import reshaped
from lvtp_fx.flat_rows import flatten_between
from lvtp_fx.passes.attention_forms import call
from lvtp_fx.passes.attention_scores import same
from lvtp_fx.passes.axes.flow import argument
from lvtp_fx.passes.residual_streams import ADDS
from lvtp_fx.plan import Plan
from lvtp_fx.provenance import told_by

aten = torch.ops.aten


@dataclass(frozen=True)
class FlattenConvolutions:
    """A convolution with a kernel of one place is a linear layer: between views it needs no rows and columns.

    In the working graph alone: in some memory layouts kernels round `conv1d` otherwise than `conv2d`.

    Requires: a captured graph. Ensures: the same values, but for rounding.

        before                                            after
        x1 = unflatten(x, 2, [14, 14])  [B, C, 14, 14]    kernel = flatten(weight, 2, 3)       [O, C, 1]
        y = conv2d(x1, weight, bias)    [B, O, 14, 14]    y = conv1d(x, kernel, bias)          [B, O, 196]
        q = reshape(y, [B, H, D, 196])                    q = reshape(y, [B, H, D, 196])
    """

    name: ClassVar[str] = "flatten_convolutions"

    def __call__(self, plan: Plan) -> Plan:
        graph = plan.graph_module.graph
        convolutions = _before_sums(graph)
        if not convolutions:
            return plan
        flatten_between(graph, plan.batch, convolutions)
        for node in [n for n in graph.nodes if n in convolutions]:
            planes = argument(node, 0, "input")
            if None not in map(reshaped, (planes, *node.users)):
                _flatten(graph, node, planes)
        drop_views(graph)
        graph.eliminate_dead_code()
        return plan


def _flatten(graph: fx.Graph, node: fx.Node, planes: fx.Node) -> None:
    """Between views: `planes`, which it reads, and its users."""
    x, shape = planes.all_input_nodes[0], reshaped(planes)
    batch, channels, height, width = planes.meta["val"].shape
    assert shape is not None
    with graph.inserting_before(node):
        if not same(x.meta["val"].shape, (batch, channels, height * width)):
            x = call(graph, aten.reshape.default, x, [*shape[:2], height * width])
        kernel = call(graph, aten.flatten.using_ints, argument(node, 1, "weight"), 2, 3)
        new = told_by(node, call(graph, aten.conv1d.default, x, kernel, argument(node, 2, "bias"), [1], [0], [1],
                                 argument(node, 6, "groups", 1)))
    for user in list(node.users):
        user.target, user.args, user.kwargs = aten.reshape.default, (new, reshaped(user)), {}


def _before_sums(graph: fx.Graph) -> set[fx.Node]:
    """The convolutions that lead to a sum of tokens; what a decoder makes of its planes does not."""
    leading: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if not leading.isdisjoint(node.users) or (node.target in ADDS and node.meta["val"].ndim == 3):
            leading.add(node)
    return {n for n in leading if _is_of_single_places(n)}


def _is_of_single_places(node: fx.Node) -> bool:
    """Whether a node is a `conv2d` over [B, C, h, w] that mixes no places and leaves none out."""
    if node.target not in (aten.conv2d.default, aten.conv2d.padding) or node.meta["val"].ndim != 4:
        return False
    stride, padding = argument(node, 3, "stride", [1, 1]), argument(node, 4, "padding", [0, 0])
    kernel = argument(node, 1, "weight").meta["val"].shape[2:]
    return tuple(kernel) == (1, 1) and stride == [1, 1] and padding in ([0, 0], "valid", "same")
