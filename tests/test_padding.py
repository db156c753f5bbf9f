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
from lvtp_fx.models.random_weights import randomise
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


FORMS: dict[str, Form] = {f.__name__: f for f in (boolean, additive, filled, both)}


class Padded(nn.Module):
    """A ViT whose blocks are told which patches hold a picture."""

    def __init__(self, form: Form, blind: int = 0) -> None:
        super().__init__()
        self.form, self.blind = form, blind
        self.vit = TinyViT([PreNorm(Attention(self.attend)) for _ in range(4)])
        self.seen: list[torch.Tensor] = []

    def attend(self, m: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if [*self.vit.blocks].index(next(b for b in self.vit.blocks if b.attention is m)) < self.blind:
            return F.scaled_dot_product_attention(q, k, v)
        return self.form(self.seen[0], q, k, v)

    def forward(self, image: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        self.seen[:] = [seen]
        out: torch.Tensor = self.vit(image).flatten(2).transpose(1, 2)
        self.seen.clear()
        return out  # [B, N, 5]


def model(form: str, blind: int = 0) -> nn.Module:
    return randomise(Padded(FORMS[form], blind), seed=0).eval()


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
    dense = captured(model(form), *batch((8, 8), (8, 8)))
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


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", [
    {}, {"proportional_attention": False}, {"reduce": "select"}, {"restore_from": 2}, {"decoder": "full"},
    {"entropy_direction": "high", "importance_in_rank": 0.3, "rounds": 1}, {"entropy_weight": 0.0},
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
    """Ranks of the others may be moved by what lies there; with all decisions alike, values may not."""
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
    plain = lvtp_fx.transform(model("boolean", blind=4), (image, seen), keep_ratio=0.7, sites=(0, 1, 2))
    _, fast = pruned("boolean")
    for a, b in zip(lvtp_fx.decisions(plain, (image, seen)), lvtp_fx.decisions(fast, (image, seen)), strict=True):
        assert torch.equal(a.kept, b.kept)
        assert torch.equal(a.owner, b.owner)


@pytest.mark.parametrize("form", FORMS)
def test_the_report_says_what_happens_to_padding(form: str) -> None:
    (note,) = lvtp_fx.explain(model(form), batch((8, 8), (8, 8)), keep_ratio=0.5).notes
    assert note.startswith("attention is masked by what comes in (")
    assert note.endswith("): tokens that it hides from all (padding) are dropped first, and mixed into no other")


def test_what_one_block_hides_and_another_reads_is_no_padding() -> None:
    blind = model("boolean", blind=1)
    (note,) = lvtp_fx.explain(blind, batch((8, 8), (8, 8)), keep_ratio=0.5).notes
    assert note.startswith("attention is masked by what comes in (")
    assert note.endswith("): not in all blocks, so tokens are merged as if it were not, and what it hides (padding) is "
                         "mixed into tokens beside it at each site")
    image, seen = batch((8, 8), (5, 8))
    fast = lvtp_fx.transform(blind, (image, seen), keep_ratio=0.7, sites=(0, 1, 2))
    lvtp_fx.verify(blind, fast, (image, seen))
    assert not any(node.target is torch.ops.lvtp.shown.default for node in fast.graph.nodes)


def test_the_oracle_sees_padding_that_is_mixed_in() -> None:
    """`verify` finds out for itself what is hidden: a graph that counts all tokens fails."""
    dense, fast = pruned("boolean")
    for node in fast.graph.nodes:
        if node.target is torch.ops.lvtp.shown.default:
            node.target, node.args = torch.ops.lvtp.ones.default, (node.args[1],)
    fast.recompile()
    with pytest.raises(lvtp_fx.LvtpError, match="LVTP301"):
        lvtp_fx.verify(dense, fast, batch((8, 8), (5, 8)))


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
