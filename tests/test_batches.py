"""Models that treat the images of a batch in ways of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import lvtp_fx
from lvtp_fx.capture import capture
from lvtp_fx.models.random_weights import randomise
from tests.tiny import Attention, C, H, N, PreNorm, TinyViT, fused, picture, vit

OPTIONS: dict[str, Any] = {"keep_ratio": 0.5, "sites": (0, 1), "rounds": 1}


class Mixed(nn.Module):
    """In the place of an MLP."""

    def __init__(self, compute: Callable[[Mixed, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.compute, self.linear, self.attention = compute, nn.Linear(C, C), Attention(fused)
        self.sequence_first, self.places = nn.MultiheadAttention(C, H), nn.Parameter(torch.zeros(N, C))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.compute(self, x)


# After a site, an index is another place in each image: what mixes images at one index needs the full grid.
MIXING: dict[str, Callable[[Mixed, torch.Tensor], torch.Tensor]] = {
    "mean of the batch": lambda m, x: m.linear(x - x.mean(0, keepdim=True)),
    "softmax over the batch": lambda m, x: m.linear(x).softmax(0),
    "attention over the batch": lambda m, x: m.sequence_first(x, x, x, need_weights=False)[0],
    "sum by einsum": lambda m, x: m.linear(x) + torch.einsum("bnc->nc", x),
    "deviation in the batch": lambda m, x: m.linear(x) + x.std(0, correction=0),
    "attention, image by image": lambda m, x: torch.stack([m.attention(x[i][None])[0] for i in range(len(x))]),
    "gate, image by image": lambda m, x: torch.stack([m.linear(y) * torch.sigmoid(y.mean(0)) for y in x]),
    "places, image by image": lambda m, x: torch.stack([m.linear(y + m.places) for y in x]),
    "batches joined": lambda m, x: sum(torch.cat([m.linear(x), -x]).cumsum(1).chunk(2)),
    "nothing joined to a batch": lambda m, x: torch.cat([m.linear(x), x.new_zeros(1, N, C)]).cumsum(1)[:-1],
    "images joined again": lambda m, x: torch.cat([m.linear(x[i : i + 1]) for i in range(len(x))]),
}


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_images_agrees_with_the_oracle(name: str) -> None:
    model = TinyViT([PreNorm(Attention(fused)) for _ in range(3)])
    model.blocks[1].mlp = Mixed(MIXING[name])
    model = randomise(model, seed=0).eval()
    fast = lvtp_fx.transform(model, (picture(),), **OPTIONS)
    assert lvtp_fx.verify(model, fast, (picture(),)).max_error < 2e-6
    assert [len(site.kept[0]) for site in lvtp_fx.decisions(fast, picture())] == [32, 16]


class Clips(TinyViT):
    """Makes a batch of several axes or batches: `embed` patches for `segment`, what it is given."""

    def __init__(self, segment: Callable[[Clips, torch.Tensor], torch.Tensor]) -> None:
        super().__init__([PreNorm(Attention(fused)) for _ in range(3)])
        self.segment, self.time, self.camera = segment, nn.Linear(C, C), nn.Linear(3, C)
        self.times = nn.Parameter(torch.randn(1, 3, N, C))

    def one(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(image)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.segment(self, x)


def _mirrored(m: Clips, x: torch.Tensor) -> torch.Tensor:
    plain, mirrored = m.one(torch.cat([x, x.flip(-1)])).chunk(2)
    return plain + mirrored.flip(-1)


def _over_time(m: Clips, x: torch.Tensor) -> torch.Tensor:
    """Frames tell each other between two blocks, place by place."""
    y = m.embed(x.flatten(0, 1))
    for i, block in enumerate(m.blocks):
        y = block(y)
        if i == 1:
            apart = y.unflatten(0, x.shape[:2])
            y = y + m.time(apart.mean(1, keepdim=True).expand_as(apart)).flatten(0, 1)
    out: torch.Tensor = m.head(m.norm(y)).unflatten(0, x.shape[:2])
    return out


def _told(
    m: Clips, images: torch.Tensor, added: torch.Tensor | None, token: torch.Tensor | None = None
) -> torch.Tensor:
    """With something added to the tokens of each image, or a token before them."""
    y = m.embed(images)
    y = y if added is None else y + added
    y = y if token is None else torch.cat([token, y], 1)
    for block in m.blocks:
        y = block(y)
    out: torch.Tensor = m.head(m.norm(y))
    return out[:, -N:]


def _channels(batch: int, count: int) -> torch.Tensor:
    return torch.randn(batch, count, 32, 32, generator=torch.Generator().manual_seed(1))


def _unfolded(m: Clips, x: torch.Tensor) -> torch.Tensor:
    y = nn.functional.linear(nn.functional.unfold(x.flatten(0, 1), 4, stride=4).mT, m.embed.conv.weight.flatten(1))
    for block in m.blocks:
        y = block(y)
    out: torch.Tensor = m.head(m.norm(y)).unflatten(0, x.shape[:2])
    return out


def frames(batch: int, seed: int = 1) -> torch.Tensor:
    return picture(batch * 3, seed).unflatten(0, (batch, 3))


MADE: dict[str, tuple[Callable[[Clips, torch.Tensor], torch.Tensor], Callable[[int], torch.Tensor], int, int]] = {
    # what it does, its inputs, images in a batch of 2, blocks
    "frames": (lambda m, x: m.one(x.flatten(0, 1)).unflatten(0, x.shape[:2]), frames, 6, 3),
    "frames, their mean": (lambda m, x: m.one(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1), frames, 6, 3),
    "frames, patches by unfold": (_unfolded, frames, 6, 3),
    "mirror images": (_mirrored, picture, 4, 3),
    "mirror images, a channel more": (lambda m, x: _mirrored(m, x[:, :3]), lambda n: _channels(n, 4), 4, 3),
    "two images in the channels": (
        lambda m, x: m.one(torch.cat([x[:, :3], x[:, 3:]])), lambda n: _channels(n, 6), 4, 3),
    "frames in the channels": (lambda m, x: m.one(x.view(-1, 3, 32, 32)), lambda n: _channels(n, 6), 4, 3),
    "repeated images": (lambda m, x: m.one(x.repeat(2, 1, 1, 1)), picture, 4, 3),
    "images repeated one by one": (lambda m, x: m.one(x.repeat_interleave(2, 0)), picture, 4, 3),
    "frames, a table of times": (
        lambda m, x: _told(m, x.flatten(0, 1), m.times.expand(x.shape[0], -1, -1, -1).flatten(0, 1)), frames, 6, 3),
    "frames, told what they are of": (
        lambda m, x: _told(m, x.flatten(0, 1), m.camera(x.mean((-1, -2))).flatten(0, 1)[:, None]), frames, 6, 3),
    "frames, a class token each": (
        lambda m, x: _told(m, x.flatten(0, 1), None, m.times[:, :, :1].expand(x.shape[0], 3, 1, C).flatten(0, 1)),
        frames, 6, 3),
    "mirror images, told apart": (
        lambda m, x: _told(m, torch.cat([x, x.flip(-1)]), torch.cat([y := m.camera(x.mean((-1, -2))), -y])[:, None]),
        picture, 4, 3),
    "views": (lambda m, x: m.one(torch.cat(x.unbind(1))).unflatten(0, (3, -1)).transpose(0, 1), frames, 6, 3),
    "frames that tell each other": (_over_time, frames, 6, 3),
}


@pytest.mark.parametrize("name", MADE)
def test_a_batch_that_the_model_makes_is_pruned_image_by_image(name: str) -> None:
    segment, inputs, images, blocks = MADE[name]
    model = randomise(Clips(segment), seed=0).eval()
    dense = capture(model, (inputs(1),), {})
    fast = lvtp_fx.transform(dense, **{**OPTIONS, "sites": (0,)})
    assert len(fast.report.blocks) == blocks
    x = inputs(2)
    assert torch.equal(dense.module(x), model(x))
    assert lvtp_fx.verify(dense, fast, (x,)).max_error < 2e-6
    (decided,) = lvtp_fx.decisions(fast, x)
    assert decided.kept.shape == (images, 32)
    assert torch.allclose(fast(x[:1])[:1], fast(x)[:1], atol=1e-5)


class TwoImages(TinyViT):
    """Tokens of one image read those of another one, which is not pruned."""

    def __init__(self) -> None:
        super().__init__([PreNorm(Attention(fused)) for _ in range(3)])
        self.q, self.k, self.v = (nn.Linear(C, C) for _ in range(3))

    def forward(self, image: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        x, y = self.embed(image), self.embed(other)
        for i, block in enumerate(self.blocks):
            if i:
                x = x + nn.functional.scaled_dot_product_attention(self.q(x), self.k(y), self.v(y))
            x = block(x)
        out: torch.Tensor = self.head(self.norm(x)).transpose(1, 2).unflatten(2, (8, 8))
        return out


def test_all_tokens_of_a_second_image_are_there_to_be_read() -> None:
    model, inputs = randomise(TwoImages(), seed=0).eval(), (picture(1), picture(1, seed=2))
    fast = lvtp_fx.transform(model, inputs, keep_ratio=0.3, sites=(0,))
    assert lvtp_fx.verify(model, fast, inputs).max_error < 2e-6
    kept = lvtp_fx.decisions(fast, inputs)[0].kept[0]
    changed = inputs[1].clone()
    for row, column in (divmod(i, 8) for i in range(N) if i not in kept):
        changed[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] *= -3
    apart, dense = ((run(inputs[0], changed) - run(*inputs)).abs().max() for run in (fast, model))
    assert apart > 0.1 * dense > 0


class Branching(TinyViT):
    """Another model, from some batch on."""

    def __init__(self, apart: Callable[[int], bool]) -> None:
        super().__init__([PreNorm(Attention(fused)) for _ in range(2)])
        self.apart = apart

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        y = super().forward(image)
        return 2 * y if self.apart(image.shape[0]) else y


@pytest.mark.parametrize(("apart", "batch", "note"), [
    (lambda n: n == 1, 1, "the batch size is fixed at 1: the model does something else with several images"),
    (lambda n: n == 1, 2, "the batch size is fixed at 2: the model does something else with one image alone"),
    (lambda n: n > 3, 2, "the batch size is fixed at 2: the model does something else with more images"),
    (lambda n: n < 0, 1, ""),
])
def test_a_branch_on_the_batch_is_that_of_the_users_example(
    apart: Callable[[int], bool], batch: int, note: str
) -> None:
    model = randomise(Branching(apart), seed=0).eval()
    fast = lvtp_fx.transform(model, (picture(batch),), flops_cut=0)
    assert torch.equal(fast(picture(batch)), model(picture(batch)))
    assert [text for text in fast.report.notes if "batch" in text] == ([note] if note else [])


class InPlace(nn.Module):
    """Normalises its input where it lies."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = vit(fused)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.vit(image.sub_(0.5).div_(0.25))
        return out


def test_checks_do_not_write_into_the_users_example() -> None:
    model, x = InPlace().eval(), picture()
    fast = lvtp_fx.transform(model, (x,), **OPTIONS)
    assert torch.equal(x, picture())
    assert lvtp_fx.verify(model, fast, (x,)).max_error < 2e-6
    lvtp_fx.decisions(fast, x)
    assert torch.equal(x, picture())
