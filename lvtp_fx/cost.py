"""FLOPs as expressions in the token counts."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import sympy
import torch
from torch import fx

from lvtp_fx.passes.axes.contract import spell
from lvtp_fx.passes.axes.flow import argument, tensors
from lvtp_fx.passes.axes.label import Kind, Label, sizes
from lvtp_fx.plan import Plan
from lvtp_fx.strategies import SiteShape, get

aten = torch.ops.aten
_PRODUCTS = (aten.matmul.default, aten.bmm.default, aten.mm.default, aten.addmm.default, aten.baddbmm.default)
_CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv2d.padding, aten.conv_transpose2d.input)


def counts(plan: Plan) -> tuple[sympy.Symbol, ...]:
    """K1, K2, ...: the grid tokens of the spaces born at the sites."""
    return tuple(sympy.Symbol(f"K{i + 1}", positive=True) for i in range(len(plan.sites)))


def node_flops(plan: Plan, node: fx.Node, tokens: sympy.Expr | int) -> sympy.Expr:
    """FLOPs of one node for one image when its token axes hold `tokens` grid tokens; 0 for ops that are not counted."""
    if node.target is aten.linear.default:
        x = tensors(node)[0]
        inner = sizes(plan.labels[x])[-1]
        return 2 * inner * _volume(plan, plan.labels[node], tokens)
    if node.target in _PRODUCTS:
        a = node.args[1] if node.target in (aten.addmm.default, aten.baddbmm.default) else node.args[0]
        assert isinstance(a, fx.Node)
        return 2 * sizes(plan.labels[a])[-1] * _volume(plan, plan.labels[node], tokens)
    if node.target is aten.scaled_dot_product_attention.default:
        q, k, v = (plan.labels[n] for n in node.args[:3] if isinstance(n, fx.Node))
        rows = _volume(plan, q[:-1], tokens)
        columns = _volume(plan, k[-2:-1], tokens)
        return 2 * rows * columns * (sizes(q)[-1] + sizes(v)[-1])
    if node.target is aten.einsum.default:
        return _einsum(plan, node, tokens)
    if node.target in _CONVOLUTIONS:
        weight = node.args[1]
        assert isinstance(weight, fx.Node)
        seen = tensors(node)[0] if node.target is aten.conv_transpose2d.input else node
        return 2 * prod(weight.meta["val"].shape[1:]) * _volume(plan, plan.labels[seen], tokens)
    return sympy.Integer(0)


def share(plan: Plan, node: fx.Node, tokens: sympy.Expr | int) -> sympy.Expr:
    """What is left of a node's work, as a share of that on the full grid, when its token axes hold `tokens`: of its
    FLOPs, or of its output where it has none."""
    full = _grid_tokens(plan)
    if flops := node_flops(plan, node, full):
        return node_flops(plan, node, tokens) / flops
    if not isinstance(node.meta.get("val"), torch.Tensor) or node not in plan.labels:
        return sympy.Integer(1)  # sizes, and views that make several values
    return _volume(plan, plan.labels[node], tokens) / _volume(plan, plan.labels[node], full)


def _einsum(plan: Plan, node: fx.Node, tokens: sympy.Expr | int) -> sympy.Expr:
    operands = list(argument(node, 1, "tensors"))
    labels = [plan.flows[node].uses.get(operand, plan.labels[operand]) for operand in operands]
    inputs = argument(node, 0, "equation").split("->")[0]
    spelt = spell(f"{inputs}->", [len(label) for label in labels])  # what is summed away costs as much as what stays
    if spelt is None or len(operands) != 2:
        return sympy.Integer(0)
    axes = {
        letter: (axis,)
        for letters, label in zip(spelt[:2], labels, strict=True)
        for letter, axis in zip(letters, label, strict=True)
    }
    return 2 * prod((_volume(plan, label, tokens) for label in axes.values()), start=sympy.Integer(1))


def _volume(plan: Plan, label: Label, tokens: sympy.Expr | int) -> sympy.Expr:
    """Entries of a value per image, its token axes resized."""
    volume: sympy.Expr = sympy.Integer(1)
    grid = plan.trunk.grid if plan.trunk else (0, 0)
    for axis in label:
        for factor in axis:
            if factor.kind is Kind.TOKEN and factor.grid == grid:
                volume *= factor.before + tokens + factor.after
            elif factor.kind is not Kind.BATCH:
                volume *= factor.size
    return volume


def encoder_flops(plan: Plan) -> sympy.Expr:
    """FLOPs of one image up to the encoder's output, restore left out, in K1, K2, ..."""
    assert plan.trunk is not None
    order = list(plan.graph_module.graph.nodes)
    needed, stack = set(), [plan.trunk.states[-1]]
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            stack.extend(node.all_input_nodes)
    return sympy.Add(*(_in_space(plan, n) for n in order if n in needed)) + inserted_flops(plan)


def saved_flops(plan: Plan) -> sympy.Expr:
    """FLOPs of one image that the pruned graph saves of the captured one's: what reduced nodes save, less what is
    inserted, and what matching added."""
    full = _grid_tokens(plan)
    reduced = [n for n, space in plan.spaces.items() if space]
    less = sympy.Add(*(node_flops(plan, n, full) - _in_space(plan, n) for n in reduced))
    return less - inserted_flops(plan) - plan.added_flops


def inserted_flops(plan: Plan) -> sympy.Expr:
    """FLOPs of one image in scoring, clustering and owners."""
    assert plan.trunk is not None
    strategy, total = get(plan.config.strategy), sympy.Integer(0)
    living: sympy.Expr | int = _grid_tokens(plan)
    for kept, shape in zip(counts(plan), site_shapes(plan), strict=True):
        total += strategy.flops(replace(shape, N=living, K=kept), plan.config)
        living = kept
    return total


def site_shapes(plan: Plan) -> list[SiteShape]:
    """The sizes at each site on the full grid."""
    assert plan.trunk is not None
    shapes = []
    for site in plan.sites:
        block = plan.trunk.blocks[site.block]
        q = block.attention.node.args[0]
        assert isinstance(q, fx.Node)
        label = plan.labels[q]
        factor = next(f for f in label[-2] if f.kind is Kind.TOKEN)
        heads = prod(f.size for axis in label[:-2] for f in axis if f.kind is not Kind.BATCH)
        channels = sizes(plan.labels[block.state])[-1]
        shapes.append(SiteShape(site.parent, site.kept, factor.before, factor.after, heads,
                                sizes(label)[-1], channels, plan.trunk.grid))
    return shapes


def _in_space(plan: Plan, node: fx.Node) -> sympy.Expr:
    space = plan.spaces.get(node, 0)
    return node_flops(plan, node, counts(plan)[space - 1] if space else _grid_tokens(plan))


def _grid_tokens(plan: Plan) -> int:
    assert plan.trunk is not None
    return plan.trunk.grid[0] * plan.trunk.grid[1]
