"""Capture: fixed batches, the meta device, and a capture used several times."""

from __future__ import annotations

import warnings
from typing import cast

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import lvtp_fx
from lvtp_fx.batch_axis import BATCH_STAND_IN
from lvtp_fx.capture import capture
from lvtp_fx.models.adapters import timm_segmenter
from lvtp_fx.models.random_weights import randomise
from tests.tiny import Attention, Embed, PreNorm, TinyViT, fused, picture, vit


class Counts(nn.Module):
    """`len(image)` is a Python number: export fixes the batch."""

    def __init__(self, model: TinyViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.model(image).reshape(len(image), 5, -1)
        return out


@pytest.mark.parametrize("batch", [1, 2, 3])  # 2 is the number of heads, too
def test_a_fixed_batch_is_the_examples(batch: int) -> None:
    model = Counts(vit(fused))  # type: ignore[arg-type]
    x = picture(batch)
    captured = capture(model, (x,), {})
    assert captured.batch == batch
    assert captured.note == (f"the batch size is fixed at {batch}: tracing made it a number, as len(x) in forward does "
                             "(x.shape[0] leaves it free)")
    fast = lvtp_fx.transform(model, (x,), keep_ratio=0.5)
    assert fast.report.notes == (captured.note,)
    assert len(fast.report.blocks) == 3
    lvtp_fx.verify(model, fast, (x,))
    with pytest.raises(lvtp_fx.LvtpError, match="LVTP401"):
        fast(picture(batch + 1))


def test_a_free_batch_has_a_stand_in() -> None:
    captured = capture(vit(fused), (picture(1),), {})
    assert (captured.batch, captured.note) == (BATCH_STAND_IN, "")


class Unrecorded(nn.Module):
    """An embedding that its forward keeps from training, not its parameters."""

    def __init__(self, embed: nn.Module, recorded: bool) -> None:
        super().__init__()
        self.embed, self.recorded = embed, recorded

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        with torch.set_grad_enabled(self.recorded):
            out: torch.Tensor = self.embed(image)
        return out


@pytest.mark.parametrize("recorded", [True, False])
def test_parts_without_gradients_are_noted(recorded: bool) -> None:
    """The graph holds no `torch.no_grad()`: what it froze is trained, unless its parameters say otherwise."""
    model = cast(TinyViT, vit(fused))
    model.embed = cast(Embed, Unrecorded(model.embed, recorded))
    fast = lvtp_fx.transform(model, (picture(),), keep_ratio=0.5)
    expected = (("torch.no_grad() in the model is not in the graph: in training, gradients reach "
                 "embed.embed.pos_embed and 2 more; requires_grad_(False) freezes them"),)
    assert fast.report.notes == (() if recorded else expected)
    model.embed.requires_grad_(False)
    assert lvtp_fx.transform(model, (picture(),), keep_ratio=0.5).report.notes == ()


def test_one_capture_for_several_transforms() -> None:
    model = vit(fused)
    captured = capture(model, (picture(),), {})
    before = captured.module.code
    for ratio in (0.5, 0.8):
        fast = lvtp_fx.transform(captured, keep_ratio=ratio)
        assert torch.equal(fast(picture()), lvtp_fx.transform(model, (picture(),), keep_ratio=ratio)(picture()))
        assert lvtp_fx.verify(captured, fast, (picture(),)).max_error < 2e-5
    assert captured.module.code == before
    assert lvtp_fx.explain(captured, keep_ratio=0.5).to_dict() == \
        lvtp_fx.explain(model, (picture(),), keep_ratio=0.5).to_dict()


@pytest.mark.parametrize("name", ["vit_large_patch14_dinov2", "vit_large_patch16_dinov3"])
def test_large_models_are_analysed_without_weights(name: str) -> None:
    with torch.device("meta"):
        model = timm_segmenter(name, "linear")
    report = lvtp_fx.explain(model, flops_cut=0.3, align=1)
    assert report.refused == ""
    assert len(report.blocks) == 24
    assert 0.3 <= report.flops_cut < 0.31
    assert all(p.is_meta for p in model.parameters())
    assert report.gflops_dense > 100


class SplitBatch(TinyViT):
    """Four sequences an image: every other row and column, as MobileViT unfolds them. Another axis is merged into
    the batch, so that an image has not one sequence."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.embed(image).reshape(-1, 4, 2, 4, 2, 32).permute(0, 2, 4, 1, 3, 5).reshape(-1, 16, 32)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).reshape(-1, 64, 5)


def test_tokens_of_one_image_in_several_sequences_are_left_alone() -> None:
    model = randomise(SplitBatch([PreNorm(Attention(fused)) for _ in range(2)]), 0)
    with pytest.raises(lvtp_fx.LvtpError, match="LVTP102"):
        lvtp_fx.transform(model, (picture(),), keep_ratio=0.5)


class Remembers(nn.Module):
    """Keeps what it computed last, as people do who want to look at it later."""

    def __init__(self, several: bool) -> None:
        super().__init__()
        self.vit, self.several = vit(fused), several
        self.last: torch.Tensor | None = None
        self.all: list[torch.Tensor] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.last = self.vit(image)
        if self.several:
            self.all.append(self.last)
        return self.last


@pytest.mark.parametrize("several", [False, True])
def test_what_forward_assigns_is_told_in_the_report(several: bool) -> None:
    model = Remembers(several).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch's own words would advise to register a buffer
        fast = lvtp_fx.transform(model, (picture(),), keep_ratio=0.5)
    names = "self.all[0], self.last" if several else "self.last"
    assert fast.report.notes == (
        f"forward assigns tensors to {names}: the graph does not, and who reads them later finds what was there "
        "before",)
    assert model.last is None
    assert model.all == []


def test_other_warnings_of_a_model_are_heard() -> None:
    class Warns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = vit(fused)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            warnings.warn("an old name", FutureWarning, stacklevel=2)
            out: torch.Tensor = self.vit(image)
            return out

    with pytest.warns(FutureWarning, match="an old name"):
        capture(Warns().eval(), (picture(),), {})


class Wrapped(nn.Module):
    """Blocks that torch.export traces into graphs of their own."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.vit, self.how = vit(fused), how

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        first, second, third = self.vit.blocks
        x = self.vit.embed(image)
        if self.how == "checkpoint":
            for block in self.vit.blocks:
                x = checkpoint(block, x, use_reentrant=True)
        elif self.how == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                x = third(second(first(x)))
        else:
            with torch.no_grad():
                x = first(x)
            with torch.autocast("cpu", torch.bfloat16):
                x = second(x)
                with torch.no_grad():
                    x = third(x)
        out: torch.Tensor = self.vit.head(self.vit.norm(x))
        return out


@pytest.mark.parametrize("how", ["checkpoint", "autocast", "both, one in the other"])
def test_blocks_in_graphs_of_their_own_keep_their_names(how: str) -> None:
    report = lvtp_fx.explain(Wrapped(how).eval(), (picture(),), keep_ratio=0.5)
    assert [block.path for block in report.blocks] == [f"vit.blocks.{i}.attention" for i in range(3)]
    assert {block.source.split(":")[0] for block in report.blocks} == {"tiny.py"}
