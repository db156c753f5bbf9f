"""timm's plain ViTs: one model for each architecture, whatever its size."""

from __future__ import annotations

import re
from typing import Any

import timm
import torch
from coverage_check import Model, pictures
from torch import nn

# One flat stream of tokens from the patch embedding to the last norm.
FAMILIES = ("vision_transformer", "deit", "beit", "eva", "naflexvit", "vision_transformer_relpos",
            "vision_transformer_hybrid", "deepseek_vit", "gemma4_vit", "qwen3_vit")

# What `distinct` found in timm 1.0.31 (`python bench/coverage_timm.py` prints it for the timm that is installed).
ARCHITECTURES = (
    "aimv2_large_patch14_224", "beit3_base_patch16_224", "beit_base_patch16_224", "deepseek_vit_412m",
    "deepseek_vit_412m_align", "deepseek_vit_412m_enc", "deit3_small_patch16_224", "deit_tiny_distilled_patch16_224",
    "deit_tiny_patch16_224", "eva02_base_patch14_224", "eva02_base_patch16_clip_224",
    "eva02_enormous_patch14_clip_224", "eva02_tiny_patch14_224", "eva_giant_patch14_224",
    "eva_giant_patch14_clip_224", "eva_large_patch14_196", "flexivit_small", "gemma4_vit_167m", "gemma4_vit_167m_enc",
    "gemma4_vit_570m", "gemma4_vit_570m_enc", "naflexvit_base_patch16_gap", "naflexvit_base_patch16_map",
    "naflexvit_base_patch16_par_gap", "naflexvit_base_patch16_parfac_gap", "naflexvit_base_patch16_radio_v3",
    "naflexvit_base_patch16_siglip", "naflexvit_huge_patch16_radio_v3", "naflexvit_large_patch16_radio_v3",
    "naflexvit_so150m2_patch16_reg1_gap", "naflexvit_so150m2_patch16_reg1_map", "naflexvit_so400m_patch16_radio_v4",
    "qwen3_vit_88m", "qwen3_vit_88m_enc", "qwen3_vit_88m_merge", "test_vit", "test_vit2", "test_vit3", "test_vit4",
    "test_vit_relpos", "vit_base_mci_224", "vit_base_patch16_224_miil", "vit_base_patch16_clip_quickgelu_224",
    "vit_base_patch16_gap_224", "vit_base_patch16_radio_v3", "vit_base_patch16_reg4_gap_256",
    "vit_base_patch16_rpn_224", "vit_base_patch16_sapiens2", "vit_base_patch16_siglip_224", "vit_base_patch16_xp_224",
    "vit_base_patch32_siglip_256", "vit_base_patch32_siglip_gap_256", "vit_dpwee_patch16_reg1_gap_256",
    "vit_dwee_patch16_reg1_gap_256", "vit_giant_patch14_dinov2", "vit_giant_patch14_reg1_tipsv2",
    "vit_giant_patch16_lingbot", "vit_intern300m_patch14_448", "vit_medium_patch16_gap_240",
    "vit_medium_patch16_rope_reg1_gap_256", "vit_mediumd_patch16_rope_reg1_gap_256",
    "vit_pe_core_gigantic_patch14_448", "vit_pe_core_tiny_patch16_384", "vit_pe_lang_gigantic_patch14_448",
    "vit_pe_lang_large_patch14_448", "vit_pe_spatial_tiny_patch16_512", "vit_pwee_patch16_reg1_gap_256",
    "vit_relpos_base_patch16_clsgap_224", "vit_relpos_base_patch16_plus_240", "vit_relpos_base_patch32_plus_rpn_256",
    "vit_relpos_medium_patch16_cls_224", "vit_relpos_small_patch16_rpn_224", "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2", "vit_small_patch16_18x2_224", "vit_small_patch16_dinov3",
    "vit_small_patch16_lingbot", "vit_small_patch16_rope_224", "vit_small_patch16_rope_ape_224",
    "vit_small_patch16_rope_mixed_224", "vit_small_patch16_rope_mixed_ape_224", "vit_small_plus_patch16_dinov3",
    "vit_small_plus_patch16_dinov3_qkvb", "vit_small_r26_s32_224", "vit_small_resnet50d_s16_224",
    "vit_so150m2_patch16_reg1_gap_256", "vit_so150m_patch16_reg4_gap_256", "vit_so150m_patch16_reg4_map_256",
    "vit_so400m_patch16_radio_v4", "vit_srelpos_small_patch16_224", "vit_tiny_patch16_dinov3_qkvb",
    "vit_tiny_r_s16_p8_224", "vit_wee_patch16_reg1_gap_256", "vit_xsmall_patch16_clip_224",
)


class Final(nn.Module):
    """A linear layer on the final patch tokens."""

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__()
        self.encoder = timm.create_model(name, pretrained=False, num_classes=0, **kwargs)
        self.prefix = getattr(self.encoder, "num_prefix_tokens", 0)
        self.head = nn.LazyLinear(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.encoder.forward_features(x)
        if isinstance(tokens, dict):
            tokens = tokens["patches"]
        if tokens.ndim == 4:
            return self.head(tokens.movedim(1, -1))
        return self.head(tokens[:, self.prefix :])


class Taps(nn.Module):
    """The planes of four blocks, joined, and a convolution."""

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__()
        self.encoder = timm.create_model(name, pretrained=False, num_classes=0, **kwargs)
        self.layout = "NLC" if name.startswith(GEMMA[0]) else "NCHW"
        self.head = nn.LazyConv2d(8, 3, padding=1) if self.layout == "NCHW" else nn.LazyLinear(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        planes = self.encoder.forward_intermediates(x, indices=4, output_fmt=self.layout, intermediates_only=True)
        return self.head(torch.cat(planes, dim=1 if self.layout == "NCHW" else 2))


# Where the whole image is pooled by three, its sides are multiples of 48; and taps as planes read positions back from
# the device, which no graph holds.
GEMMA = ("gemma4", (144, 192))


def sized(name: str) -> tuple[dict[str, Any], tuple[int, int]]:
    """Keyword arguments that make a model small (four blocks, 8 x 12 patches) and its image size, or the model's own
    where it does not take them."""
    with torch.device("meta"):
        whole = timm.create_model(name, pretrained=False, num_classes=0)
        native = tuple((whole.pretrained_cfg.get("input_size") or (3, 224, 224))[-2:])
        stride = _stride(whole, native)
        wanted = GEMMA[1] if name.startswith(GEMMA[0]) else (8 * stride[0], 12 * stride[1])
        for kwargs, image in (({"depth": 4, "img_size": wanted}, wanted), ({"img_size": wanted}, wanted)):
            try:
                timm.create_model(name, pretrained=False, num_classes=0, **kwargs)
            except (TypeError, AssertionError, ValueError, RuntimeError):
                continue
            return kwargs, image
    return {}, native


def _stride(model: nn.Module, image: tuple[int, int]) -> tuple[int, int]:
    """Pixels a token, down and across."""
    for module in model.modules():
        if isinstance(grid := getattr(module, "grid_size", None), tuple):
            return image[0] // grid[0], image[1] // grid[1]
    return next(p for m in model.modules() if isinstance(p := getattr(m, "patch_size", None), tuple))


def _model(name: str, wrapper: type[nn.Module]) -> Model:
    memo: dict[str, Any] = {}

    def small() -> tuple[dict[str, Any], tuple[int, int]]:
        return memo.setdefault("small", sized(name))

    def inputs(batch: int) -> dict[str, Any]:
        return pictures(small()[1])(batch)

    def make() -> nn.Module:
        model = wrapper(name, **small()[0]).eval()
        with torch.no_grad():
            model(**inputs(1))  # the lazy layer
        return model

    # Where four blocks come after a whole ResNet, less can be saved.
    flops_cut = 0.1 if re.search(r"_r\d+_s\d+_", name) else 0.2
    return Model(f"{name} {wrapper.__name__.lower()}", make, inputs, flops_cut)


def fingerprint(model: nn.Module) -> frozenset[object]:
    """What an architecture is made of: types, switches and kinds of parameters of its modules, numbers left out."""
    parts: set[object] = set()
    for path, module in model.named_modules():
        switches = tuple(sorted((k, v) for k, v in vars(module).items()
                                if isinstance(v, (bool, str)) and k != "training" and not k.startswith("_")))
        parameters = tuple(k for k, p in module._parameters.items() if p is not None)
        parts.add((re.sub(r"\d+", "*", path), type(module).__name__, switches, parameters))
    return frozenset(parts)


def distinct() -> list[str]:
    """The smallest model of each architecture among the families of the installed timm."""
    smallest: dict[frozenset[object], tuple[int, str]] = {}
    for family in FAMILIES:
        for name in timm.list_models(module=family):
            with torch.device("meta"):
                model = timm.create_model(name, pretrained=False, num_classes=0)
            size = sum(p.numel() for p in model.parameters()), name
            key = fingerprint(model)
            smallest[key] = min(size, smallest.get(key, size))
    return sorted(name for _, name in smallest.values())


def models() -> list[Model]:
    return [_model(name, wrapper) for name in ARCHITECTURES for wrapper in (Final, Taps)]


if __name__ == "__main__":
    print("\n".join(distinct()))
