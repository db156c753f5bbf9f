"""Models of timm that keep no one grid of tokens through their blocks: seen by their feature maps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lvtp_fx.models.adapters import timm_segmenter
from lvtp_fx.models.decoders import HEADS
from lvtp_fx.models.timm_encoders import TimmEncoder, TimmMaps, timm_encoder
from tests.zoo import randomise

# name, its arguments, the grid of its last tokens, and how many levels the dpt head taps
MAPS: dict[str, tuple[dict[str, Any], tuple[int, int], int]] = {
    "resnet18": ({"img_size": (64, 96)}, (2, 3), 4),  # five levels: the dpt head leaves the finest out
    "convnext_atto": ({"img_size": 64}, (2, 2), 4),
    "swin_tiny_patch4_window7_224": ({"img_size": (64, 128), "window_size": 2}, (2, 4), 4),
    "pvt_v2_b0": ({"img_size": (65, 96)}, (3, 3), 4),
    "xcit_nano_12_p16_224": ({"img_size": (64, 96)}, (4, 6), 4),  # one grid, but of convolutions that know no size
    "levit_128s": ({"img_size": 64}, (1, 1), 3),
    "hiera_tiny_224": ({"img_size": (64, 96)}, (2, 3), 4),  # gives its maps without a last norm only
}


def small(name: str) -> Any:
    return randomise(timm_encoder(name, **MAPS[name][0]), 0).eval()


@torch.inference_mode()
@pytest.mark.parametrize("name", MAPS)
def test_levels_are_those_of_the_maps(name: str) -> None:
    encoder = small(name)
    assert isinstance(encoder, TimmMaps)
    assert encoder.grid == MAPS[name][1]
    assert len(encoder.levels) == encoder.depth
    image = torch.rand(2, 3, *encoder.img_size)
    maps = encoder.model.forward_intermediates(image, intermediates_only=True, norm=name != "hiera_tiny_224")
    assert [(m.shape[1], tuple(m.shape[2:])) for m in maps] == list(encoder.levels)
    for tap, plane in zip(encoder.taps(image, range(encoder.depth)), maps, strict=True):
        assert torch.allclose(tap.mT.reshape(plane.shape), plane, atol=1e-5)
    assert torch.allclose(encoder.tokens(image).mT.reshape(maps[-1].shape), maps[-1], atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", MAPS)
def test_every_head_gives_logits_of_the_images_size(name: str, head: Any) -> None:
    model = randomise(timm_segmenter(name, head, 5, **MAPS[name][0]), 0)
    image = torch.rand(2, 3, *model.img_size)
    logits = model(image)
    assert not model.training
    assert logits.shape == (2, 5, *model.img_size)
    assert logits.isfinite().all()
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)
    if head == "dpt":
        assert len(model.tap_blocks) == MAPS[name][2]
        assert model.tap_blocks[-1] == model.encoder.depth - 1


def test_a_pyramid_is_fused_at_its_finest_grid() -> None:
    model: Any = timm_segmenter("pvt_v2_b0", "dpt", img_size=64)
    assert model.head.grids == [(16, 16), (8, 8), (4, 4), (2, 2)]
    taps = model.encoder.taps(torch.rand(1, 3, 64, 64), model.tap_blocks)
    assert model.head(taps).shape == (1, 8, 16, 16)
    for plane, layer in zip(taps, model.head.resample, strict=True):
        assert plane.shape[2] == layer.in_channels


def test_size_that_the_model_was_published_with_is_the_default() -> None:
    assert timm_encoder("resnet18").img_size == (224, 224)
    assert timm_encoder("vit_tiny_patch16_224", depth=1).img_size == (224, 224)


def test_modes_and_statistics_stay_while_levels_are_learnt() -> None:
    """The run on zeros must leave no trace in a batch norm."""
    encoder: Any = timm_encoder("resnet18", img_size=64)
    assert encoder.training
    assert encoder.model.bn1.training
    assert int(encoder.model.bn1.num_batches_tracked) == 0
    assert not encoder.model.bn1.running_mean.any()


@torch.inference_mode()
def test_plain_vit_is_read_as_tokens() -> None:
    """And where it lies its taps are those of its feature maps."""
    plain = timm_encoder("vit_tiny_patch16_224", img_size=64, depth=4, embed_dim=64, num_heads=2).eval()
    assert isinstance(plain, TimmEncoder)
    image = torch.rand(1, 3, 64, 64)
    maps = TimmMaps(plain.model, 64)
    assert maps.levels == plain.levels
    for tap, other in zip(plain.taps(image, [1, 3]), maps.taps(image, [1, 3]), strict=True):
        assert torch.equal(tap, other)


@pytest.mark.parametrize(("name", "kwargs", "error", "message"), [
    ("vit_of_nobody", {}, RuntimeError, "Unknown model"),
    ("resnet18", {"patch_size": 4}, TypeError, "patch_size"),
    ("maxvit_pico_rw_256", {"img_size": 100}, AssertionError, "window"),
])
def test_what_is_no_encoder_is_refused(name: str, kwargs: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        timm_encoder(name, **kwargs)


def test_model_that_users_registered_without_feature_maps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvtp_fx.models.timm_encoders.timm_backbone", lambda *_, **__: torch.nn.Identity())
    with pytest.raises(ValueError, match=r"of_a_user gives no feature maps \(forward_intermediates\)"):
        timm_encoder("of_a_user")
