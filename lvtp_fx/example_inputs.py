"""Example inputs: as given by the user, or inferred from the model's own attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from lvtp_fx.errors import Code, LvtpError

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def resolve(model: nn.Module | ExportedProgram, given: Any) -> Inputs:
    """Positional and keyword inputs.

    Args:
        given: a tensor, a tuple or list of positional inputs, a dict of keyword inputs, both as `(tuple, dict)` (what
            an ExportedProgram has as its example inputs), or None to infer one image.

    Raises:
        LvtpError: LVTP103 where the size of the image is not known, LVTP105 for something that is no input.
    """
    if given is None:
        if isinstance(model, ExportedProgram):
            args, kwargs = model.example_inputs
            return tuple(args), dict(kwargs)
        return (infer_image(model),), {}
    if isinstance(given, torch.Tensor):
        return (given,), {}
    if isinstance(given, Mapping):
        return (), dict(given)
    if isinstance(given, tuple) and [type(part) for part in given] == [tuple, dict]:
        return given
    if isinstance(given, (tuple, list)):
        return tuple(given), {}
    raise LvtpError(
        Code.BAD_EXAMPLE, where="example_inputs", expected="a tensor, a tuple of inputs or a dict of keyword inputs",
        got=type(given).__name__, why="the model is traced with it",
        hint="lvtp_fx.transform(model, (torch.rand(1, 3, 224, 224),))",
    )


def infer_image(model: nn.Module) -> torch.Tensor:
    """One image [1, channels, height, width] of zeros, sized as the model's attributes say.

    Looked for, from the outermost module inwards: `img_size` or `image_size` of a module or of its `config`
    (timm's, transformers' and torchvision's conventions), then `pretrained_cfg["input_size"]` (timm).
    """
    size = _size(model)
    if size is None:
        raise LvtpError(
            Code.SHAPE_NOT_INFERABLE, where=type(model).__name__,
            expected="an attribute img_size or image_size on a module or its config, or pretrained_cfg['input_size']",
            got="none of them", why="the token grid is fixed when the graph is captured",
            hint=f"lvtp_fx.transform(model, (torch.rand(1, {_channels(model)}, HEIGHT, WIDTH),)) with your image size",
        )
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(0))
    return torch.zeros(1, _channels(model), *size, dtype=parameter.dtype, device=parameter.device)


def _size(model: nn.Module) -> tuple[int, int] | None:
    for module in model.modules():
        for owner in (module, getattr(module, "config", None)):
            for name in ("img_size", "image_size"):
                if (size := _pair(getattr(owner, name, None))) is not None:
                    return size
    for module in model.modules():
        cfg = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
        if isinstance(cfg, Mapping) and (size := _pair((cfg.get("input_size") or ())[-2:])) is not None:
            return size
    return None


def _pair(value: Any) -> tuple[int, int] | None:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value, value
    if isinstance(value, Mapping):  # as image processors of transformers write it
        value = (value.get("height"), value.get("width"))
    if isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(v, int) and v > 0 for v in value):
        return int(value[0]), int(value[1])
    return None


def _channels(model: nn.Module) -> int:
    for module in model.modules():
        value = getattr(getattr(module, "config", None), "num_channels", None)  # a norm has such an attribute, too
        if isinstance(value, int):
            return value
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return 3
