"""Where the image size is read from when no example is given: the attributes that libraries use."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn
from torchvision.models import VisionTransformer

from lvtp_fx.errors import LvtpError
from lvtp_fx.example_inputs import infer_image, resolve


class Stub(nn.Module):
    """A 5-channel bf16 patch embedding and some attributes."""

    def __init__(self, **attributes: object) -> None:
        super().__init__()
        self.embed = nn.Conv2d(5, 8, 4, 4, dtype=torch.bfloat16)
        for name, value in attributes.items():
            setattr(self, name, value)


@pytest.mark.parametrize(("attributes", "size"), [
    ({"img_size": 32}, (32, 32)),
    ({"image_size": (32, 48)}, (32, 48)),
    ({"config": SimpleNamespace(image_size=64)}, (64, 64)),  # transformers
    ({"config": SimpleNamespace(image_size=[64, 96])}, (64, 96)),
    ({"config": SimpleNamespace(image_size={"height": 64, "width": 96})}, (64, 96)),
    ({"pretrained_cfg": {"input_size": (3, 48, 32)}}, (48, 32)),  # timm
    ({"img_size": 32, "num_channels": 7}, (32, 32)),  # as a norm has it
    ({"img_size": 32, "pretrained_cfg": {"input_size": (3, 48, 48)}}, (32, 32)),  # what it is, not what it was
    ({"inner": Stub(img_size=40)}, (40, 40)),
])
def test_size_dtype_and_channels_come_from_the_model(attributes: dict[str, object], size: tuple[int, int]) -> None:
    image = infer_image(Stub(**attributes))
    assert image.shape == (1, 5, *size)
    assert image.dtype == torch.bfloat16


@pytest.mark.parametrize("attributes", [
    {}, {"img_size": 0}, {"img_size": True}, {"img_size": "32"}, {"image_size": (32,)},
    {"config": SimpleNamespace(image_size=None)}, {"pretrained_cfg": {}}, {"pretrained_cfg": {"input_size": None}},
])
def test_what_is_no_size_is_not_taken_for_one(attributes: dict[str, object]) -> None:
    with pytest.raises(LvtpError, match="LVTP103 shape-not-inferable at Stub"):
        infer_image(Stub(**attributes))


def test_libraries() -> None:
    timm_model = timm.create_model("vit_tiny_patch16_224", img_size=(96, 128), depth=1, pretrained=False)
    assert infer_image(timm_model).shape == (1, 3, 96, 128)
    assert infer_image(VisionTransformer(64, 16, 1, 2, 32, 64)).shape == (1, 3, 64, 64)


def test_given_inputs_come_back_as_positional_and_keyword_ones() -> None:
    x = torch.zeros(1)
    assert resolve(Stub(), x) == ((x,), {})
    assert resolve(Stub(), [x, 3]) == ((x, 3), {})
    assert resolve(Stub(), {"pixel_values": x}) == ((), {"pixel_values": x})
