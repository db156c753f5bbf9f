"""Segmenters, depth and pose models and backbones of transformers, small, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from coverage_check import Model, pictures
from torch import nn

SIZE = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 128}
IMAGE = {**SIZE, "image_size": 128, "patch_size": 16}
# The same for libraries that give the width of the MLP as a ratio.
RATIO = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "mlp_ratio": 2}
RATIO_IMAGE = {**RATIO, "image_size": 128, "patch_size": 16}
NECK = {"neck_hidden_sizes": [16, 32, 64, 64], "fusion_hidden_size": 32}
QUERIES = {"num_queries": 10, "num_blocks": 1, "num_upscale_blocks": 1}
STAGES = ["stage1", "stage2", "stage3", "stage4"]
BACKBONE = {"out_features": STAGES}


def _pictures(size: int = 128, **more: Any) -> Callable[[int], dict[str, Any]]:
    return pictures(size, "pixel_values", **more)


def _words(batch: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(1, 90, (batch, 7), generator=generator)


def _dinov2(config: type = hf.Dinov2Config, **more: Any) -> Any:
    return config(**RATIO_IMAGE, **BACKBONE, **more)


def _beit(config: type = hf.BeitConfig, **more: Any) -> Any:
    return config(**IMAGE, use_relative_position_bias=True, use_absolute_position_embeddings=False,
                  use_mean_pooling=True, use_auxiliary_head=False, **more)


def _clipseg() -> Any:
    vision = {**IMAGE, "projection_dim": 32}
    text = {**SIZE, "vocab_size": 99, "max_position_embeddings": 16, "projection_dim": 32, "eos_token_id": 98}
    return hf.CLIPSegConfig(text_config=text, vision_config=vision, projection_dim=32, reduce_dim=32,
                            extract_layers=[1, 2, 3], decoder_intermediate_size=64)


def _depth(config: type, **more: Any) -> Any:
    return config(backbone_config=_dinov2(reshape_hidden_states=False, apply_layernorm=True), patch_size=16,
                  reassemble_hidden_size=64, neck_hidden_sizes=[16, 32, 64, 64], fusion_hidden_size=32, **more)


def _upernet(backbone: Any) -> Any:
    return hf.UperNetConfig(backbone_config=backbone, hidden_size=32, use_auxiliary_head=False)


def _vitpose(experts: int = 1) -> Any:
    backbone = hf.VitPoseBackboneConfig(**RATIO, image_size=[128, 128], patch_size=[16, 16], out_indices=[4],
                                        num_experts=experts, part_features=16)
    return hf.VitPoseConfig(backbone_config=backbone, scale_factor=4, num_labels=5)


def _zoe() -> Any:
    return hf.ZoeDepthConfig(backbone_config=_beit(out_indices=[1, 2, 3, 4], reshape_hidden_states=False),
                             reassemble_factors=[4, 2, 1, 0.5], bottleneck_features=32, num_relative_features=16,
                             bin_embedding_dim=32, num_patch_transformer_layers=1,
                             patch_transformer_hidden_size=32, patch_transformer_intermediate_size=64,
                             patch_transformer_num_attention_heads=2, **NECK)


def _detr(config: type = hf.DetrConfig) -> Any:
    resnet = hf.ResNetConfig(embedding_size=16, hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1], **BACKBONE)
    return config(backbone_config=resnet, use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
                  d_model=128, encoder_layers=4, encoder_attention_heads=8, encoder_ffn_dim=256, decoder_layers=2,
                  decoder_attention_heads=8, decoder_ffn_dim=256, num_queries=10)


def _padding(batch: int, _: torch.Generator) -> torch.Tensor:
    """[B, 256, 256] int64: the first picture fills the canvas, the others a part of it."""
    held = 256 - 48 * (torch.arange(batch) % 4)
    rows = torch.arange(256) < held[:, None]
    return (rows[:, :, None] & (torch.arange(256) < 200)[None, None]).long() | (held == 256)[:, None, None].long()


def _eomt() -> Any:
    return hf.EomtConfig(**RATIO_IMAGE, **QUERIES)


def _eomt_dinov3() -> Any:
    return hf.EomtDinov3Config(**IMAGE, **QUERIES)


# name: (class, its configuration, inputs, wanted cut)
ZOO: dict[str, tuple[str, Callable[[], Any], Callable[[int], dict[str, Any]], float | None]] = {
    "ViTModel": ("ViTModel", lambda: hf.ViTConfig(**IMAGE), _pictures(), 0.2),
    "ViTModel, interpolate_pos_encoding": (
        "ViTModel", lambda: hf.ViTConfig(**IMAGE), _pictures(192, interpolate_pos_encoding=True), 0.2),
    "DeiTModel": ("DeiTModel", lambda: hf.DeiTConfig(**IMAGE), _pictures(), 0.2),
    "ViTMSNModel": ("ViTMSNModel", lambda: hf.ViTMSNConfig(**IMAGE), _pictures(), 0.2),
    "IJepaModel": ("IJepaModel", lambda: hf.IJepaConfig(**IMAGE), _pictures(), 0.2),
    "Dinov2Backbone": ("Dinov2Backbone", _dinov2, _pictures(), 0.2),
    "Dinov2Model, SwiGLU": ("Dinov2Model", lambda: _dinov2(use_swiglu_ffn=True), _pictures(), 0.2),
    "Dinov2WithRegistersBackbone": (
        "Dinov2WithRegistersBackbone", lambda: _dinov2(hf.Dinov2WithRegistersConfig), _pictures(), 0.2),
    "DINOv3ViTBackbone": ("DINOv3ViTBackbone", lambda: hf.DINOv3ViTConfig(**IMAGE, **BACKBONE), _pictures(), 0.2),
    "DINOv3ViTModel, gated": (
        "DINOv3ViTModel", lambda: hf.DINOv3ViTConfig(**IMAGE, use_gated_mlp=True, num_register_tokens=4),
        _pictures(), 0.2),
    "PixioBackbone": ("PixioBackbone", lambda: _dinov2(hf.PixioConfig), _pictures(), 0.2),
    "SiglipVisionModel": ("SiglipVisionModel", lambda: hf.SiglipVisionConfig(**IMAGE), _pictures(), 0.2),
    "CLIPVisionModel": ("CLIPVisionModel", lambda: hf.CLIPVisionConfig(**IMAGE), _pictures(), 0.2),
    "MLCDVisionModel": ("MLCDVisionModel", lambda: hf.MLCDVisionConfig(**IMAGE), _pictures(), 0.2),
    "Aimv2VisionModel": ("Aimv2VisionModel", lambda: hf.Aimv2VisionConfig(**IMAGE), _pictures(), 0.2),
    "InternVLVisionModel": ("InternVLVisionModel", lambda: hf.InternVLVisionConfig(
        **SIZE, image_size=[128, 128], patch_size=[16, 16], use_qk_norm=True), _pictures(), 0.2),
    "BeitForSemanticSegmentation": (
        "BeitForSemanticSegmentation", lambda: _beit(out_indices=[1, 2, 3, 4]), _pictures(), 0.02),
    "Data2VecVisionForSemanticSegmentation": (
        "Data2VecVisionForSemanticSegmentation", lambda: _beit(hf.Data2VecVisionConfig, out_indices=[1, 2, 3, 4]),
        _pictures(), 0.02),
    "UperNet on BEiT": ("UperNetForSemanticSegmentation", lambda: _upernet(
        _beit(out_features=STAGES, reshape_hidden_states=True)), _pictures(), 0.05),
    "UperNet on DINOv2": ("UperNetForSemanticSegmentation", lambda: _upernet(_dinov2()), _pictures(), 0.05),
    "DPTForSemanticSegmentation": ("DPTForSemanticSegmentation", lambda: hf.DPTConfig(
        **IMAGE, backbone_out_indices=[0, 1, 2, 3], is_hybrid=False, use_auxiliary_head=False, **NECK),
        _pictures(), 0.04),
    "DPTForDepthEstimation on DINOv2": ("DPTForDepthEstimation", lambda: hf.DPTConfig(
        backbone_config=_dinov2(reshape_hidden_states=False), patch_size=16, **NECK), _pictures(), 0.04),
    "DepthAnythingForDepthEstimation": (
        "DepthAnythingForDepthEstimation", lambda: _depth(hf.DepthAnythingConfig, head_hidden_size=16),
        _pictures(), 0.04),
    "PromptDepthAnythingForDepthEstimation": (
        "PromptDepthAnythingForDepthEstimation", lambda: _depth(hf.PromptDepthAnythingConfig, head_hidden_size=16),
        _pictures(prompt_depth=lambda b, g: torch.rand(b, 1, 32, 32, generator=g)), 0.05),
    "ZoeDepthForDepthEstimation": ("ZoeDepthForDepthEstimation", _zoe, _pictures(), 0.02),
    "VitPoseForPoseEstimation": ("VitPoseForPoseEstimation", _vitpose, _pictures(), 0.1),
    "VitPoseForPoseEstimation, experts": ("VitPoseForPoseEstimation", lambda: _vitpose(3), _pictures(
        dataset_index=lambda b, _: torch.arange(b) % 3), 0.1),
    "EomtForUniversalSegmentation": ("EomtForUniversalSegmentation", _eomt, _pictures(), 0.1),
    "EomtDinov3ForUniversalSegmentation": ("EomtDinov3ForUniversalSegmentation", _eomt_dinov3, _pictures(), 0.1),
    "CLIPSegForImageSegmentation": (
        "CLIPSegForImageSegmentation", _clipseg, _pictures(input_ids=_words), 0.02),
    "YolosForObjectDetection": ("YolosForObjectDetection", lambda: hf.YolosConfig(
        **{**IMAGE, "image_size": [128, 128]}, num_detection_tokens=10), _pictures(), 0.2),
    "DetrForSegmentation": ("DetrForSegmentation", _detr, _pictures(256), 0.02),
    "DetrForSegmentation, pixel_mask": (
        "DetrForSegmentation", _detr, _pictures(256, pixel_mask=_padding), 0.02),
    "ConditionalDetrForSegmentation, pixel_mask": (
        "ConditionalDetrForSegmentation", lambda: _detr(hf.ConditionalDetrConfig),
        _pictures(256, pixel_mask=_padding), 0.02),
    "Sapiens2ForSemanticSegmentation": ("Sapiens2ForSemanticSegmentation", lambda: hf.Sapiens2Config(
        **{**IMAGE, "num_attention_heads": 4}, num_key_value_attention_heads=2, num_first_full_attention_layers=1,
        num_last_full_attention_layers=1, num_register_tokens=2,
        head_config={"upsample_out_channels": [16, 16], "upsample_kernel_sizes": [4, 4], "conv_out_channels": [16],
                     "conv_kernel_sizes": [1]}), _pictures(), 0.02),
    "Tipsv2DptForSemanticSegmentation": (
        "Tipsv2DptForSemanticSegmentation", lambda: hf.Tipsv2DptConfig(), _pictures(), 0.02),
}


def models() -> list[Model]:
    """Each with fused and with spelled-out attention."""
    return [_model(name, attention) for name in ZOO for attention in ("sdpa", "eager")]


def _model(name: str, attention: str) -> Model:
    architecture, config, inputs, cut = ZOO[name]

    def make() -> nn.Module:
        model: nn.Module = getattr(hf, architecture)._from_config(config(), attn_implementation="eager")
        for module in model.modules():  # segmenters hand the wish on to none or some of their parts
            if isinstance(settings := getattr(module, "config", None), hf.PreTrainedConfig):
                settings._attn_implementation = attention
        return model

    return Model(f"{name} {attention}", make, inputs, cut)
