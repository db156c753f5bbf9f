"""Backbones of timm and torchvision by name, with random weights or with those of a local file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn


def timm_backbone(name: str, weights: Path | None = None, **kwargs: Any) -> nn.Module:
    """timm's model without its classifier; keyword arguments are timm's.

    Args:
        weights: a state dict as timm stores them (safetensors or pth). timm brings position embeddings to the image
            size. None: random.

    Raises:
        ImportError: timm is not installed.
        FileNotFoundError: the file is missing.
        RuntimeError: timm has no such model, or the weights are not this model's (all but the classifier are needed).
    """
    timm = _timm()
    if weights is None:
        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **kwargs)
        return model
    config = timm.models.get_pretrained_cfg(name)
    classifier = getattr(config, "classifier", None) or "head"
    dropped = (classifier,) if isinstance(classifier, str) else classifier
    state = _without(timm.models.load_state_dict(str(weights)), dropped)
    # Told that the weights have no classifier either, timm refuses whatever else is missing or left over.
    overlay = {"state_dict": state, "num_classes": 0, "custom_load": False}
    loaded: nn.Module = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, **kwargs)
    return loaded


def takes_image_size(name: str) -> bool:
    """Whether timm builds the model for one image size, `img_size`; others take images of any size.

    Raises:
        ImportError: timm is not installed.
    """
    config = _timm().models.get_pretrained_cfg(name)
    return config is None or bool(config.fixed_input_size)


def torchvision_backbone(name: str, weights: Path | None = None, **kwargs: Any) -> nn.Module:
    """torchvision's model; keyword arguments are its own.

    Args:
        weights: its state dict (safetensors or pth), for the same image size. None: random.

    Raises:
        ImportError: torchvision is not installed.
        FileNotFoundError: the file is missing.
        RuntimeError: the weights are not this model's.
        ValueError: torchvision has no such model.
    """
    try:
        from torchvision.models import get_model
    except ImportError as error:
        raise ImportError("torchvision models need the extra: pip install 'lvtp_fx[models]'") from error
    model: nn.Module = get_model(name, weights=None, **kwargs)
    if weights is not None:
        model.load_state_dict(read_state(weights))
    return model


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from safetensors, or from what torch.save wrote of tensors alone.

    Raises:
        FileNotFoundError: the file is missing.
    """
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ImportError("timm models need the extra: pip install 'lvtp_fx[models]'") from error
    return timm


def _without(state: Mapping[str, Any], modules: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key.rpartition(".")[0] not in modules}
