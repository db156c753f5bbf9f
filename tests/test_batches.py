"""Models that treat the images of a batch in ways of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import lvtp_fx
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
