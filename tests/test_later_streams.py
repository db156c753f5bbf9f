"""Decoders that attend over the patch grid: their stream is merged into the living tokens, and restored behind them."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import fx, nn

import lvtp_fx
from lvtp_fx.capture import Capture
from lvtp_fx.errors import LvtpError
from lvtp_fx.models.random_weights import randomise
from lvtp_fx.plan import LaterStream
from tests.tiny import Attention, C, N, PreNorm, TinyViT, analyse, captured, fused, picture

lvtp = torch.ops.lvtp


def encoder(depth: int = 3) -> TinyViT:
    return TinyViT([PreNorm(Attention(fused)) for _ in range(depth)])


class MaskTransformer(nn.Module):
    """Class queries and patch tokens attend to each other, as in Segmenter's decoder."""

    def __init__(self, encoder: TinyViT, depth: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.project, self.queries = nn.Linear(C, C), nn.Parameter(torch.randn(1, 5, C))
        self.decoder = nn.ModuleList(PreNorm(Attention(fused)) for _ in range(depth))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.project(self.encoder.features(image))
        x = self.decode(torch.cat([x, self.queries.expand(x.shape[0], -1, -1)], 1))
        return (x[:, :-5] @ x[:, -5:].mT).mT.unflatten(2, (8, 8))

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.decoder:
            x = block(x)
        return x


def decoder(depth: int = 2) -> nn.Module:
    return randomise(MaskTransformer(encoder(), depth), seed=0).eval()


class Rewriting(MaskTransformer):
    """A decoder that smooths the tokens on their grid between its blocks."""

    def __init__(self) -> None:
        super().__init__(encoder(), 2)
        self.smooth = nn.Conv2d(C, C, 3, padding=1)

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        x = self.decoder[0](x)
        grid = x[:, :-5].mT.unflatten(2, (8, 8))
        x = torch.cat([x[:, :-5] + self.smooth(grid).flatten(2).mT, x[:, -5:]], 1)
        out: torch.Tensor = self.decoder[1](x)
        return out


class TwoDecoders(nn.Module):
    """Two tasks, each with blocks of its own behind one encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = encoder()
        self.to_a, self.to_b = nn.Linear(C, C), nn.Linear(C, C)
        self.a, self.b = PreNorm(Attention(fused)), PreNorm(Attention(fused))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.encoder.features(image)
        return self.a(self.to_a(x)), self.b(self.to_b(x))


class Exchanging(TwoDecoders):
    """Each of the two tasks hears of the other between its two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.hear_a, self.hear_b = nn.Linear(2 * C, C), nn.Linear(2 * C, C)
        self.c, self.d = PreNorm(Attention(fused)), PreNorm(Attention(fused))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = super().forward(image)
        both = torch.cat([a, b], -1)
        return self.c(a + self.hear_b(both)), self.d(b + self.hear_a(both))


class Nested(TwoDecoders):
    """The second task hears of the first after its first block, and is heard before its second one."""

    def __init__(self) -> None:
        super().__init__()
        self.hear_a, self.hear_b = nn.Linear(C, C), nn.Linear(C, C)
        self.c = PreNorm(Attention(fused))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.encoder.features(image)
        a = self.a(self.to_a(x))
        b = self.b(self.to_b(x) + self.hear_a(a))
        return self.c(a + self.hear_b(b)), b


class PerPixel(nn.Module):
    """Blocks behind the encoder on a grid of their own, twice as fine."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.project = encoder(), nn.Linear(C, C)
        self.block = PreNorm(Attention(fused))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.project(self.encoder.features(image)).mT.unflatten(2, (8, 8))
        x = nn.functional.interpolate(x, scale_factor=2.0)
        out: torch.Tensor = self.block(x.flatten(2).mT)
        return out


def later(model: nn.Module) -> tuple[LaterStream, ...]:
    trunk = analyse(model).trunk
    assert trunk is not None
    return trunk.later


def targets(module: fx.GraphModule, op: str) -> list[fx.Node]:
    return [n for n in module.graph.nodes if n.target is getattr(lvtp, op).default]


def test_a_mask_transformer_is_a_later_stream_of_the_encoders_grid() -> None:
    (stream,) = later(MaskTransformer(encoder(), 2))
    assert [a.path for a in stream.attentions] == ["decoder.0.attention", "decoder.1.attention"]
    assert [str(s.target).split(".")[1] for s in stream.states] == ["linear", "cat", *["add"] * 4]
    assert stream.states[0] not in stream.members
    assert stream.members.issuperset(stream.states[1:])


def test_the_first_stream_is_the_encoder_also_where_the_decoder_has_as_many_blocks() -> None:
    trunk = analyse(MaskTransformer(encoder(2), 2)).trunk
    assert trunk is not None
    assert [b.attention.path for b in trunk.blocks] == ["encoder.blocks.0.attention", "encoder.blocks.1.attention"]


def test_streams_side_by_side_are_each_found() -> None:
    assert [[a.path for a in s.attentions] for s in later(TwoDecoders())] == [["a.attention"], ["b.attention"]]


def test_streams_that_exchange_values_are_each_found() -> None:
    found = [[a.path for a in s.attentions] for s in later(Exchanging())]
    assert found == [["a.attention", "c.attention"], ["b.attention", "d.attention"]]


def test_a_stream_that_begins_and_ends_inside_another_is_a_part_of_it() -> None:
    assert [[a.path for a in s.attentions] for s in later(Nested())] == [["a.attention", "b.attention", "c.attention"]]


def test_a_stream_on_another_grid_is_not_reduced() -> None:
    model = randomise(PerPixel(), seed=0).eval()
    assert later(model) == ()
    dense = captured(model)
    fast = lvtp_fx.transform(dense, keep_ratio=0.5)
    assert fast.report.unmatched[0].where.startswith("block.attention")
    lvtp_fx.verify(dense, fast, (picture(),))


def test_it_is_merged_where_it_begins_and_restored_where_it_ends() -> None:
    fast = lvtp_fx.transform(decoder(), (picture(),), keep_ratio=0.5, sites=(0, 1), restore_from=2)
    kept = fast.report.kept
    assert kept == (N // 2, N // 4)
    assert [b.tokens for b in fast.report.blocks] == [N, kept[0], kept[1], kept[1] + 5, kept[1] + 5]
    *_, entry = targets(fast, "merge")
    assert entry.args[0].name == "linear_12"  # type: ignore[union-attr]
    assert entry.args[1].name.startswith("lvtp_compose")  # type: ignore[union-attr]  # through both sites at once
    assert entry.args[6:] == (0, 0)
    assert len(targets(fast, "key_bias")) == 4  # blocks 1 and 2 of the encoder, both of the decoder
    assert [n.args[5:] for n in targets(fast, "restore_between")] == [(0, 0)] * 2  # the queries are cut off before
    assert [n.args[4:] for n in targets(fast, "restore")] == [(0, 0)]


@cache
def in_double(kind: type[nn.Module]) -> Capture:
    model = MaskTransformer(encoder(), 2) if kind is MaskTransformer else kind()
    return captured(randomise(model, seed=0).double(), picture().double())


@pytest.mark.parametrize("kind", [
    pytest.param(kind, marks=pytest.mark.xdist_group(kind.__name__), id=kind.__name__)  # one process captures it once
    for kind in (MaskTransformer, Rewriting, TwoDecoders, Exchanging, Nested)])
@pytest.mark.parametrize("options", [
    {}, {"restore": "copy"}, {"restore": "frozen"}, {"reduce": "select"}, {"proportional_attention": False},
    {"sites": (0,)}, {"decoder": "full"}, {"reduce": "select", "restore": "frozen"},
], ids=str)
def test_the_oracle_agrees(kind: type[nn.Module], options: dict[str, Any]) -> None:
    dense = in_double(kind)
    fast = lvtp_fx.transform(dense, keep_ratio=0.6, **{"sites": (0, 1), **options})
    assert lvtp_fx.verify(dense, fast, (picture().double(),)).max_error < 1e-12


def test_a_full_decoder_runs_on_all_tokens_and_saves_less() -> None:
    dense = captured(decoder())
    reduced, full = (lvtp_fx.transform(dense, keep_ratio=0.5, decoder=d) for d in ("reduced", "full"))
    assert [b.tokens for b in full.report.blocks][-2:] == [N + 5, N + 5]
    assert full.report.gflops_encoder_pruned == reduced.report.gflops_encoder_pruned
    assert full.report.gflops_pruned > reduced.report.gflops_pruned


def test_the_wanted_cut_counts_the_decoder() -> None:
    fast = lvtp_fx.transform(decoder(4), (picture(),), flops_cut=0.3)
    assert 0.3 <= fast.report.flops_cut < 0.34


def test_nothing_to_prune_leaves_the_decoder_as_it_is() -> None:
    model = decoder()
    fast = lvtp_fx.transform(model, (picture(),), flops_cut=0)
    with torch.no_grad():
        assert torch.equal(fast(picture()), model(picture()))
    assert all(b.tokens == b.tokens_dense for b in fast.report.blocks)


@pytest.mark.parametrize(("op", "which", "argument", "broken"), [
    ("merge", -1, 4, "other sizes"), ("restore", -1, 2, "zeros"), ("key_bias", -1, 1, "ones"),
])
def test_a_broken_decoder_is_caught(op: str, which: int, argument: int, broken: str) -> None:
    dense = captured(decoder())
    module = lvtp_fx.transform(dense, keep_ratio=0.5, sites=(0, 1))
    node = targets(module, op)[which]
    with module.graph.inserting_before(node):
        old = node.args[argument]
        assert isinstance(old, fx.Node)
        if broken == "other sizes":
            new = module.graph.call_function(lvtp.hashed.default, (targets(module, "positions")[0], 1))
        elif broken == "zeros":
            new = module.graph.call_function(torch.ops.aten.zeros_like.default, (old,))
        else:
            new = module.graph.call_function(lvtp.ones.default, (old,))
        node.update_arg(argument, new)
    module.recompile()
    with pytest.raises(LvtpError, match="LVTP301 verify-mismatch at "):
        lvtp_fx.verify(dense, module, (picture(),))
