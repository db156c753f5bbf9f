"""Models whose tokens do not run in one flat stream, or whose attention is no softmax over tokens.

Nothing may break: they are pruned where a global block allows it, else refused with a code and a reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
import torchvision
import transformers as hf
from coverage_check import Model, pictures
from torch import nn

# name of a small timm model: (image size, what it has in the place of flat softmax attention)
TIMM = {
    "swin_tiny_patch4_window7_224": (224, "windows"),
    "swinv2_tiny_window8_256": (256, "windows, cosine attention"),
    "swinv2_cr_tiny_ns_224": (224, "windows"),
    "mvitv2_tiny": (224, "pooled queries and keys"),
    "xcit_nano_12_p16_224": (224, "attention over channels"),
    "pvt_v2_b0": (224, "keys on a smaller grid"),
    "twins_pcpvt_small": (224, "keys on a smaller grid"),
    "twins_svt_small": (224, "windows and smaller grids in turn"),
    "hiera_tiny_224": (224, "windows, then global blocks after pooling"),
    "samvit_base_patch16_224": (224, "windows and global blocks, tokens kept as rows and columns"),
    "sam2_hiera_tiny": (256, "windows and global blocks on a pyramid"),
    "efficientvit_b0": (224, "linear attention"),
    "efficientvit_m0": (224, "cascaded group attention"),
    "edgenext_xx_small": (256, "attention over channels"),
    "mobilevit_xxs": (256, "attention between unfolded patches"),
    "maxvit_tiny_rw_224": (224, "windows and strided grids"),
    "coatnet_0_rw_224": (224, "convolutions, then global attention"),
    "cait_xxs24_224": (224, "talking heads"),
    "convit_tiny": (224, "two maps mixed by a gate"),
    "volo_d1_224": (224, "outlook attention, then global attention"),
    "tnt_s_patch16_224": (224, "attention inside patches"),
    "levit_128s": (224, "attention that shrinks the grid"),
    "pit_ti_224": (224, "three grids, pooled"),
    "visformer_tiny": (224, "convolutions, then attention on planes"),
    "crossvit_9_240": (240, "two streams that exchange class tokens"),
    "vitamin_small_224": (224, "convolutions, then a flat ViT"),
    "davit_tiny": (224, "windows and channel groups"),
    "gcvit_xxtiny": (224, "windows with global queries"),
    "nextvit_small": (224, "keys on a smaller grid"),
    "focalnet_tiny_srf": (224, "no attention"),
    "poolformer_s12": (224, "no attention"),
    "mixer_s32_224": (224, "no attention"),
    "tiny_vit_5m_224": (224, "windows"),
    "convnext_atto": (224, "no attention"),
    "resnet18": (224, "no attention"),
    "botnet26t_256": (256, "convolutions, then attention on planes"),
}


def _timm(name: str) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, pretrained=False, num_classes=8)


def _lraspp() -> nn.Module:
    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x)["out"]

    return Logits()


def _vitdet() -> nn.Module:
    return hf.VitDetBackbone(hf.VitDetConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, image_size=128, patch_size=16,
        pretrain_image_size=128, window_block_indices=[0, 2], window_size=4, out_features=["stage4"]))


def _seggpt() -> nn.Module:
    return hf.SegGptForImageSegmentation(hf.SegGptConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=2, image_size=[256, 128], patch_size=16, mlp_dim=128,
        decoder_hidden_size=16, intermediate_hidden_state_indices=[1, 2, 3], merge_index=0, pretrain_image_size=128))


def _sam() -> nn.Module:
    return hf.SamVisionModel(hf.SamVisionConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=2, mlp_dim=128, image_size=128, patch_size=16,
        window_size=3, global_attn_indexes=[1, 3], output_channels=32))


def _prompted() -> Callable[[int], dict[str, Any]]:
    def picture(batch: int, generator: torch.Generator) -> torch.Tensor:
        return torch.rand(batch, 3, 128, 128, generator=generator)

    return pictures(name="pixel_values", prompt_pixel_values=picture, prompt_masks=picture)


def models() -> list[Model]:
    segformer = hf.SegformerConfig(depths=[1, 1, 2, 1], hidden_sizes=[16, 32, 64, 64], decoder_hidden_size=32)
    swin = hf.SwinConfig(image_size=128, patch_size=4, embed_dim=16, depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 4],
                         window_size=4, out_features=["stage1", "stage2", "stage3", "stage4"])
    others: dict[str, tuple[Callable[[], nn.Module], Callable[[int], dict[str, Any]]]] = {
        "transformers SegFormer: keys on a smaller grid": (
            lambda: hf.SegformerForSemanticSegmentation(segformer), pictures(name="pixel_values")),
        "transformers UperNet on Swin: windows": (lambda: hf.UperNetForSemanticSegmentation(hf.UperNetConfig(
            backbone_config=swin, hidden_size=32, use_auxiliary_head=False)), pictures(name="pixel_values")),
        "transformers SAM: windows and global blocks, relative positions": (_sam, pictures(name="pixel_values")),
        "transformers ViTDet: windows and global blocks": (_vitdet, pictures(name="pixel_values")),
        "transformers SegGPT: tokens kept as rows and columns": (_seggpt, _prompted()),
        "torchvision swin_t: windows": (lambda: torchvision.models.swin_t(weights=None), pictures(224)),
        "torchvision LR-ASPP: no attention": (_lraspp, pictures(224)),
    }
    return [
        *(Model(f"timm {name}: {what}", _timm(name), pictures(size), None) for name, (size, what) in TIMM.items()),
        *(Model(name, make, inputs, None) for name, (make, inputs) in others.items()),
    ]
