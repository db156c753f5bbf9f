"""The oracle is worth something: break the rewritten graph on purpose, in one place at a time, and it says so."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import fx

import lvtp_fx
from lvtp_fx.errors import LvtpError
from tests.conftest import Case

Cases = Callable[[str, str], Case]
Break = Callable[[fx.Graph, fx.Node], fx.Node]  # what takes the place of a node

ROPE, BIAS, PLAIN = "vit_small_patch16_dinov3", "beit_base_patch16_224", "vit_tiny_patch16_224"


def first_tokens(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """A gather that takes the first K tokens in the place of the kept K: right shape, wrong rows."""
    x, index, batch_dim, token_dim, before, after = node.args
    count = graph.call_function(torch.ops.lvtp.positions.default, (index, _kept(index)))
    return graph.call_function(node.target, (x, count, batch_dim, token_dim, before, after))


def _kept(index: object) -> int:
    assert isinstance(index, fx.Node)
    while index.target is torch.ops.lvtp.compose.default:
        index = index.args[1]  # type: ignore[assignment]
        assert isinstance(index, fx.Node)
    count = index.args[1]
    assert isinstance(count, int)
    return count


def no_bias(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Sizes of one in the place of the true ones: attention that is not proportional."""
    mask, size, *rest = node.args
    ones = graph.call_function(torch.ops.lvtp.ones.default, (size,))
    return graph.call_function(node.target, (mask, ones, *rest))


def ungrouped(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """A merge that forgets what its tokens stand for already."""
    x, owner, size, *rest = node.args
    ones = graph.call_function(torch.ops.lvtp.ones.default, (size,))
    return graph.call_function(node.target, (x, owner, ones, *rest))


def selected(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Select in the place of merge."""
    x, _, _, kept, before, after = node.args
    site = next(n for n in graph.nodes if n.target is torch.ops.lvtp.select.default and n.args[1] == kept)
    return graph.call_function(torch.ops.lvtp.gather.default, (x, site, 0, 1, before, after))


def left_is_zero(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """A restore that does not subtract the state that the owner left with."""
    now, entered, left, *rest = node.args
    zero = graph.call_function(torch.ops.aten.zeros_like.default, (left,))
    return graph.call_function(node.target, (now, entered, zero, *rest))


def counted_anew(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Sizes that count the tokens of the parent space in the place of those of the full grid."""
    size, *rest = node.args
    ones = graph.call_function(torch.ops.lvtp.ones.default, (size,))
    return graph.call_function(node.target, (ones, *rest))


@pytest.mark.parametrize(("name", "op", "which", "broken"), [
    (ROPE, "gather", 0, first_tokens),
    (ROPE, "gather", -1, first_tokens),
    (BIAS, "gather", 0, first_tokens),
    (BIAS, "gather", -1, first_tokens),
    (PLAIN, "key_bias", 0, no_bias),
    (PLAIN, "key_bias", -1, no_bias),
    (PLAIN, "merge", 0, selected),
    (PLAIN, "merge", 1, ungrouped),
    (PLAIN, "sizes", 1, counted_anew),
    (PLAIN, "restore", -1, left_is_zero),
])
def test_a_broken_node_is_caught(case: Cases, name: str, op: str, which: int, broken: Break) -> None:
    it = case(name, "linear")
    module = copy.deepcopy(it.fast)
    node = [n for n in module.graph.nodes if n.target is getattr(torch.ops.lvtp, op).default][which]
    with module.graph.inserting_before(node):
        replacement = broken(module.graph, node)
    node.replace_all_uses_with(replacement)
    module.recompile()
    with pytest.raises(LvtpError, match="LVTP301 verify-mismatch at "):
        lvtp_fx.verify(it.model, module, (it.x,))
