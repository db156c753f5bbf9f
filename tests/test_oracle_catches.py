"""The oracle is worth something: break the rewritten graph on purpose, in one place at a time, and it says so."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

import lvtp_fx
from lvtp_fx.errors import LvtpError
from lvtp_fx.models.random_weights import randomise
from lvtp_fx.record import RECORD
from tests.conftest import CUT, Case
from tests.tiny import Attention, B, C, D, H, N, PreNorm, TinyViT, captured, fused, picture

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
    x, kept, dropped, owner, size, _, *ends = node.args
    ones = graph.call_function(torch.ops.lvtp.ones.default, (size,))
    merged = graph.call_function(torch.ops.lvtp.sizes.default, (ones, owner, _kept(kept)))
    return graph.call_function(node.target, (x, kept, dropped, owner, ones, merged, *ends))


def selected(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Select in the place of merge."""
    x, kept, *_, before, after = node.args
    return graph.call_function(torch.ops.lvtp.gather.default, (x, kept, 0, 1, before, after))


def left_is_zero(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """A restore that does not subtract the state that the owner left with."""
    now, entered, left, *rest = node.args
    zero = graph.call_function(torch.ops.aten.zeros_like.default, (left,))
    return graph.call_function(node.target, (now, entered, zero, *rest))


def from_owners_alone(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """A restore in which the owner has all the shares."""
    now, entered, left, supports, _, before, after = node.args
    owner = graph.call_function(torch.ops.lvtp.owners_among.default, (supports,))
    return graph.call_function(torch.ops.lvtp.restore.default, (now, entered, left, owner, before, after))


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
    (PLAIN, "restore_between", -1, left_is_zero),
    (PLAIN, "restore_between", 0, from_owners_alone),
])
def test_a_broken_node_is_caught(case: Cases, name: str, op: str, which: int, broken: Break) -> None:
    it = case(name, "linear")
    several = lvtp_fx.transform(it.captured, flops_cut=CUT, restore_from=3) if op == "restore_between" else it.fast
    module = copy.deepcopy(several)
    node = [n for n in module.graph.nodes if n.target is getattr(torch.ops.lvtp, op).default][which]
    with module.graph.inserting_before(node):
        replacement = broken(module.graph, node)
    node.replace_all_uses_with(replacement)
    module.recompile()
    with pytest.raises(LvtpError, match="LVTP301 verify-mismatch at "):
        lvtp_fx.verify(it.captured, module, (it.x,))


def rotated(x: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    return x * angle.cos() + torch.cat([-x[..., D // 2 :], x[..., : D // 2]], -1) * angle.sin()


def rope(m: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    angle = m.bias_table[0, :, :D]
    return F.scaled_dot_product_attention(rotated(q, angle), rotated(k, angle), v)


class Returning(TinyViT):
    """Rotary positions, and the map of the third block is an output: that block runs on the full grid, on copies."""

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        x = self.embed(image)
        for block in self.blocks[:2]:
            x = block(x)
        block = self.blocks[2]
        attention = block.attention
        q, k, v = attention.qkv(block.norm1(x)).reshape(x.shape[0], -1, 3, H, D).permute(2, 0, 3, 1, 4)
        angle = attention.bias_table[0, :, :D]
        weights = (rotated(q, angle) @ rotated(k, angle).mT * D**-0.5).softmax(-1)
        x = x + attention.proj((weights @ v).transpose(1, 2).reshape(x.shape))
        x = self.blocks[3](x + block.mlp(block.norm2(x)))
        return self.head(self.norm(x)), weights


def test_a_returned_map_costs_its_block_and_the_oracle_knows_the_copies_that_it_reads() -> None:
    dense = captured(randomise(Returning([PreNorm(Attention(rope)) for _ in range(4)]), seed=0))
    fast = lvtp_fx.transform(dense, keep_ratio=0.5, sites=(0, 1))
    assert [b.path for b in fast.report.blocks] == [f"blocks.{i}.attention" for i in (0, 1, 3)]
    assert [u.reason for u in fast.report.unmatched] == ["the attention map has a second consumer"]
    assert fast(picture())[1].shape == (B, H, N, N)
    lvtp_fx.verify(dense, fast, (picture(),))
    record = fast.meta[RECORD]
    assert {copy.reader for copy in record.copied} == {"softmax", "matmul_1"}
    fast.meta[RECORD] = replace(record, copied=())
    with pytest.raises(LvtpError, match="LVTP301"):
        lvtp_fx.verify(dense, fast, (picture(),))


class Convolving(Attention):
    """q, k and v come from a convolution over the grid, which sees all tokens."""

    def __init__(self) -> None:
        super().__init__(fused)
        self.over_grid = nn.Conv2d(C, 3 * C, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grid = self.over_grid(x.mT.unflatten(2, (8, 8))).flatten(2).mT
        q, k, v = grid.reshape(x.shape[0], -1, 3, H, D).permute(2, 0, 3, 1, 4)
        out: torch.Tensor = self.proj(self.form(self, q, k, v).transpose(1, 2).reshape(x.shape))
        return out


def test_attention_whose_operands_need_the_full_grid_runs_on_it_and_masks_no_key() -> None:
    blocks = [PreNorm(Attention(fused)), PreNorm(Convolving()), PreNorm(Attention(fused))]
    dense = captured(randomise(TinyViT(blocks), seed=0))
    fast = lvtp_fx.transform(dense, keep_ratio=0.5, sites=(0,))
    assert [b.tokens for b in fast.report.blocks] == [N, N, N // 2]
    lvtp_fx.verify(dense, fast, (picture(),))
    assert len(fast.meta[RECORD].hooks) == 1


@pytest.mark.parametrize("strategy", ["lvtp", "fused", "bipartite"])
def test_such_an_attention_scores_the_tokens_that_live_at_its_site(strategy: str) -> None:
    blocks = [PreNorm(Attention(fused)), PreNorm(Convolving()), PreNorm(Attention(fused))]
    dense = captured(randomise(TinyViT(blocks), seed=0))
    fast = lvtp_fx.transform(dense, keep_ratio=0.5, sites=(0, 1), strategy=strategy)
    assert fast.report.kept == (N // 2, N // 4)
    lvtp_fx.verify(dense, fast, (picture(),))
