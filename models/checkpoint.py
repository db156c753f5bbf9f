"""A trained segmenter in a folder: `model.json` says how it is built, `model.safetensors` holds its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from lvtp_fx.models.adapters import timm_segmenter
from lvtp_fx.models.palette import Palette
from lvtp_fx.models.segmenter import Segmenter, SegmenterConfig


@dataclass(frozen=True)
class Spec:
    """What a checkpoint expects and predicts.

    Attributes:
        img_size: (height, width) in pixels.
        classes: number of classes.
        ignore_index: label of the pixels that have no class, or None.
        scale: 255.0 or 1.0, what images in [0, 1] are multiplied by before `mean` and `std` are applied.
        mean, std: of red, green and blue, on that scale.
        what: one line on the model.
        class_names, colours: of the classes, in order; none where nothing says them.
    """

    img_size: tuple[int, int]
    classes: int
    ignore_index: int | None
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    what: str = ""
    class_names: tuple[str, ...] = ()
    colours: Palette | None = None

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """Images, float [B, 3, H, W] in [0, 1] of `img_size`, to the model's input, same shape and dtype.

        Raises:
            ValueError: for another shape, or integers.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, *self.img_size):
            raise ValueError(f"images must be [B, 3, {self.img_size[0]}, {self.img_size[1]}], "
                             f"got {list(images.shape)}")
        if not images.is_floating_point():
            raise ValueError(f"images must be floats in [0, 1], got {images.dtype}")
        return self.normalised(images)

    def normalised(self, images: torch.Tensor) -> torch.Tensor:
        """Images, float [..., 3, H, W] in [0, 1] of any size, scaled and normalised."""
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (images * self.scale - mean) / std


class TimmLinear(nn.Module):
    """A timm encoder and a linear layer on its final patch tokens.

    [B, 3, H, W] to logits [B, classes, H, W].

    Raises:
        ImportError: timm is not installed.
    """

    def __init__(
        self, name: str, kwargs: Mapping[str, Any], img_size: tuple[int, int], classes: int
    ) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise ImportError("this checkpoint is a timm model: pip install 'lvtp_fx[models]'") from error
        self.enc = cast(Any, timm.create_model(name, pretrained=False, **kwargs))
        self.head = nn.Linear(self.enc.num_features, classes)
        self.img_size, self.prefix = img_size, self.enc.num_prefix_tokens
        self.grid: tuple[int, int] = tuple(self.enc.patch_embed.grid_size)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = self.head(self.enc.forward_features(image)[:, self.prefix :])
        planes = tokens.transpose(1, 2).unflatten(2, self.grid)
        return F.interpolate(planes, self.img_size, mode="bilinear", align_corners=False)


def load_checkpoint(folder: str | Path) -> tuple[nn.Module, Spec]:
    """The model, in eval mode on the CPU, and its spec. Weights stored in another float type become the model's.

    Raises:
        FileNotFoundError: where the folder or one of its files is missing.
        ImportError: where the model is timm's, and timm is not installed.
        ValueError: where model.json is not JSON, lacks a field, or describes no kind of model, or where
            the weights are not those of the model.
    """
    folder = Path(folder)
    for name in ("model.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} is no checkpoint: it has no {name}. A checkpoint is a folder with model.json "
                "(how to build the model) and model.safetensors (its weights)")
    try:
        card = json.loads((folder / "model.json").read_text())
        model, spec = build(card)
    except KeyError as error:
        raise ValueError(f"{folder / 'model.json'} has no or a wrong {error}") from error
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:  # timm raises the first two
        raise ValueError(f"{folder / 'model.json'} cannot be read: {error}") from error
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder / 'model.safetensors'} does not fit model.json: {error}") from error
    return model.eval(), spec


def save_checkpoint(
    folder: str | Path, model: nn.Module, card: Mapping[str, Any], dtype: torch.dtype | None = None
) -> None:
    """Write a folder that `load_checkpoint` reads, and the command line, as a model. The folder is made if missing.

    Args:
        model: the segmenter, or what was made of it by `lvtp_fx.transform`: both have the same state dict.
        card: the content of model.json, as `build` takes it; what else is in it is kept.
        dtype: what floating-point weights are stored as, e.g. torch.float16; None: what they are.

    Raises:
        KeyError, AttributeError, RuntimeError, TypeError, ValueError: `card` is none that `build` takes, or describes
            a model of other weights. Nothing is written then.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    build(card)[0].load_state_dict(state)
    if dtype is not None:
        state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors")
    (folder / "model.json").write_text(json.dumps(dict(card), indent=1) + "\n")


def build(card: Mapping[str, Any]) -> tuple[nn.Module, Spec]:
    """The model that the content of a model.json describes, with random weights, and its spec.

    The fields `segmenter` (those of SegmenterConfig), or `timm_name` and `timm_kwargs` say which model it is: with
    `head`, a key of `HEADS`, it is `timm_segmenter`'s, without one `TimmLinear`. Needed as well are `what`, `img_size`
    (height, width), `classes`, `ignore_index`, and `normalize` with `scale` ("0-1" or "0-255"), `mean` and `std`;
    `class_names` and `palette` (red, green and blue of each class) may be there.

    Raises:
        ImportError: the model is timm's, and timm is not installed.
        KeyError: a field is missing.
        AttributeError, RuntimeError, TypeError, ValueError: a field's value is none that a model can be built of.
    """
    return _model(card), _spec(card)


def _spec(card: Mapping[str, Any]) -> Spec:
    norm, (height, width) = card["normalize"], card["img_size"]
    scales = {"0-1": 1.0, "0-255": 255.0}
    return Spec((height, width), card["classes"], card["ignore_index"], scales[norm["scale"]],
                tuple(norm["mean"]), tuple(norm["std"]), card["what"], tuple(card.get("class_names", ())),
                tuple(tuple(rgb) for rgb in card["palette"]) if "palette" in card else None)


def _model(card: Mapping[str, Any]) -> nn.Module:
    if "segmenter" in card:
        return Segmenter(SegmenterConfig(**card["segmenter"]))
    if "timm_name" in card:
        kwargs = {k: tuple(v) if isinstance(v, list) else v for k, v in card["timm_kwargs"].items()}
        if "head" in card:
            return timm_segmenter(card["timm_name"], card["head"], card["classes"], **kwargs)
        return TimmLinear(card["timm_name"], kwargs, tuple(card["img_size"]), card["classes"])
    raise ValueError("it names neither 'segmenter' nor 'timm_name'")


def load_bundled() -> tuple[nn.Module, Spec]:
    """The segmenter that comes with the package, trained on procedural scenes."""
    with resources.as_file(resources.files("lvtp_fx.models") / "checkpoint") as folder:
        return load_checkpoint(folder)
