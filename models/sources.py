"""Where models come from, one function a source; `lvtp_fx.models.named` chooses."""

from __future__ import annotations

import os
import pkgutil
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lvtp_fx.capture_refusals import first_line, user_line
from lvtp_fx.errors import LvtpError
from lvtp_fx.models.adapters import EncoderSegmenter, timm_segmenter, torchvision_segmenter
from lvtp_fx.models.backbones import read_state
from lvtp_fx.models.checkpoint import Spec, load_bundled, load_checkpoint
from lvtp_fx.models.named import Named
from lvtp_fx.models.preprocess import INTERPOLATIONS, SpecPreprocess
from lvtp_fx.models.request import Request, bad_model, guessed, inferred_size, only_own_size
from lvtp_fx.models.scenes import CLASS_NAMES, PALETTE

_EXPECTED = {"timm": "a model of timm that gives feature maps", "torchvision": "a VisionTransformer of torchvision"}


def bundled(request: Request) -> Named:
    """The segmenter that comes with the package."""
    model, spec = load_bundled()
    only_own_size(request, spec.img_size)
    return Named("bundled", model, SpecPreprocess(spec), CLASS_NAMES, PALETTE)


def checkpoint(folder: Path, request: Request) -> Named:
    """A folder with model.json and model.safetensors."""
    try:
        model, spec = load_checkpoint(folder)
    except (FileNotFoundError, ValueError) as error:
        raise bad_model(request.name, "model.json and model.safetensors, or config.json and model.safetensors",
                        str(error), "the folder says how the model is made",
                        "a folder that lvtp_fx.models.checkpoint.save_checkpoint wrote, or one of transformers' "
                        "save_pretrained") from error
    only_own_size(request, spec.img_size)
    return Named(request.name, model, SpecPreprocess(spec), spec.class_names, spec.colours)


def backbone(kind: str, name: str, request: Request) -> Named:
    """A backbone of timm or torchvision, and a head, whose weights are random, the same ones each time; or those of a
    file that holds the whole segmenter's."""
    shape: dict[str, Any] = {"head": request.head or "linear", "classes": request.classes or 8, "name": name}
    file = request.weights if request.weights is not None and request.weights.is_file() else None
    state = _state(file) if file is not None else None
    whole = state if state and {key.partition(".")[0] for key in state} == {"encoder", "head"} else None
    try:
        if request.weights is not None and file is None:  # timm would write a line of its own, too
            raise FileNotFoundError(f"no file {request.weights}")
        shape["weights"] = None if whole else file
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if kind == "timm":
                shape |= {"img_size": request.size} if request.size else {}
                model = timm_segmenter(**shape)
            else:
                model = torchvision_segmenter(**shape, **_square(request))
        if whole:
            model.load_state_dict(whole)
    except Exception as error:
        junk = file is not None and state is None
        if not junk and not isinstance(error, FileNotFoundError | RuntimeError | ValueError | TypeError
                                       | AssertionError):
            raise
        known = get_close_matches(name, [known for known in _names(kind) if known != name], n=3)
        raise bad_model(request.name, f"{_EXPECTED[kind]}, and weights that are its own",
                        f"no weights in {request.weights}" if junk else _shortened(str(error)),
                        "the head reads its tokens",
                        f"another name{', such as ' + ', '.join(known) if known else ''}, size or file") from error
    mean, std, interpolation = _trained_with(kind, name, model)
    spec = Spec(model.img_size, shape["classes"], None, 1.0, mean, std)
    random = "the head's weights are random" if request.weights else "all weights are random"
    return Named(request.name, model, SpecPreprocess(spec, interpolation), notes=() if whole else (random,))


def function(request: Request) -> Named:
    """What package.module:function returns, or what is there in its place: a module, or a module and its `Spec`. The
    working folder is importable."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        make = pkgutil.resolve_name(request.name)
        made = make() if callable(make) and not isinstance(make, nn.Module) else make  # it may import more
    except LvtpError:
        raise
    except (Exception, SystemExit) as error:
        line = user_line(error)
        raise bad_model(request.name, "a function that can be imported, and returns a model",
                        f"{type(error).__name__}: {first_line(error)}{line}", "it makes the model",
                        "that line, which is not of this package" if line else
                        "package.module:function, where the package is installed or in the working folder") from error
    finally:
        sys.path.remove(here)
    model, spec = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module) or not isinstance(spec, Spec | None):
        raise bad_model(request.name, "a torch.nn.Module, or one and a Spec", f"{type(made).__name__}",
                        "its graph is rewritten", "return the model from the function")
    if spec is not None:
        only_own_size(request, spec.img_size)
        return Named(request.name, model, SpecPreprocess(spec), spec.class_names, spec.colours)
    preprocess, notes = guessed(request, request.size or inferred_size(model), "the function gives no Spec")
    return Named(request.name, model, preprocess, notes=notes)


def _shortened(text: str, most: int = 5) -> str:
    """torch's error on weights that do not fit lists every key, in one line or in many: some of them will do."""
    lines = [line.split(", ") for line in text.splitlines()]
    short = [", ".join([*parts[:most], *([f"and {len(parts) - most} more"] if len(parts) > most else [])])
             for parts in lines[:most]]
    return "\n".join([*short, *([f"and {len(lines) - most} lines more"] if len(lines) > most else [])])


def _state(path: Path) -> dict[str, torch.Tensor] | None:
    """The state dict in a file, None where there is none: readers of junk raise errors of many kinds."""
    try:
        state = read_state(path)
    except Exception:
        return None
    return state if isinstance(state, Mapping) else None


def _square(request: Request) -> dict[str, Any]:
    if request.size is None:
        return {}
    if request.size[0] != request.size[1]:
        raise ValueError("torchvision's VisionTransformer takes square images")
    return {"image_size": request.size[0]}


def _names(kind: str) -> list[str]:
    import timm
    from torchvision.models import list_models

    names: list[str] = timm.list_models() if kind == "timm" else list_models()
    return names


def _trained_with(kind: str, name: str, model: EncoderSegmenter) -> tuple[Any, Any, str]:
    """Mean, standard deviation and interpolation that the backbone was, or would be, trained with. Its crop is not one
    of them: every pixel gets a class."""
    if kind == "timm":
        import timm

        library: Any = timm
        config = library.data.resolve_model_data_config(model.encoder.model)
        mode = config["interpolation"]
        return tuple(config["mean"]), tuple(config["std"]), mode if mode in INTERPOLATIONS else "bilinear"
    from torchvision.models import get_model_weights

    preset: Any = next(iter(get_model_weights(name))).transforms()
    return tuple(preset.mean), tuple(preset.std), preset.interpolation.value
