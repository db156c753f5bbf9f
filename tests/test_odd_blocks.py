"""Blocks with something unusual beside their attention: the pruned graph is what it has to be, to the last digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lvtp_fx
from lvtp_fx.models.random_weights import randomise
from tests.tiny import Attention, C, H, N, PreNorm, TinyViT, analyse, captured, fused, picture

Tensor = torch.Tensor
WHOLE = {"keep_ratio": 0.6, "sites": (0, 1)}


class Odd(PreNorm):
    """Before its attention a block adds what `extra` makes of the tokens."""

    def __init__(self, extra: Callable[[Odd, Tensor], Tensor]) -> None:
        super().__init__(Attention(fused))
        self.extra, self.wide, self.back = extra, nn.Linear(C, N), nn.Linear(N, C)
        self.table = nn.Parameter(torch.zeros(N, N))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x + self.extra(self, self.norm1(x)))
        return out


def relations(x: Tensor) -> Tensor:
    """Of each token to each place of the grid: [B, N, 8, 8]."""
    return torch.einsum("bnc,bchw->bnhw", x, x.transpose(1, 2).unflatten(2, (8, 8))) / C


def two_uses_of_a_table(m: Odd, x: Tensor) -> Tensor:
    """Once it lies over pairs of tokens, once over tokens and channels, which are as many."""
    y = m.wide(x).unsqueeze(1)
    out: Tensor = m.back((F.scaled_dot_product_attention(y, y, y, m.table) + m.table).squeeze(1))
    return out


EXTRAS: dict[str, Callable[[Odd, Tensor], Tensor]] = {
    "the grid beside the tokens is flattened, by its name": lambda m, x: relations(x).flatten(2).softmax(-1) @ x,
    "the grid beside the tokens is flattened, by its size": lambda m, x: relations(x).reshape(-1, N, N).mean(-1, True),
    "the largest of a flattened grid": lambda m, x: relations(x).flatten(2).amax(-1, keepdim=True),
    "each number twice, in one row": lambda m, x: x.repeat_interleave(2).view(-1, N, C, 2).mean(-1),
    "read as it lies in memory": lambda m, x: x + x.contiguous().as_strided((x.shape[0], N, C), (N * C, C, 1)),
    "a table with two uses": two_uses_of_a_table,
}


@pytest.mark.parametrize("extra", EXTRAS.values(), ids=EXTRAS)
def test_the_oracle_agrees(extra: Callable[[Odd, Tensor], Tensor]) -> None:
    model = randomise(TinyViT([Odd(extra) for _ in range(3)]), seed=0).double()
    image = picture().double()
    dense = captured(model, image)
    fast = lvtp_fx.transform(dense, **WHOLE)
    assert [block.tokens for block in fast.report.blocks][:3] == [64, 38, 22]
    assert lvtp_fx.verify(dense, fast, (image,)).max_error < 1e-12


class ReadAcross(PreNorm):
    """The stream lies in memory as the patch embedding made it, channels first, and is read so."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.stride(1) == 1
        planes = x.as_strided((x.shape[0], C, N), (C * N, N, 1))
        out: Tensor = super().forward(x + 0.1 * planes.flip(1).mT)
        return out


def test_what_is_read_as_it_lies_in_memory_is_laid_out_so() -> None:
    model = randomise(TinyViT([ReadAcross(Attention(fused)) for _ in range(3)]), seed=0).double()
    image = picture().double()
    dense = captured(model, image)
    assert torch.equal(dense.module(image), model(image))
    fast = lvtp_fx.transform(dense, **WHOLE)
    assert lvtp_fx.verify(dense, fast, (image,)).max_error < 1e-12


class Prompted(TinyViT):
    """Tokens that the caller gives are added behind each block."""

    def forward(self, image: Tensor, prompt: Tensor) -> Tensor:  # type: ignore[override]
        x = self.embed(image)
        for block in self.blocks:
            x = block(x) + prompt
        out: Tensor = self.head(self.norm(x)).transpose(1, 2).unflatten(2, (8, 8))
        return out


def test_tokens_that_the_caller_gives_are_no_residual_stream() -> None:
    """They were taken for where it begins, being added to what is computed from them."""
    model = randomise(Prompted([PreNorm(Attention(fused)) for _ in range(3)]), seed=0).double()
    inputs = picture().double(), torch.randn(2, N, C, generator=torch.Generator().manual_seed(2)).double()
    dense = captured(model, *inputs)
    fast = lvtp_fx.transform(dense, **WHOLE)
    assert len(fast.report.blocks) == 3
    assert lvtp_fx.verify(dense, fast, inputs).max_error < 1e-12


def two_keys_a_token(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    keys, values = (torch.stack([x, x.flip(-1)], 2).flatten(2, 3) for x in (k, v))
    return F.scaled_dot_product_attention(q, keys, values)


@pytest.mark.parametrize("proportional_attention", [True, False])
def test_several_keys_of_a_token_keep_the_full_grid(proportional_attention: bool) -> None:
    blocks = [PreNorm(Attention(form)) for form in (fused, fused, two_keys_a_token, fused)]
    image = picture().double()
    dense = captured(randomise(TinyViT(blocks), seed=0).double(), image)
    fast = lvtp_fx.transform(dense, **WHOLE, proportional_attention=proportional_attention)
    assert len(fast.report.blocks) == 3
    assert lvtp_fx.verify(dense, fast, (image,)).max_error < 1e-12


class ConvolvedBranch(PreNorm):
    """The branch of the MLP adds a convolution of the normalised tokens to them."""

    def __init__(self) -> None:
        super().__init__(Attention(fused))
        self.conv = nn.Conv2d(C, C, 3, padding=1, groups=C)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y = self.norm2(x)
        y = y + self.conv(y.transpose(1, 2).unflatten(2, (8, 8))).flatten(2).transpose(1, 2)
        out: Tensor = x + self.mlp(y)
        return out


def test_a_normalised_branch_is_no_part_of_the_stream() -> None:
    """It was restored as the stream is: what a dropped token was before the norm, and what its owner gained by it."""
    model = randomise(TinyViT([ConvolvedBranch() for _ in range(3)]), seed=0).double()
    trunk = analyse(model, picture().double()).trunk
    assert trunk is not None
    assert not any("layer_norm" in state.name for state in trunk.states)
    image = picture().double()
    dense = captured(model, image)
    fast = lvtp_fx.transform(dense, **WHOLE)
    assert lvtp_fx.verify(dense, fast, (image,)).max_error < 1e-12


class WideSum(PreNorm):
    """The sum behind the attention is in a wider type than the stream."""

    def forward(self, x: Tensor) -> Tensor:
        x = (x.double() + self.attention(self.norm1(x)).double()).to(x.dtype)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


@pytest.mark.parametrize("options", [{}, {"restore_from": 3}, {"restore": "frozen"}, {"reduce": "select"}], ids=str)
def test_what_is_restored_has_the_type_that_it_has_now(options: dict[str, Any]) -> None:
    dense = captured(randomise(TinyViT([WideSum(Attention(fused)) for _ in range(3)]), seed=0))
    fast = lvtp_fx.transform(dense, **WHOLE, **options)
    assert fast(picture()).dtype == torch.float32
    assert lvtp_fx.verify(dense, fast, (picture(),)).max_error < 2e-5


class Skips(TinyViT):
    """Between blocks, the stream meets what is there from the start: the embedding, or features of the image."""

    def __init__(self, how: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__([PreNorm(Attention(fused)) for _ in range(4)])
        self.how, self.stem = how, nn.Conv2d(3, C, 4, 4)

    def features(self, image: Tensor) -> Tensor:
        x = start = self.embed(image)
        beside = self.stem(image).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = self.how(block, x, start, beside)
        out: Tensor = self.norm(x)
        return out


class FirstValues(TinyViT):
    """Every block mixes the values of the first one into its own (ResFormer's value residual)."""

    def __init__(self) -> None:
        super().__init__([PreNorm(Attention(fused)) for _ in range(4)])

    def features(self, image: Tensor) -> Tensor:
        x, first = self.embed(image), None
        for block in self.blocks:
            assert isinstance(block, PreNorm)
            assert isinstance(block.attention, Attention)
            q, k, v = block.attention.qkv(block.norm1(x)).reshape(x.shape[0], -1, 3, H, C // H).permute(2, 0, 3, 1, 4)
            first = v if first is None else first
            mixed = fused(block.attention, q, k, 0.6 * v + 0.4 * first)
            x = x + block.attention.proj(mixed.transpose(1, 2).reshape(x.shape))
            x = x + block.mlp(block.norm2(x))
        out: Tensor = self.norm(x)
        return out


SKIPS: dict[str, Callable[[], nn.Module]] = {
    "embedding behind a block": lambda: Skips(lambda block, x, start, beside: block(x) + 0.3 * start),
    "embedding in front of a block": lambda: Skips(lambda block, x, start, beside: block(x + 0.1 * start)),
    "between embedding and block": lambda: Skips(lambda block, x, start, beside: torch.lerp(start, block(x), 0.7)),
    "features behind a block": lambda: Skips(lambda block, x, start, beside: block(x) + 0.1 * beside),
    "features in front of a block": lambda: Skips(lambda block, x, start, beside: block(x + beside)),
    "features as a scale": lambda: Skips(lambda block, x, start, beside: block(x) * beside.sigmoid()),
    "features behind a norm": lambda: Skips(lambda block, x, start, beside: F.layer_norm(block(x), (C,)) + beside),
    "features behind a scale": lambda: Skips(lambda block, x, start, beside: 0.5 * block(x) + 0.5 * beside),
    "features in another order of axes": lambda: Skips(lambda block, x, start, beside: (block(x).mT + beside.mT).mT),
    "features as a gate": lambda: Skips(
        lambda block, x, start, beside: torch.addcmul(x, beside, block(x))),
    "values of the first block": FirstValues,
}


@pytest.mark.parametrize("name", SKIPS)
@pytest.mark.parametrize("options", [{}, {"restore": "frozen"}, {"reduce": "select"}], ids=str)
def test_what_is_there_from_the_start_is_gathered_wherever_it_is_read(name: str, options: dict[str, Any]) -> None:
    dense = captured(randomise(SKIPS[name](), seed=0).double(), picture().double())
    fast = lvtp_fx.transform(dense, sites=(0, 1), keep_ratio=0.6, **options)
    assert [block.tokens for block in fast.report.blocks] == [64, 38, 22, 22]
    assert lvtp_fx.verify(dense, fast, (picture().double(),)).max_error < 1e-12


class AttentionAlone(PreNorm):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(self.norm1(x))


def test_where_no_state_can_be_reduced_the_refusal_says_so() -> None:
    with pytest.raises(lvtp_fx.LvtpError) as caught:
        lvtp_fx.transform(randomise(TinyViT([AttentionAlone(Attention(fused))]), seed=0).eval(), picture())
    assert str(caught.value) == (
        "LVTP202 flops-cut-unreachable at blocks.0.attention\n"
        "  expected: an encoder that works on the tokens after its first attention\n"
        "  got: 1 block with attention, and behind them no state of the residual stream, but its last, that all "
        "later ones are made from\n"
        "  why: tokens are dropped at such a state, behind an attention\n"
        "  try: a deeper encoder, or one without skips from one block to a later one")


class SecondImage(TinyViT):
    """Each block attends over another image as well, whose tokens are made before the picture's."""

    def __init__(self) -> None:
        super().__init__([PreNorm(Attention(fused)) for _ in range(3)])
        self.stem = nn.Conv2d(3, C, 4, 4)

    def forward(self, image: Tensor, other: Tensor) -> Tensor:  # type: ignore[override]
        beside = self.stem(other).flatten(2).transpose(1, 2)
        x = self.embed(image) + beside.mean(1, keepdim=True)
        for block in self.blocks:
            x = block(x)
            x = x + F.scaled_dot_product_attention(x[:, None], beside[:, None], beside[:, None])[:, 0]
        out: Tensor = self.head(self.norm(x))
        return out


def test_a_second_image_that_is_made_first_keeps_its_tokens() -> None:
    """Attention does not ask where its keys are: patches in another order change nothing, unless some are left out."""
    image, other = picture().double(), picture(seed=1).double()
    moved = other.unflatten(2, (8, 4)).flip(2).flatten(2, 3)
    model = randomise(SecondImage(), seed=0).double()
    trunk = analyse(model, image, other).trunk
    assert trunk is not None
    assert trunk.image is not None
    assert trunk.image.name == "image"
    dense = captured(model, image, other)
    fast = lvtp_fx.transform(dense, **WHOLE)
    assert fast.report.kept == (38, 22)
    assert lvtp_fx.verify(dense, fast, (image, other)).max_error < 1e-12
    assert (fast(image, moved) - fast(image, other)).abs().max() < 1e-12
    assert (fast(image, other.flip(3)) - fast(image, other)).abs().max() > 1e-3  # and it is looked at
