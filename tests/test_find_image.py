"""Which picture's edges count, in models that are given it in many forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import lvtp_fx
from lvtp_fx.models.random_weights import randomise
from tests.tiny import SIDE, C, analyse, captured, fused, picture, vit

IMAGE, OTHER = picture(), torch.randn(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(3))


class Given(nn.Module):
    """A ViT behind what makes its picture of the inputs."""

    def __init__(self, prepare: Callable[..., torch.Tensor], embed: nn.Module | None = None) -> None:
        super().__init__()
        self.prepare, self.vit, self.mix = prepare, randomise(vit(fused, 2), 0), nn.Conv2d(1, 3, 1)
        if embed is not None:
            self.vit.embed = embed

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.vit(self.prepare(self, *inputs))
        return out


class Cut(nn.Module):
    """Patches cut by reshapes, of [B, height, width, channels] or of [B, channels, height, width]."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.last, self.proj = last, nn.Linear(48, C)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        axes = (0, 1, 3, 2, 4, 5) if self.last else (0, 2, 4, 3, 5, 1)
        shape = (-1, 8, 4, 8, 4, 3) if self.last else (-1, 3, 8, 4, 8, 4)
        out: torch.Tensor = self.proj(image.reshape(shape).permute(axes).reshape(-1, 64, 48))
        return out


class Rows(nn.Module):
    """Places row by row."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).transpose(1, 2)


def edges_of(model: nn.Module, *inputs: torch.Tensor) -> list[list[int]]:
    fast = lvtp_fx.transform(captured(model, *inputs), strategy="edges", keep_ratio=0.5, sites=(0,))
    return lvtp_fx.decisions(fast, inputs)[0].kept.tolist()


PLAIN = edges_of(Given(lambda m, image: image), IMAGE)
FORMS = {
    "bytes": (lambda m, image: image.float() / 255, (IMAGE * 40 + 120).clamp(0, 255).to(torch.uint8)),
    "channels last": (lambda m, image: image.permute(0, 3, 1, 2), IMAGE.permute(0, 2, 3, 1).contiguous()),
    "a mask before it": (lambda m, mask, image: image + m.mix(mask), OTHER, IMAGE),
    "a mask behind it": (lambda m, image, mask: image + m.mix(mask), IMAGE, OTHER),
}


@pytest.mark.parametrize("form", FORMS)
def test_edges_are_those_of_the_picture(form: str) -> None:
    prepare, *inputs = FORMS[form]
    found = edges_of(Given(prepare), *inputs)  # type: ignore[arg-type]
    for kept, wanted in zip(found, PLAIN, strict=True):
        # Rounded to bytes, near-ties may fall otherwise.
        assert len({*kept} & {*wanted}) >= (30 if form == "bytes" else 32)


@pytest.mark.parametrize("last", [True, False])
def test_a_picture_that_is_cut_by_reshapes_is_found_by_its_labels(last: bool) -> None:
    image = IMAGE.permute(0, 2, 3, 1).contiguous() if last else IMAGE
    assert edges_of(Given(lambda m, x: x, Cut(last)), image) == PLAIN


def test_a_picture_of_more_channels_than_columns_has_them_first_where_a_convolution_says_so() -> None:
    """Bands of a spectrum. Strong edges are in the left half of the picture alone."""
    bands = 2 * SIDE
    image = torch.zeros(1, bands, SIDE, SIDE)
    image[..., : SIDE // 2] = torch.randn(SIDE, SIDE // 2, generator=torch.Generator().manual_seed(5)) * 9
    stride = SIDE // 8
    kept = edges_of(Given(lambda m, x: x, nn.Sequential(nn.Conv2d(bands, C, stride, stride), Rows())), image)[0]
    assert all(place % 8 < 5 for place in kept)


def test_channels_count_and_the_choice_is_the_same_every_time() -> None:
    model = Given(lambda m, depth, image: image * depth, None)
    found = {str(analyse(model, OTHER, IMAGE).trunk.image) for _ in range(3)}  # type: ignore[union-attr]
    assert found == {"mul"}  # what the convolution reads: of as many channels as the image, and before it


def test_where_there_is_no_picture_the_report_says_so() -> None:
    class Tokens(nn.Module):
        """Takes rows and columns of features, as after a patch embedding elsewhere."""

        def __init__(self) -> None:
            super().__init__()
            self.vit = vit(fused, 2)
            self.vit.embed = nn.Linear(8, C)

        def forward(self, grid: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.vit(grid.flatten(2).transpose(1, 2))
            return out

    report = lvtp_fx.explain(Tokens(), (torch.randn(2, 8, 8, 8),), keep_ratio=0.5)
    assert "no picture of floats enters the patch embedding: edges are not used" in report.notes
    assert lvtp_fx.explain(Given(lambda m, x: x), (IMAGE,), keep_ratio=0.5).notes == ()
