"""From images of any size to label maps of the same size: the whole image at once, or in a sliding window."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree

from lvtp_fx.classes import find_logits
from lvtp_fx.errors import Code, LvtpError
from lvtp_fx.models.preprocess import Preprocess, Size


def logits_of(output: Any, size: Size | None = None) -> torch.Tensor:
    """The logits [B, C, h, w], C >= 2, in what a segmenter returns: see `lvtp_fx.classes.find_logits`.

    Raises:
        LvtpError: LVTP401 where there is none.
    """
    logits = find_logits(output, size)
    if logits is not None:
        return logits
    shapes = [f"{tuple(leaf.shape)}" for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]
    raise LvtpError(
        Code.BAD_INPUT, where="the model's output", expected="logits [batch, classes, height, width]",
        got=", ".join(shapes) or type(output).__name__, why="a label map is their argmax",
        hint="a segmenter; wrap a model of another kind so that it returns a plane of logits a class",
    )


@dataclass(frozen=True)
class Predictor:
    """`predict(images)`: label maps, at each image's own size.

    Attributes:
        run: the model, dense or pruned: [B, 3, *img_size] to what `logits_of` reads.
        preprocess: what it expects of its images.
        stride: None: an image is resized to the model's size, and its logits back. A number of px: a window of the
            model's size moves over the image by it, and logits are averaged where windows overlap.
        short_side: with `stride`, the image's short side is resized to it first, its sides' ratio kept. An image
            smaller than the window is enlarged until it covers the window.
        batch_size: windows or images that are run at a time.
        device, dtype: of the model's input.

    Raises:
        ValueError: stride, short_side or batch_size below 1, a stride longer than a side of the window (pixels would be
            left out), or a short_side without a stride.
    """

    run: Callable[[torch.Tensor], Any]
    preprocess: Preprocess
    stride: int | None = None
    short_side: int | None = None
    batch_size: int = 1
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        for name in ("stride", "short_side", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if self.stride is not None and self.stride > min(self.preprocess.img_size):
            raise ValueError(f"stride must be <= {min(self.preprocess.img_size)}, the window's side, got {self.stride}")
        if self.short_side is not None and self.stride is None:
            raise ValueError("short_side needs a stride: a whole image is resized to the model's size")

    def __call__(self, images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """uint8 [3, H, W] each to int64 [H, W] each, on the CPU.

        Raises:
            LvtpError: LVTP401 where the model does not return logits, or refuses the input.
        """
        return list(self.stream(images))

    @torch.no_grad()
    def stream(self, images: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The same, one label map after the other."""
        if self.stride is not None:
            for image in images:
                yield _labels(self._slid(image, self.stride), image)
            return
        for start in range(0, len(images), self.batch_size):
            some = images[start : start + self.batch_size]
            planes = self._logits([self.preprocess(image, self.preprocess.img_size) for image in some])
            for image, plane in zip(some, planes, strict=True):
                yield _labels(plane, image)

    def _slid(self, image: torch.Tensor, stride: int) -> torch.Tensor:
        """Mean logits [C, h, w] of the windows, at the size that the image was resized to."""
        height, width = self.preprocess.img_size
        size = self._covering(image)
        x = self.preprocess(image, None if size == tuple(image.shape[1:]) else size)
        corners = [(top, left) for top in starts(size[0], height, stride) for left in starts(size[1], width, stride)]
        total, count = torch.zeros(0), torch.zeros(size)
        for first in range(0, len(corners), self.batch_size):
            some = corners[first : first + self.batch_size]
            planes = self._logits([x[:, top : top + height, left : left + width] for top, left in some])
            planes = F.interpolate(planes, (height, width), mode="bilinear", align_corners=False)
            if not len(total):
                total = planes.new_zeros(planes.shape[1], *size)
            for (top, left), plane in zip(some, planes, strict=True):
                total[:, top : top + height, left : left + width] += plane
                count[top : top + height, left : left + width] += 1
        return total / count.to(total.device)

    def _covering(self, image: torch.Tensor) -> Size:
        """The image's size, its short side as asked for, and at least the window's on both sides."""
        own, window = tuple(image.shape[1:]), self.preprocess.img_size
        scale = self.short_side / min(own) if self.short_side is not None else 1.0
        scale = max(scale, window[0] / own[0], window[1] / own[1])
        return max(window[0], round(own[0] * scale)), max(window[1], round(own[1] * scale))

    def _logits(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        x = torch.stack(list(inputs)).to(self.device, self.dtype)
        return logits_of(self.run(x), (x.shape[2], x.shape[3])).float()


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin: every `stride`, and one that ends where the image does."""
    return [*range(0, length - window, stride), length - window]


def _labels(logits: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """The class of each of the image's pixels, from logits [C, h, w] at any size."""
    planes = F.interpolate(logits[None], image.shape[1:], mode="bilinear", align_corners=False)
    return planes[0].argmax(0).cpu()
