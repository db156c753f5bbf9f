"""From an image as it was read to what a model takes: resized, scaled, normalised."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from lvtp_fx.models.checkpoint import Spec

Size = tuple[int, int]  # (height, width) in px
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INTERPOLATIONS = ("bilinear", "bicubic")


def transforms() -> Any:
    """torchvision's `transforms.v2`. It is imported when it is first needed: that takes seconds.

    Raises:
        ImportError: torchvision is not installed.
    """
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise ImportError("images need the extra: pip install 'lvtp_fx[models]'") from error
    return v2


def resized(image: torch.Tensor, size: Size, interpolation: str = "bilinear") -> torch.Tensor:
    """An image [..., H, W] at `size`, with antialiasing, in its dtype; `interpolation` is one of `INTERPOLATIONS`."""
    functional = transforms().functional
    mode = functional.InterpolationMode(interpolation)
    out: torch.Tensor = functional.resize(image, list(size), interpolation=mode, antialias=True)
    return out


class Preprocess(Protocol):
    """What a model expects of its images.

    Attributes:
        img_size: the size of the model's input, which its graph is built for.
    """

    @property
    def img_size(self) -> Size: ...

    def __call__(self, image: torch.Tensor, size: Size | None) -> torch.Tensor:
        """uint8 [3, H, W] to float32 [3, height, width], resized to `size`, or left at its own where that is None."""


class SpecPreprocess:
    """Of a checkpoint's `Spec`: resized, bilinear without an `interpolation`, then mean and standard deviation."""

    def __init__(self, spec: Spec, interpolation: str = "bilinear") -> None:
        self.spec, self.img_size, self.interpolation = spec, spec.img_size, interpolation

    def __call__(self, image: torch.Tensor, size: Size | None) -> torch.Tensor:
        fitting = image if size is None else resized(image, size, self.interpolation)
        return self.spec.normalised(transforms().functional.to_dtype(fitting, torch.float32, scale=True))


class ProcessorPreprocess:
    """A transformers image processor: its own filter, scale, mean and standard deviation.

    Only the size is ours. It never crops, pads or splits: every pixel gets a class, and a graph has one size.

    Args:
        processor: of transformers' `AutoImageProcessor`.
        img_size: the size of the model's input, or None for what the processor makes.

    Raises:
        ValueError: `img_size` is None, and the processor has no fixed size.
    """

    def __init__(self, processor: Any, img_size: Size | None) -> None:
        self.processor = processor
        size = img_size or _processor_size(processor)
        if size is None:
            raise ValueError("its image processor has no fixed height and width")
        self.img_size = size
        self.options: dict[str, Any] = {"do_center_crop": False, "do_pad": False, "return_tensors": "pt"}
        others = {"keep_aspect_ratio": False, "do_split_image": False, "size_divisor": 0}
        self.options |= {name: off for name, off in others.items() if hasattr(processor, name)}

    def __call__(self, image: torch.Tensor, size: Size | None) -> torch.Tensor:
        resize: dict[str, Any] = {"do_resize": False}
        if size is not None:
            resize = {"do_resize": True, "size": {"height": size[0], "width": size[1]}}
        out: torch.Tensor = self.processor(images=[image], **self.options, **resize)["pixel_values"][0]
        return out


def _processor_size(processor: Any) -> Size | None:
    """What comes out of it: the crop where it crops, what it resizes to where not."""
    size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    height, width = (getattr(size, side, None) for side in ("height", "width"))
    return (int(height), int(width)) if height and width else None
