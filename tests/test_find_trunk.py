"""The encoder: states of the residual stream, blocks, grid, root and image; and the sites chosen among its blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lvtp_fx
from lvtp_fx.config import Config
from lvtp_fx.errors import LvtpError
from lvtp_fx.models.random_weights import randomise
from lvtp_fx.passes.choose_sites import ChooseSites, automatic, picks
from lvtp_fx.passes.find_trunk import refuse_unmatched
from lvtp_fx.plan import Plan, Trunk
from tests.tiny import Attention, C, Embed, PreNorm, TinyViT, analyse, captured, fused, picture

Tensor = torch.Tensor


class PostNorm(PreNorm):
    """norm(x + attention(x)), norm(x + mlp(x))."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x))
        out: Tensor = self.norm2(x + self.mlp(x))
        return out


class Scaled(PreNorm):
    """LayerScale, once written as a product and once as torch.addcmul."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__(attention)
        self.gamma1, self.gamma2 = nn.Parameter(torch.ones(C)), nn.Parameter(torch.ones(C))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma1 * self.attention(self.norm1(x))
        return torch.addcmul(x, self.gamma2, self.mlp(self.norm2(x)))


class Parallel(PreNorm):
    """Two attentions side by side, as in DeiT-III and "Three things everyone should know"."""

    def __init__(self) -> None:
        super().__init__(Attention(fused))
        self.other = Attention(fused)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attention(h) + self.other(h)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class SideBySide(PreNorm):
    """x + attention(norm(x)) + mlp(norm(x)), as in ViT-22B."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        attended, thought = self.attention(h), self.mlp(h)  # both before the adds; in Parallel they are not
        out: Tensor = x + attended + thought
        return out


class NoAttention(PreNorm):
    """Tokens mixed by a product, as in MLP-Mixer."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x).mT).mT
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class DualStream(nn.Module):
    """Two encoders of a picture and its depth, the shallow one added to the deep one at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = TinyViT([PreNorm(Attention(fused)) for _ in range(2)])
        self.shallow = TinyViT([PreNorm(Attention(fused))])

    def forward(self, image: Tensor, depth: Tensor) -> Tensor:
        out: Tensor = self.shallow(depth) + self.deep(image)
        return out


class Exchange(nn.Module):
    """Two streams that tell each other after each block what they found; both are read at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_a, self.embed_b = Embed(), Embed()
        self.a = nn.ModuleList(PreNorm(Attention(fused)) for _ in range(3))
        self.b = nn.ModuleList(PreNorm(Attention(fused)) for _ in range(2))
        self.to_a, self.to_b, self.head = nn.Linear(C, C), nn.Linear(C, C), nn.Linear(2 * C, 5)

    def forward(self, image: Tensor, depth: Tensor) -> Tensor:
        a, b = self.a[0](self.embed_a(image)), self.embed_b(depth)
        for block_a, block_b in zip(self.a[1:], self.b, strict=True):
            b = block_b(b + self.to_b(a))
            a = block_a(a + self.to_a(b))
        out: Tensor = self.head(torch.cat([a, b], -1))
        return out


class Nested(PreNorm):
    """A residual attention in a narrow space inside the branch: x + up(h + attention(h)), h = down(x)."""

    def __init__(self) -> None:
        super().__init__(Attention(fused))
        self.down, self.up = nn.Linear(C, C), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        h = self.down(self.norm1(x))
        x = x + self.up(h + self.attention(h))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class WithRegisters(TinyViT):
    """A class token and two registers before the patches, taken off before the head."""

    def __init__(self) -> None:
        super().__init__([PreNorm(Attention(fused)) for _ in range(2)])
        self.prefix = nn.Parameter(torch.randn(1, 3, C))

    def forward(self, image: Tensor) -> Tensor:
        x = torch.cat([self.prefix.expand(image.shape[0], -1, -1), self.embed(image)], 1)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.norm(x)[:, 3:])
        return out


class CrossOnly(nn.Module):
    """Queries that attend to the patches, which never attend to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.queries = Embed(), nn.Parameter(torch.randn(1, 9, C))

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image)
        q = self.queries.expand(x.shape[0], -1, -1)
        return q + F.scaled_dot_product_attention(q, x, x)


def trunk_of(plan: Plan) -> Trunk:
    assert plan.trunk is not None
    return plan.trunk


def paths(trunk: Trunk) -> list[str]:
    return [block.attention.path for block in trunk.blocks]


def steps(trunk: Trunk) -> list[str]:
    """The states by the kind of their node."""
    return [str(state.target).split(".")[1] for state in trunk.states]


@pytest.fixture(scope="module")
def plain() -> Plan:
    return analyse(TinyViT([PreNorm(Attention(fused)) for _ in range(6)]))


@pytest.fixture(scope="module")
def parallel() -> Plan:
    return analyse(TinyViT([Parallel(), Parallel()]))


def test_pre_norm(plain: Plan) -> None:
    trunk = trunk_of(plain)
    assert paths(trunk) == [f"blocks.{i}.attention" for i in range(6)]
    assert trunk.grid == (8, 8)
    assert trunk.image is not None
    assert trunk.image.op == "placeholder"
    assert steps(trunk) == ["transpose", "add"] + ["add"] * 12  # tokens, positions, then two adds a block
    for i, block in enumerate(trunk.blocks):
        assert block.state is trunk.states[2 * i + 2]  # after the attention's add, before the MLP's
    assert plain.misses == ()


def test_root_and_members(plain: Plan) -> None:
    trunk = trunk_of(plain)
    order = list(plain.graph_module.graph.nodes)
    assert str(trunk.root.target) == "aten.reshape.default"  # rows and columns become tokens
    assert trunk.root in trunk.members
    assert set(trunk.states) <= trunk.members
    assert {b.attention.node for b in trunk.blocks} <= trunk.members
    end = order.index(trunk.states[-1])
    assert all(order.index(trunk.root) <= order.index(m) <= end for m in trunk.members)
    assert not any(m.op in ("placeholder", "get_attr") for m in trunk.members)


def test_post_norm() -> None:
    trunk = trunk_of(analyse(TinyViT([PostNorm(Attention(fused)) for _ in range(2)])))
    assert paths(trunk) == ["blocks.0.attention", "blocks.1.attention"]
    assert steps(trunk) == ["transpose", "add", *["add", "layer_norm"] * 3, "add"]
    assert [b.state for b in trunk.blocks] == [trunk.states[2], trunk.states[6]]


def test_layer_scale() -> None:
    trunk = trunk_of(analyse(TinyViT([Scaled(Attention(fused)) for _ in range(2)])))
    assert steps(trunk) == ["transpose", "add", "add", "addcmul", "add", "addcmul"]
    assert [b.state for b in trunk.blocks] == [trunk.states[2], trunk.states[4]]


def test_registers_are_a_prefix() -> None:
    plan = analyse(WithRegisters())
    trunk = trunk_of(plan)
    assert trunk.grid == (8, 8)
    assert len(trunk.blocks) == 2
    (factor,) = plan.labels[trunk.states[-1]][1]
    assert (factor.before, factor.after) == (3, 0)


def test_attention_and_mlp_side_by_side() -> None:
    trunk = trunk_of(analyse(TinyViT([SideBySide(Attention(fused)) for _ in range(2)])))
    assert paths(trunk) == ["blocks.0.attention", "blocks.1.attention"]
    # Before the MLP is added the stream is no cut point: the MLP looks past it.
    assert [b.state for b in trunk.blocks] == [trunk.states[3], trunk.states[5]]


def test_parallel_attentions_share_a_state(parallel: Plan) -> None:
    trunk = trunk_of(parallel)
    assert paths(trunk) == ["blocks.0.attention", "blocks.0.other", "blocks.1.attention", "blocks.1.other"]
    states = [b.state for b in trunk.blocks]
    assert states[0] is states[1]
    assert states[2] is states[3]
    assert states[0] is not states[2]


def test_stream_with_the_most_attention_is_the_trunk() -> None:
    plan = analyse(DualStream(), picture(), picture(seed=2))
    trunk = trunk_of(plan)
    assert paths(trunk) == [f"deep.blocks.{i}.attention" for i in range(2)]
    assert trunk.image is not None
    assert trunk.image.name == "image"
    assert [m.path for m in plan.misses] == ["shallow.blocks.0.attention"]
    assert not any("shallow" in str(m.meta.get("nn_module_stack")) for m in trunk.members)


def test_stream_that_exchanges_with_the_trunk_keeps_the_full_grid() -> None:
    """It has no memory of dropped tokens, so the trunk is restored for it."""
    images = (picture(), picture(seed=2))
    dense = captured(randomise(Exchange(), seed=0), *images)
    fast = lvtp_fx.transform(dense, keep_ratio=0.7, sites=(0,))
    assert [(b.path, b.site) for b in fast.report.blocks] == [
        ("a.0.attention", True), ("a.1.attention", False), ("a.2.attention", False)]
    assert [u.where.split()[0] for u in fast.report.unmatched] == ["b.0.attention", "b.1.attention"]
    assert lvtp_fx.verify(dense, fast, images).max_error < 2e-5


def test_stream_inside_a_branch_belongs_to_the_block() -> None:
    plan = analyse(TinyViT([Nested(), Nested()]))
    assert paths(trunk_of(plan)) == ["blocks.0.attention", "blocks.1.attention"]
    assert plan.misses == ()


def test_no_attention_is_an_error_and_no_silent_no_op() -> None:
    model = TinyViT([NoAttention()]).eval()
    with pytest.raises(LvtpError, match="LVTP102") as error:
        lvtp_fx.transform(model, (picture(),))
    assert error.value.got == "no softmax that looks like attention"


def test_cross_attention_alone_is_the_nearest_miss() -> None:
    plan = analyse(CrossOnly())
    assert plan.trunk is None
    refusal = refuse_unmatched(plan)
    assert refusal.code == "LVTP102"
    assert refusal.got == ("1 attention nodes; the nearest miss: its queries are not the tokens of the grid "
                           "(cross-attention, or some of them only)")


# Sites


def chosen(plan: Plan, sites: str | tuple[int, ...]) -> list[int]:
    plan = replace(plan, config=Config(sites=sites))  # type: ignore[arg-type]
    made = ChooseSites()(plan).sites
    assert all(site.parent == 64 for site in made)  # counts come with the next pass
    return [site.block for site in made]


def test_automatic_sites_lie_in_the_first_part_and_every_site_before_the_last(plain: Plan) -> None:
    assert chosen(plain, "auto") == [0, 1, 2]
    assert chosen(plain, "every") == list(range(len(trunk_of(plain).blocks) - 1))


@pytest.mark.parametrize(("depth", "sites"), [
    (2, (0,)), (4, (0, 1)), (6, (0, 1, 2)), (8, (0, 1, 3)), (12, (0, 3, 6)), (24, (1, 7, 13)), (32, (1, 9, 17)),
])
def test_automatic_sites_by_depth(depth: int, sites: tuple[int, ...]) -> None:
    """Those measured best: at 12 blocks on photographs, at 8 on drawn scenes (bench/README.md)."""
    assert picks(depth - 1) == sites


def test_automatic_sites_of_parallel_blocks_are_at_states_of_their_own(parallel: Plan) -> None:
    sites = automatic(trunk_of(parallel))
    states = [trunk_of(parallel).blocks[i].state for i in sites]
    assert len(sites) == len(set(states)) == 1


def test_given_sites_are_sorted_and_count_from_the_end(plain: Plan) -> None:
    assert chosen(plain, (4, 1)) == [1, 4]
    assert chosen(plain, (-1, 0, -6)) == [0, 5]


@pytest.mark.parametrize("site", [6, -7])
def test_sites_out_of_range(plain: Plan, site: int) -> None:
    with pytest.raises(LvtpError, match="LVTP203") as error:
        chosen(plain, (1, site))
    assert error.value.expected == "block indices in [-6, 6)"
    assert error.value.got == str((1, site))


def test_two_sites_in_parallel_blocks_are_refused(parallel: Plan) -> None:
    with pytest.raises(LvtpError, match="LVTP203") as error:
        chosen(parallel, (0, 1))
    assert error.value.why == "blocks 0 and 1 run in parallel and end in the same add"
    assert chosen(parallel, (1, 2)) == [1, 2]


def test_pruned_graph_equals_the_dense_oracle() -> None:
    """A block of each kind, tokens dropped after each but the last."""
    blocks = [PostNorm(Attention(fused)), Scaled(Attention(fused)), SideBySide(Attention(fused)), Parallel()]
    dense = captured(randomise(TinyViT(blocks), seed=0))
    fast = lvtp_fx.transform(dense, keep_ratio=0.8, sites=(0, 1, 2))
    assert lvtp_fx.verify(dense, fast, (picture(),)).max_error < 2e-5


class Joining(TinyViT):
    """Queries join the stream after the second block, as in EoMT, and the last block sees them leave again."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__(blocks)
        self.queries = nn.Parameter(torch.zeros(1, 3, C))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.embed(image)
        x = self.blocks[1](self.blocks[0](x))
        x = torch.cat([self.queries.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.blocks[2](x)
        tap = self.norm(x)
        x = self.blocks[3](torch.cat([x[:, 1:], x[:, :1]], dim=1))
        return torch.cat([self.head(tap), self.head(self.norm(x))], dim=-1)


@pytest.mark.parametrize("restore", ["delta", "frozen", "copy"])
def test_prefix_tokens_may_join_and_leave_after_a_reduction(restore: str) -> None:
    dense = captured(randomise(Joining([PreNorm(Attention(fused)) for _ in range(4)]), seed=0))
    fast = lvtp_fx.transform(dense, keep_ratio=0.6, sites=(0, 1), restore=restore)
    assert [b.tokens_dense for b in fast.report.blocks][:3] == [64, 64, 67]
    assert lvtp_fx.verify(dense, fast, (picture(),)).max_error < 2e-5


class WrittenNorm(nn.Module):
    """Post-norm, the norm written out: the stream is divided by its root mean square."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention, self.gain = attention, nn.Parameter(torch.ones(C))
        self.mlp = nn.Sequential(nn.Linear(C, 2 * C), nn.GELU(), nn.Linear(2 * C, C))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(x)
        x = x / x.square().mean(-1, keepdim=True).sqrt() * self.gain
        return x + self.mlp(x)


def test_a_norm_that_is_written_out_is_still_the_same_stream() -> None:
    model = randomise(TinyViT([WrittenNorm(Attention(fused)) for _ in range(3)]), seed=0).eval()
    assert paths(trunk_of(analyse(model))) == [f"blocks.{i}.attention" for i in range(3)]
    dense = captured(model)
    fast = lvtp_fx.transform(dense, keep_ratio=0.7, sites=(0, 1))
    assert lvtp_fx.verify(dense, fast, (picture(),)).max_error < 2e-5


class Written(PreNorm):
    """What a residual connection may look like; `join` is how a branch is added."""

    def __init__(self, join: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]) -> None:
        super().__init__(Attention(fused))
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        x = self.join(x, lambda x: self.attention(self.norm1(x)))
        return self.join(x, lambda x: self.mlp(self.norm2(x)))


JOINS: dict[str, Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]] = {
    "DeepNorm": lambda x, branch: F.layer_norm(1.7 * x + branch(x), (C,)),
    "DeepNorm, the branch first": lambda x, branch: F.layer_norm(branch(x) + x * 1.7, (C,)),
    "a scale of both": lambda x, branch: (x + branch(x)) / 2**0.5,
    "clamp": lambda x, branch: (x + branch(x)).clamp(-10, 10),
    "nan_to_num": lambda x, branch: torch.nan_to_num(x + branch(x)),
    "sub": lambda x, branch: x - branch(x),
    "other names": lambda x, branch: torch.subtract(torch.multiply(x, 1.7), torch.divide(branch(x), 2)),
    "lerp": lambda x, branch: torch.lerp(x, x + branch(x), 0.9),
}


@pytest.mark.parametrize("join", JOINS.values(), ids=JOINS)
def test_ways_to_write_a_residual_connection(join: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]) -> None:
    model = randomise(TinyViT([Written(join) for _ in range(3)]), seed=0).eval()
    assert paths(trunk_of(analyse(model))) == [f"blocks.{i}.attention" for i in range(3)]
    dense = captured(model)
    fast = lvtp_fx.transform(dense, keep_ratio=0.7, sites=(0, 1))
    assert lvtp_fx.verify(dense, fast, (picture(),)).max_error < 2e-5


@pytest.mark.parametrize("join", [
    lambda x, branch: branch(x) - x, lambda x, branch: branch(x) * x, lambda x, branch: torch.maximum(branch(x), x),
], ids=["the stream is taken away", "a product", "the larger one"])
def test_what_is_no_residual_connection(join: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]) -> None:
    assert analyse(randomise(TinyViT([Written(join) for _ in range(3)]), seed=0)).trunk is None


class Shuffled(PreNorm):
    """An op that no rule is known of."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(torch.cumsum(x, -1).sort(-1)[0])
        return out


def test_the_op_without_a_rule_that_loses_the_tokens_is_named() -> None:
    plan = analyse(TinyViT([Shuffled(Attention(fused)) for _ in range(2)]))
    first, second = plan.misses
    assert first.reason.startswith("its keys are not the tokens of a patch grid (a window, or channels); the tokens "
                                   "were lost at blocks.0 (node cumsum, test_find_trunk.py:")
    assert first.reason.endswith("): aten.cumsum.default has no rule")
    assert second.reason == first.reason  # where they were lost first


class TwoStreams(nn.Module):
    """A product of two streams is neither; of the stream and what is there before any attention, it is a scale."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention, self.gate = attention, nn.Linear(C, C)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + self.attention(x)) * self.gate(x)


def test_a_product_of_two_states_is_another_stream() -> None:
    plan = analyse(randomise(TinyViT([TwoStreams(Attention(fused)) for _ in range(3)]), seed=0))
    assert paths(trunk_of(plan)) == ["blocks.0.attention", "blocks.1.attention"]


class Windows(PreNorm):
    """Attention inside windows of 4 x 4 of the 8 x 8 tokens, which lie flat between the blocks."""

    def forward(self, x: Tensor) -> Tensor:
        B = x.shape[0]
        y = self.norm1(x).view(B, 2, 4, 2, 4, C).permute(0, 1, 3, 2, 4, 5).reshape(B * 4, 16, C)
        y = self.attention(y).view(B, 2, 2, 4, 4, C).permute(0, 1, 3, 2, 4, 5).reshape(B, 64, C)
        x = x + y
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


@pytest.mark.parametrize("kinds", ["gwgg", "wgwg", "wwgwwg"])
def test_global_blocks_between_windows_are_one_stream(kinds: str) -> None:
    """Windows run on all tokens, restored before the norm that they read through; all else between them is pruned."""
    blocks = [{"g": PreNorm, "w": Windows}[kind](Attention(fused)) for kind in kinds]
    dense = captured(randomise(TinyViT(blocks), seed=0).eval())
    fast = lvtp_fx.transform(dense, keep_ratio=0.6, sites=(0,))
    assert [block.path for block in fast.report.blocks] == [
        f"blocks.{i}.attention" for i, kind in enumerate(kinds) if kind == "g"]
    assert fast.report.blocks[-1].tokens == 38
    lvtp_fx.verify(dense, fast, (picture(),))
    ops = [node.target for node in fast.graph.nodes]
    behind = kinds[kinds.index("g") + 1 :]
    assert ops.count(torch.ops.lvtp.restore.default) == behind.count("w") + 1  # and before the head
    assert ops.count(torch.ops.lvtp.gather.default) == behind.count("w")  # what the windows give, no copies of owners
