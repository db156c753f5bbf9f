"""Type inference of axes: where the batch, the image grid and the token axis go in every value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import fx

from lvtp_fx.batch_axis import BATCH_STAND_IN
from lvtp_fx.passes.axes import complex_pairs, contract, parts, pointwise, shape
from lvtp_fx.passes.axes.flow import Flow, Reader, Rule, tensors
from lvtp_fx.passes.axes.label import Factor, Kind, Label, has_kind, images, length, plain
from lvtp_fx.plan import Plan

aten = torch.ops.aten
RULES = (pointwise.RULES, shape.RULES, parts.RULES, contract.RULES, complex_pairs.RULES)
CONVOLUTIONS = (aten.conv2d.default, aten.conv2d.padding, aten.convolution.default)


@dataclass(frozen=True)
class LabelAxes:
    """Labels every value of the graph, on the full grid.

    Requires: a captured graph with `meta["val"]`. Ensures: `labels` (a label a tensor value) and `flows` (for each
    node: how its operands are read, and why it needs the full grid, if it does).

        before                                  after (labels)
        conv2d  [s, 192, 14, 14]                [batch, plain, height, width]
        view    [s, 192, 196]                   [batch, plain, token(14x14)]
        cat     [s, 197, 192]                   [batch, token(1 + 14x14), plain]
    """

    name: ClassVar[str] = "label_axes"

    def __call__(self, plan: Plan) -> Plan:
        labels, flows = label_graph(plan.graph_module.graph, plan.batch)
        return replace(plan, labels=labels, flows=flows)


def label_graph(graph: fx.Graph, batch: int) -> tuple[dict[fx.Node, Any], dict[fx.Node, Flow]]:
    """Labels and flows of all nodes; `batch` stands for the batch size."""
    labels: dict[fx.Node, Any] = {}
    flows: dict[fx.Node, Flow] = {}
    reader = Reader(labels, size_reader(batch), batch, batch == BATCH_STAND_IN)
    for node in graph.nodes:
        flow = infer(node, reader)
        if flow.out is not None:
            labels[node] = flow.out
        flows[node] = flow
    return labels, flows


def size_reader(batch: int) -> Any:
    """Sizes as integers: a symbolic size is evaluated with `batch` in the place of each symbol."""

    def size_of(size: Any) -> int:
        if isinstance(size, int):
            return size
        expression = size.node.expr
        return int(expression.subs(dict.fromkeys(expression.free_symbols, batch)))

    return size_of


def infer(node: fx.Node, reader: Reader) -> Flow:
    """The flow of one node."""
    value = node.meta.get("val")
    if node.op == "placeholder" and isinstance(value, torch.Tensor):
        return Flow(_placeholder(node, value, reader))
    if node.op == "get_attr" and isinstance(value, torch.Tensor):
        return Flow(tuple(plain(size) for size in reader.sizes(value)))  # parameters have no batch
    if not isinstance(value, (torch.Tensor, tuple, list)) or node.op != "call_function":
        return Flow(reader.unknown(value))
    if getattr(node.target, "__name__", "") == "getitem":
        source, index = node.args
        assert isinstance(source, fx.Node) and isinstance(index, int)
        pieces = reader.labels[source]
        return Flow(pieces[index], {source: pieces})
    if pointwise.is_pointwise(node.target) and not isinstance(value, torch.Tensor):
        return _unknown(node, reader)
    return (rule_of(node.target) or _unknown)(node, reader)


def rule_of(target: object) -> Rule | None:
    """The rule for an op, or None: then it needs the full grid."""
    for rules in RULES:
        if rule := rules.get(target):
            return rule
    return pointwise.pointwise if pointwise.is_pointwise(target) else None


def _placeholder(node: fx.Node, value: torch.Tensor, reader: Reader) -> Label:
    """A float input of four axes is a picture, unless it is added to scores: channels first where a convolution reads
    it, or where they are not more than the columns; channels last else."""
    label: Label = reader.unknown(value)
    if value.ndim == 4 and value.is_floating_point() and not _is_mask(node):
        convolved = any(user.target in CONVOLUTIONS for user in node.users)
        rows, columns = (2, 3) if convolved or value.shape[1] <= value.shape[3] else (1, 2)
        axes = list(label)
        for axis, kind in ((rows, Kind.HEIGHT), (columns, Kind.WIDTH)):
            axes[axis] = (Factor(kind, reader.sizes(value)[axis]),)
        return tuple(axes)
    return label


def _is_mask(node: fx.Node) -> bool:
    """Whether an attention has a value, entry by entry, as its mask."""
    seen, stack = set[fx.Node](), [node]
    while stack:
        value = stack.pop()
        for user in value.users:
            if user.target is aten.scaled_dot_product_attention.default and value not in user.args[:3]:
                return True
            if user not in seen and (pointwise.is_pointwise(user.target) or user.target is aten.expand.default):
                seen.add(user)
                stack.append(user)
    return False


def _unknown(node: fx.Node, reader: Reader) -> Flow:
    """No rule: the full grid is needed. An op on a picture gives a picture."""
    value, operands = node.meta["val"], tensors(node)
    out = reader.unknown(value)
    reason = f"{node.target} has no rule" if operands else ""
    if not operands or not isinstance(value, torch.Tensor) or value.ndim != 4:
        return Flow(out, {}, reason)
    first = reader.label(operands[0])
    picture = len(first) == 4 and has_kind(first[2], Kind.HEIGHT) and has_kind(first[3], Kind.WIDTH)
    if picture or node.target in CONVOLUTIONS:
        count, channels, rows, columns = reader.sizes(value)
        lead = images(first[0]) if first and length(first[0]) == count else out[0]
        out = (lead, plain(channels), (Factor(Kind.HEIGHT, rows),), (Factor(Kind.WIDTH, columns),))
    return Flow(out, {}, reason)
