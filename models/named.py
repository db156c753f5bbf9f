"""A model by name, with what it expects of its images: `load_named("timm:vit_small_patch16_dinov3")`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from lvtp_fx.errors import Code, LvtpError
from lvtp_fx.models.palette import Palette, voc_palette
from lvtp_fx.models.predict import Predictor, logits_of
from lvtp_fx.models.preprocess import Preprocess, Size
from lvtp_fx.models.request import FORMS, Request, bad_device, bad_model


@dataclass(frozen=True)
class Named:
    """A model, and what it expects and predicts.

    Attributes:
        model: in eval mode, on `device`, of `dtype`.
        preprocess: from an image as it was read to the model's input.
        class_names: as many as the model has classes, or none.
        colours: of the classes; None for Pascal VOC's.
        notes: what a user should know, e.g. that weights are random.
        example: for an exported program that takes no others, the inputs that it was made with.
    """

    name: str
    model: nn.Module | ExportedProgram
    preprocess: Preprocess
    class_names: tuple[str, ...] = ()
    colours: Palette | None = None
    notes: tuple[str, ...] = ()
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    example: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    @property
    def img_size(self) -> Size:
        return self.preprocess.img_size

    @property
    def dense(self) -> nn.Module:
        """The model as a module to call."""
        return self.model.module() if isinstance(self.model, ExportedProgram) else self.model

    def inputs(self, batch: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
        """Example inputs: a batch of images of noise, normalised; `example`, where there is one.

        Raises:
            LvtpError: LVTP105 for an exported program with keyword inputs.
        """
        if self.example is not None:
            args, kwargs = self.example
            if kwargs:
                raise LvtpError(
                    Code.BAD_EXAMPLE, where=self.name, expected="positional inputs", got=f"also {', '.join(kwargs)}",
                    why="the command line hands over images", hint="export it with positional inputs, or use the API",
                )
            return args
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randint(0, 256, (batch, 3, *self.img_size), generator=generator, dtype=torch.uint8)
        return (self.prepared(list(noise)),)

    def prepared(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """Images, uint8 [3, H, W] of any sizes, to the model's input [B, 3, *img_size].

        Raises:
            LvtpError: LVTP105 for an exported program that takes no such batch.
        """
        self._check_batch(len(images))
        made = [self.preprocess(image, self.img_size) for image in images]
        return torch.stack(made).to(self.device, self.dtype)

    def predictor(self, run: Any = None, **options: Any) -> Predictor:
        """`Predictor` of this model, or of what was made of it; options are its `stride` and the like.

        Raises:
            LvtpError: LVTP105 for an exported program that does not take its batches.
            ValueError: as `Predictor`.
        """
        self._check_batch(options.get("batch_size", 1))
        return Predictor(self.dense if run is None else run, self.preprocess, device=self.device, dtype=self.dtype,
                         **options)

    def _check_batch(self, batch: int) -> None:
        if self.example is None:
            return
        args, kwargs = self.example
        if len(args) != 1 or kwargs or args[0].shape[:2] != (batch, 3):
            shapes = ", ".join(str(tuple(getattr(arg, "shape", ()))) for arg in (*args, *kwargs.values()))
            raise LvtpError(
                Code.BAD_EXAMPLE, where=self.name, expected=f"a program that takes a batch of {batch} RGB images",
                got=f"one of the inputs {shapes}, and no others", why="it is run on images",
                hint="export it with a free batch: dynamic_shapes=({0: torch.export.Dim.AUTO},)",
            )

    @torch.no_grad()
    def count_classes(self) -> int:
        """How many classes it predicts: what comes out of it, once.

        Raises:
            LvtpError: LVTP401 where the model does not return logits.
        """
        return int(logits_of(self.dense(*self.inputs(1))).shape[1])

    def palette(self, classes: int) -> Palette:
        """A colour for each of `classes`."""
        return self.colours if self.colours is not None and len(self.colours) >= classes else voc_palette(classes)


def load_named(request: Request) -> Named:
    """The model that was asked for. Nothing is downloaded.

    Raises:
        LvtpError: LVTP106 for a name that is none, and for a model that cannot be loaded.
        ImportError: a library is not installed; the message names the extra.
    """
    from lvtp_fx.models import exported, sources, transformers_folder  # these need the class above

    kind, _, rest = request.name.partition(":")
    path = Path(request.name)
    if kind in ("timm", "torchvision") and rest:
        return _placed(sources.backbone(kind, rest, request), request)
    if request.head or request.classes or request.weights:
        raise bad_model(request.name, "no head, classes or weights", "one of them",
                        "this model brings its own", "leave them out, or name a backbone: timm:NAME, torchvision:NAME")
    if request.name == "bundled":
        named = sources.bundled(request)
    elif kind == "hf" and rest:
        named = transformers_folder.load(Path(rest), request)
    elif path.suffix == ".pt2":
        return exported.load(path, request)
    elif request.name and path.is_dir():
        has_card = (path / "model.json").is_file() or not (path / "config.json").is_file()
        named = sources.checkpoint(path, request) if has_card else transformers_folder.load(path, request)
    elif rest and "/" not in request.name:
        named = sources.function(request)
    else:
        raise bad_model(request.name, FORMS, "none of them", "it says how the model is made",
                        "lvtp-fx explain bundled, or timm:vit_small_patch16_224")
    return _placed(named, request)


def _placed(named: Named, request: Request) -> Named:
    """On the device, as the dtype."""
    assert isinstance(named.model, nn.Module)
    dtype = request.dtype or torch.float32
    try:
        model = named.model.to(request.device, dtype).eval()
    except (RuntimeError, AssertionError) as error:  # torch raises the second without CUDA
        raise bad_device(request.device, error) from error
    return replace(named, model=model, device=request.device, dtype=dtype)
