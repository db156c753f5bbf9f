"""The plain ViT segmenter: what it refuses, and which token predicts which pixels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lvtp_fx.models.random_weights import randomise
from lvtp_fx.models.segmenter import Block, Segmenter, SegmenterConfig, normalize

TINY = SegmenterConfig(img_size=24, patch_size=4, classes=3, C=8, depth=2, heads=2)


@pytest.mark.parametrize(("changed", "message"), [
    ({"img_size": 30}, "img_size 30 is no multiple of patch_size 8"),
    ({"C": 130}, "C 130 is no multiple of heads 4"),
    *(({name: 0}, f"{name} must be >= 1, got 0")
      for name in ("img_size", "patch_size", "classes", "C", "depth", "heads", "mlp_ratio")),
])
def test_config_refuses_by_name(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmenterConfig(**changed)


def test_config_that_is_right_is_taken() -> None:
    assert SegmenterConfig().grid == 24
    assert SegmenterConfig(img_size=32, C=132).grid == 4


@pytest.mark.parametrize("batch", [1, 3])
def test_logits_have_the_size_of_the_image(batch: int) -> None:
    model = Segmenter(TINY)
    assert model.img_size == 24
    assert model(torch.rand(batch, 3, 24, 24)).shape == (batch, 3, 24, 24)


def test_other_sizes_are_not_taken() -> None:
    with pytest.raises(RuntimeError, match="size of tensor"):
        Segmenter(TINY)(torch.rand(1, 3, 20, 20))


def without_blocks() -> Segmenter:
    model = Segmenter(TINY)
    model.blocks, model.norm = nn.Sequential(), nn.Identity()  # type: ignore[assignment]
    return model


def test_a_token_predicts_its_own_pixels_in_reading_order() -> None:
    """Token n is n in all channels and the head adds its own channel's number: each logit tells where it is from."""
    model, patch, grid = without_blocks(), TINY.patch_size, TINY.grid
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.pos_embed.copy_(torch.arange(grid**2).view(1, -1, 1).expand_as(model.pos_embed))
        model.head.weight[:, 0] = 1000
        model.head.bias.copy_(torch.arange(TINY.classes * patch**2))
        logits = model(torch.zeros(1, 3, 24, 24))[0]
    y, x = torch.meshgrid(torch.arange(24), torch.arange(24), indexing="ij")
    token = y // patch * grid + x // patch
    pixel = y % patch * patch + x % patch
    for c in range(TINY.classes):
        assert torch.equal(logits[c].long(), 1000 * token + c * patch**2 + pixel)


@torch.no_grad()
def test_only_attention_carries_a_patch_to_other_pixels() -> None:
    image = torch.rand(1, 3, 24, 24)
    other = image.clone()
    other[..., 8:12, 16:20] += 1  # token (2, 4)
    own = torch.zeros(24, 24, dtype=torch.bool)
    own[8:12, 16:20] = True
    alone, whole = randomise(without_blocks(), 0), randomise(Segmenter(TINY), 0)
    assert torch.equal((alone(image) != alone(other)).any(1)[0], own)
    assert (whole(image) != whole(other)).any(1).all()


@torch.no_grad()
def test_class_token_takes_part() -> None:
    model, image = randomise(Segmenter(TINY), 0), torch.rand(1, 3, 24, 24)
    before = model(image)
    model.cls_token.add_(1)
    assert not torch.allclose(model(image), before)


@torch.no_grad()
def test_block_is_a_pre_norm_encoder_layer() -> None:
    block = randomise(Block(12, 3, 2), 0)
    oracle = nn.TransformerEncoderLayer(12, 3, 24, 0.0, "gelu", batch_first=True, norm_first=True)
    names = {
        "norm1": "norm1", "norm2": "norm2", "proj": "self_attn.out_proj", "mlp.0": "linear1", "mlp.2": "linear2",
        "qkv.weight": "self_attn.in_proj_weight", "qkv.bias": "self_attn.in_proj_bias",
    }
    state = {}
    for name, value in block.state_dict().items():
        owner = name.rpartition(".")
        state[names[name] if name in names else f"{names[owner[0]]}.{owner[2]}"] = value
    oracle.load_state_dict(state)
    x = torch.randn(2, 5, 12)
    assert torch.allclose(block(x), oracle(x), atol=1e-5)
    assert not torch.allclose(randomise(block, 1)(x), oracle(x), atol=1e-2)


def test_normalize_centres_and_scales() -> None:
    image = torch.tensor([0.0, 0.25, 0.5, 1.0]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert normalize(image)[0, 1].flatten().tolist() == [-2, -1, 0, 2]
