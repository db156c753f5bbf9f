"""Encoders that users already have, each with each head."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn

from lvtp_fx.models.adapters import (
    EncoderSegmenter,
    ExplicitEncoder,
    TorchvisionEncoder,
    explicit_segmenter,
    timm_segmenter,
    torchvision_segmenter,
)
from lvtp_fx.models.timm_encoders import timm_encoder
from tests.zoo import ZOO, ZOO_FULL

SMALL_VIT = {"img_size": 64, "depth": 4, "embed_dim": 64, "num_heads": 2}
SMALL_TORCHVISION = {"image_size": 64, "patch_size": 16, "num_layers": 4, "num_heads": 2, "hidden_dim": 64,
                     "mlp_dim": 64}


@pytest.mark.parametrize(("name", "head"), ZOO_FULL)
@torch.inference_mode()
def test_logits_have_the_size_of_the_image(name: str, head: str) -> None:
    model, image = ZOO[name].build(head), ZOO[name].image()
    logits = model(image)
    assert not model.training
    assert logits.shape == (2, 8, *image.shape[2:])
    assert logits.isfinite().all()
    assert not torch.allclose(logits[0], logits[1], atol=1e-2)


@pytest.mark.parametrize("name", ZOO)
@torch.inference_mode()
def test_taps_end_where_tokens_do(name: str) -> None:
    """timm norms every tap itself; the others leave the final norm to `tokens`."""
    encoder: Any = ZOO[name].build().encoder
    image = ZOO[name].image()
    tokens = encoder.tokens(image)
    assert tokens.shape == (2, encoder.grid[0] * encoder.grid[1], encoder.C)
    first, last = encoder.taps(image, [0, encoder.depth - 1])
    if isinstance(encoder, TorchvisionEncoder):
        first, last = encoder.model.encoder.ln(first), encoder.model.encoder.ln(last)
    elif isinstance(encoder, ExplicitEncoder):
        first, last = encoder.norm(first), encoder.norm(last)
    assert torch.allclose(last, tokens, atol=1e-5)
    assert not torch.allclose(first, tokens, atol=1e-2)


@torch.inference_mode()
@pytest.mark.parametrize("encoder", [
    timm_encoder("vit_tiny_patch16_224", **SMALL_VIT), TorchvisionEncoder(**SMALL_TORCHVISION), ExplicitEncoder(64),
], ids=["timm", "torchvision", "explicit"])
def test_tokens_are_patches_in_reading_order(encoder: Any) -> None:
    """Without blocks, a patch changes its own token and no other."""
    owner = encoder.eval()
    for path in ("model.blocks", "model.encoder.layers", "blocks"):
        parent, _, leaf = path.rpartition(".")
        try:
            owner = encoder.get_submodule(parent)
            setattr(owner, leaf, nn.Sequential(*(nn.Identity() for _ in getattr(owner, leaf))))
        except AttributeError:
            continue
    image = torch.rand(1, 3, 64, 64)
    other = image.clone()
    other[..., 16:32, 48:64] = 0  # the patch at row 1, column 3 of 4
    moved = (encoder.tokens(image) != encoder.tokens(other)).any(2)[0]
    assert moved.nonzero().flatten().tolist() == [7]


@pytest.mark.parametrize(("depth", "blocks"), [(4, [0, 1, 2, 3]), (6, [0, 2, 3, 5]), (12, [2, 5, 8, 11])])
def test_dpt_taps_are_spread_and_end_at_the_last_block(depth: int, blocks: list[int]) -> None:
    assert explicit_segmenter("dpt", img_size=32, depth=depth).tap_blocks == blocks


def test_sides_may_differ() -> None:
    model = timm_segmenter("vit_tiny_patch16_224", "dpt", **{**SMALL_VIT, "img_size": (32, 64)})
    assert model.encoder.grid == (2, 4)
    assert model(torch.rand(1, 3, 32, 64)).shape == (1, 8, 32, 64)


def test_unknown_head_and_no_class_are_refused() -> None:
    encoder = ExplicitEncoder(32)
    assert EncoderSegmenter(encoder, "mask", 1)(torch.rand(1, 3, 32, 32)).shape == (1, 1, 32, 32)
    with pytest.raises(ValueError, match="head must be one of linear, mask, dpt, got 'unet'"):
        EncoderSegmenter(encoder, "unet", 8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="classes must be >= 1, got 0"):
        EncoderSegmenter(encoder, "linear", 0)


def test_dpt_needs_four_blocks_and_the_others_one() -> None:
    with pytest.raises(ValueError, match="dpt head taps four blocks, the encoder has 3"):
        explicit_segmenter("dpt", img_size=32, depth=3)
    with pytest.raises(ValueError, match="dpt head taps four blocks, the encoder has 2"):
        torchvision_segmenter("dpt", **{**SMALL_TORCHVISION, "num_layers": 2})
    assert explicit_segmenter("mask", img_size=32, depth=1)(torch.rand(1, 3, 32, 32)).shape == (1, 8, 32, 32)


def test_explicit_encoder_refuses_what_does_not_divide() -> None:
    for wrong in ({"img_size": 40}, {"C": 65}):
        with pytest.raises(ValueError, match="is no multiple of"):
            ExplicitEncoder(**wrong)


@pytest.mark.parametrize(("missing", "make"), [
    ("timm", lambda: timm_encoder("vit_tiny_patch16_224")), ("torchvision.models", TorchvisionEncoder),
], ids=["timm", "torchvision"])
def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, missing: str, make: Any) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"models need the extra: pip install 'lvtp_fx\[models\]'"):
        make()
