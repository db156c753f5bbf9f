"""Padding: what a mask of the inputs hides from all is dropped first, mixed into no other token, decides nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lvtp_fx
from lvtp_fx.capture import Capture
from lvtp_fx.config import STRATEGIES
from lvtp_fx.decisions import observe
from lvtp_fx.models.random_weights import randomise
from tests import op_calls
from tests.draws import normal
from tests.tiny import SIDE, Attention, C, H, N, PreNorm, TinyViT, captured, picture

# (seen [B, N] bool, q, k, v [B, H, N, D]) -> the attended values: one padding mask, written as people write it
Form = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def boolean(seen: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None])


def additive(seen: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """As transformers extends a mask, beside a bias that hides nothing."""
    extended = (1.0 - seen[:, None, None].to(q.dtype)) * torch.finfo(q.dtype).min
    return F.scaled_dot_product_attention(q, k, v, attn_mask=extended + 0.01 * torch.arange(N))


def filled(seen: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Batch and heads in one axis."""
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    hidden = ~seen.repeat_interleave(H, 0)[:, None]
    weight = torch.bmm(q, k.mT).mul(0.25).masked_fill(hidden, -1e4).softmax(-1)
    return torch.bmm(weight, v).unflatten(0, (-1, H))


def both(seen: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Hidden as keys and as queries; rows that see nothing are uniform."""
    pairs = seen[:, None, :, None] & seen[:, None, None, :]
    scores = torch.where(pairs, q @ k.mT * 0.25, torch.finfo(q.dtype).min)
    return scores.softmax(-1) @ v


def scaled(seen: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The mask is scaled with the scores."""
    hidden = torch.where(seen, 0.0, -1e4)[:, None, None].type_as(q)
    return ((q @ k.mT + hidden) * 0.125).softmax(-1) @ v


def itself(seen: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """A padded token sees itself, lest its row be nan, and nobody else sees it."""
    pairs = (seen[:, :, None] & seen[:, None]) | torch.eye(N, dtype=torch.bool)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=pairs[:, None])


FORMS: dict[str, Form] = {f.__name__: f for f in (boolean, additive, filled, both, scaled, itself)}


def right(seen: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Padding, and the left half besides."""
    return boolean(seen & (torch.arange(N) % 8 > 3), q, k, v)


def rows_only(seen: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """A number for each row of the scores, which hides nothing."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen.to(q.dtype)[:, None, :, None])


class Padded(nn.Module):
    """A ViT whose blocks are told which patches hold a picture; the first ones may be told in another form, or not."""

    def __init__(self, *forms: Form | None) -> None:
        super().__init__()
        self.forms = (*forms, *(forms[-1],) * (4 - len(forms)))
        self.vit = TinyViT([PreNorm(Attention(self.attend)) for _ in range(4)])
        self.seen: list[torch.Tensor] = []

    def attend(self, m: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        form = self.forms[[block.attention for block in self.vit.blocks].index(m)]
        return F.scaled_dot_product_attention(q, k, v) if form is None else form(self.seen[0], q, k, v)

    def forward(self, image: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        self.seen[:] = [seen]
        out: torch.Tensor = self.vit(image).flatten(2).transpose(1, 2)
        self.seen.clear()
        return out  # [B, N, 5]


def model(*forms: Form | None) -> nn.Module:
    return randomise(Padded(*forms), seed=0).eval()


def corner(rows: int, columns: int) -> torch.Tensor:
    """[N] bool: pictures lie in the upper left corner of the batch's canvas of 8 x 8 patches."""
    seen = torch.zeros(8, 8, dtype=torch.bool)
    seen[:rows, :columns] = True
    return seen.flatten()


def batch(*sizes: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    return picture(len(sizes)), torch.stack([corner(*size) for size in sizes])


def behind(image: torch.Tensor, seen: torch.Tensor, value: float) -> torch.Tensor:
    """The pictures with other pixels in hidden patches that touch none that is seen, so that no edge changes."""
    touched = F.max_pool2d(seen.view(-1, 1, 8, 8).float(), 3, 1, 1)
    hidden = F.interpolate(touched, (SIDE, SIDE)) == 0
    return torch.where(hidden, value * torch.randn(image.shape, generator=torch.Generator().manual_seed(7)), image)


def pruned(form: str, **options: object) -> tuple[Capture, torch.fx.GraphModule]:
    dense = captured(model(FORMS[form]), *batch((8, 8), (8, 8)))
    return dense, lvtp_fx.transform(dense, keep_ratio=0.7, sites=(0, 1, 2), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", FORMS)
def test_padding_is_dropped_first(form: str) -> None:
    dense, fast = pruned(form)
    image, seen = batch((8, 8), (5, 8), (8, 3), (2, 2))
    lvtp_fx.verify(dense, fast, (image, seen))
    for decision in lvtp_fx.decisions(fast, (image, seen)):
        lives = torch.zeros(seen.shape, dtype=torch.bool).scatter(1, decision.kept, True)
        for shown, alive in zip(seen, lives, strict=True):
            assert not (alive & ~shown).any() or alive[shown].all()


@pytest.mark.parametrize("form", ["boolean", "filled"])
@pytest.mark.parametrize("options", [
    {}, {"proportional_attention": False}, {"reduce": "select"}, {"restore_from": 2}, {"decoder": "full"},
    {"entropy_direction": "high", "importance_in_rank": 0.3, "rounds": 1}, {"entropy_weight": 0.0},
    *({"strategy": strategy} for strategy in STRATEGIES),
], ids=str)
def test_what_padding_holds_changes_nothing(form: str, options: dict[str, object]) -> None:
    """The tokens of the picture come out the same, whatever lies in the padding: the law that the dense model keeps."""
    dense, fast = pruned(form, **options)
    image, seen = batch((8, 8), (5, 8), (8, 3), (2, 2))
    other = behind(image, seen, 5.0)
    assert not torch.equal(image, other)
    with torch.no_grad():
        for graph in (dense.module, fast):
            assert torch.allclose(graph(image, seen)[seen], graph(other, seen)[seen], atol=1e-5)
    lvtp_fx.verify(dense, fast, (other, seen))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_strategy_mixes_padding_in(strategy: str) -> None:
    dense, fast = pruned("boolean", strategy=strategy)
    image, seen = batch((8, 8), (5, 8), (8, 3), (2, 2))
    lvtp_fx.verify(dense, fast, (image, seen))
    for decision in lvtp_fx.decisions(fast, (image, seen)):
        hidden = ~seen.gather(1, decision.owner)
        assert not (seen & hidden).any()  # no hidden token stands for a part of the picture


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=3), value=st.floats(0, 1e3))
def test_any_padding(
    fast_boolean: tuple[Capture, torch.fx.GraphModule], sizes: list[tuple[int, int]], value: float
) -> None:
    """Also where nothing is seen at all."""
    dense, fast = fast_boolean
    image, seen = batch(*sizes)
    if seen.any(1).all():  # a row of the softmax that sees nothing is nan in the dense model
        lvtp_fx.verify(dense, fast, (behind(image, seen, value), seen))
    for decision in lvtp_fx.decisions(fast, (image, seen)):
        assert bool((decision.kept[:, 1:] > decision.kept[:, :-1]).all())
        assert torch.equal(decision.owner.gather(1, decision.kept), decision.kept)


@pytest.fixture(scope="module")
def fast_boolean() -> tuple[Capture, torch.fx.GraphModule]:
    return pruned("boolean")


def test_without_padding_nothing_is_another() -> None:
    """A mask that hides no token changes no decision: those of the same model without one."""
    image, seen = batch((8, 8), (8, 8))
    plain = lvtp_fx.transform(model(None), (image, seen), keep_ratio=0.7, sites=(0, 1, 2))
    _, fast = pruned("boolean")
    for a, b in zip(lvtp_fx.decisions(plain, (image, seen)), lvtp_fx.decisions(fast, (image, seen)), strict=True):
        assert torch.equal(a.kept, b.kept)
        assert torch.equal(a.owner, b.owner)


@pytest.mark.parametrize("form", FORMS)
def test_the_report_says_what_happens_to_padding(form: str) -> None:
    (note,) = lvtp_fx.explain(model(FORMS[form]), batch((8, 8), (8, 8)), keep_ratio=0.5).notes
    assert note.startswith("attention is masked by what comes in (")
    assert note.endswith("): tokens that are hidden from all (padding) are dropped first, and mixed into no other")


def test_what_one_block_hides_and_another_reads_is_no_padding() -> None:
    blind = model(None, boolean)
    (note,) = lvtp_fx.explain(blind, batch((8, 8), (8, 8)), keep_ratio=0.5).notes
    assert note.startswith("attention is masked by what comes in (")
    assert note.endswith("): not all that read the tokens are, so these are merged as if none were, and what is hidden "
                         "(padding) is mixed into tokens beside it at each site")
    image, seen = batch((8, 8), (5, 8))
    fast = lvtp_fx.transform(blind, (image, seen), keep_ratio=0.7, sites=(0, 1, 2))
    lvtp_fx.verify(blind, fast, (image, seen))
    assert not any(node.target is torch.ops.lvtp.shown.default for node in fast.graph.nodes)


@pytest.mark.parametrize("forms", [(right, boolean), (boolean, boolean, right)])
def test_what_one_mask_hides_and_another_shows_is_no_padding(forms: tuple[Form, ...]) -> None:
    """Padding is what each of the masks hides, also those that are made behind the first site."""
    dense = captured(model(*forms), *batch((8, 8), (8, 8)))
    fast = lvtp_fx.transform(dense, keep_ratio=0.7, sites=(0, 1, 2))
    image, seen = batch((8, 8), (5, 8))
    lvtp_fx.verify(dense, fast, (image, seen))
    assert sum(node.target is torch.ops.lvtp.shown.default for node in fast.graph.nodes) == 2
    (size,) = (node.name for node in fast.graph.nodes if node.target is torch.ops.aten.maximum.default)
    assert torch.equal(observe(fast, (image, seen), [size])[2][size], seen.float())


def test_a_mask_that_each_block_makes_for_itself_is_one() -> None:
    _, fast = pruned("additive")
    assert sum(node.target is torch.ops.lvtp.shown.default for node in fast.graph.nodes) == 1


def test_a_mask_of_rows_hides_nothing() -> None:
    dense = captured(model(rows_only), *batch((8, 8), (8, 8)))
    fast = lvtp_fx.transform(dense, keep_ratio=0.7, sites=(0, 1))
    image, seen = batch((8, 8), (5, 8))
    lvtp_fx.verify(dense, fast, (image, seen))
    plain = lvtp_fx.transform(model(None), (image, seen), keep_ratio=0.7, sites=(0, 1))
    assert torch.equal(lvtp_fx.decisions(fast, (image, seen))[0].kept, lvtp_fx.decisions(plain, (image, seen))[0].kept)


@pytest.mark.parametrize("masked", [False, True])
def test_a_decoder_that_reads_padding_is_asked_too(masked: bool) -> None:
    """Blocks behind the encoder that are reduced with it, which see more tokens: queries."""

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.queries = Padded(boolean), nn.Parameter(torch.randn(1, 3, C))
            self.encoder.vit.head = nn.Identity()
            self.blocks = nn.ModuleList(PreNorm(Attention(self.attend)) for _ in range(2))
            self.seen: list[torch.Tensor] = []

        def attend(self, _: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            mask = F.pad(self.seen[0], (0, 3), value=True)[:, None, None] if masked else None
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

        def forward(self, image: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
            x = self.encoder(image, seen)
            x = torch.cat([x, self.queries.expand(x.shape[0], -1, -1)], 1)
            self.seen[:] = [seen]
            for block in self.blocks:
                x = block(x)
            self.seen.clear()
            return x[:, :N]

    image, seen = batch((8, 8), (5, 8))
    dense = captured(randomise(Decoder(), seed=0).eval(), image, seen)
    fast = lvtp_fx.transform(dense, keep_ratio=0.7, sites=(0, 1))
    assert len(fast.report.blocks) == 6
    assert ("mixed into no other" in fast.report.notes[0]) == masked
    lvtp_fx.verify(dense, fast, (image, seen))


def test_the_oracle_sees_padding_that_is_mixed_in() -> None:
    """`verify` finds out for itself what is hidden: a graph that counts all tokens fails."""
    dense, fast = pruned("boolean")
    for node in fast.graph.nodes:
        if node.target is torch.ops.lvtp.shown.default:
            node.target, node.args = torch.ops.lvtp.ones.default, (node.args[1],)
    fast.recompile()
    with pytest.raises(lvtp_fx.LvtpError, match="LVTP301"):
        lvtp_fx.verify(dense, fast, batch((8, 8), (5, 8)))


@pytest.mark.parametrize("living", [range(64), range(0, 64, 3)])
def test_representatives_are_shown(living: range) -> None:
    """The best of its cell that is shown; where none is, one that is shown all the same."""
    position = torch.tensor([*living]).expand(2, -1)
    importance = normal(0, 2, len(living), dtype=torch.float32)
    size = torch.stack([corner(5, 8), corner(3, 3)]).float().gather(1, position) * 2
    anchors = torch.ops.lvtp.representatives(importance, position, 8, 8, 2, 2, size)
    assert bool((size.gather(1, anchors) > 0).all())
    cell = position // 8 // 2 * 4 + position % 8 // 2
    for i in range(2):
        for token in torch.arange(len(living))[size[i] > 0].tolist():
            best = anchors[i, cell[i, token]]
            assert cell[i, best] == cell[i, token]
            assert importance[i, best] >= importance[i, token]


def test_hidden_tokens_rank_no_other() -> None:
    position, size = torch.arange(64).expand(1, -1), corner(5, 8).float()[None]
    importance, edges = (torch.ops.lvtp.blend(normal(s, 1, 64, dtype=torch.float32), size, 1.0, 0.0) for s in (1, 2))
    edges = edges * size
    anchors = torch.ops.lvtp.representatives(importance, position, 8, 8, 2, 2, size)
    ranks = []
    for seed in (3, 4):
        feature = normal(3, 1, 64, 8, dtype=torch.float32)
        feature = torch.where(size[..., None] > 0, feature, normal(seed, 1, 64, 8, dtype=torch.float32))
        ranks.append(op_calls.rank(
            feature, anchors, position, importance, edges, 8, 8, 1.0, 0.3, 1.0, 30, 4, size))
    assert torch.equal(ranks[0][size > 0], ranks[1][size > 0])
    assert ranks[0][size == 0].max() < ranks[0][size > 0].min()


class Encoder(nn.Module):
    """torch's own encoder layers, as DETR-like models use them: a padding mask, class token and all."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.token = nn.Conv2d(3, C, 4, 4), nn.Parameter(torch.randn(1, 1, C))
        layer = nn.TransformerEncoderLayer(C, H, 2 * C, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(C, 5)

    def forward(self, image: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """pixels: [B, 32, 32] bool, true where the picture is."""
        x = torch.cat([self.token.expand(image.shape[0], -1, -1), self.embed(image).flatten(2).transpose(1, 2)], 1)
        seen = F.interpolate(pixels[:, None].float(), (8, 8)).flatten(1) > 0
        seen = F.pad(seen, (1, 0), value=True)
        out: torch.Tensor = self.head(self.layers(x, src_key_padding_mask=~seen))
        return out[:, 1:]


def test_padding_of_an_encoder_of_torch() -> None:
    torch.manual_seed(0)
    encoder = Encoder().eval()
    image, seen = batch((8, 8), (5, 8), (3, 4))
    pixels = F.interpolate(seen.view(-1, 1, 8, 8).float(), (SIDE, SIDE))[:, 0] > 0
    fast = lvtp_fx.transform(encoder, (image, pixels), keep_ratio=0.7, sites=(0, 1, 2))
    lvtp_fx.verify(encoder, fast, (image, pixels))
    with torch.no_grad():
        assert torch.allclose(fast(image, pixels)[seen], fast(behind(image, seen, 5.0), pixels)[seen], atol=1e-5)
