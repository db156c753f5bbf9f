"""Augmented images of a training run: which one, and how it is changed, depends on its number alone."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from lvtp_fx.models.camvid import CamVid
from lvtp_fx.models.checkpoint import Spec

Item = tuple[torch.Tensor, torch.Tensor]  # image float32 [3, H, W] in [0, 1], label int64 [H, W]


class Draws(Dataset[Item]):
    """The images in the order in which a run sees them: a new permutation each epoch, the rest of a batch left out.

    Item `i` is always the same, whatever was drawn before it and by which process. Scaled by `scale_min` to 2 (of what
    just fits `spec.img_size`), cropped to that size, flipped, its colours and its sharpness changed. Where a small
    image leaves a rim, the label is `spec.ignore_index`.
    """

    def __init__(self, data: CamVid, spec: Spec, batch: int, epochs: int, seed: int, scale_min: float) -> None:
        """Raises:
            ValueError: fewer images than a batch takes.
        """
        if len(data) < batch:
            raise ValueError(f"a batch of {batch} needs as many images, {data.folder} has {len(data)} to train on")
        self.data, self.seed, self.epochs = data, seed, epochs
        self.each = len(data) // batch * batch
        grey = [mean / spec.scale for mean in spec.mean]
        self.change = v2.Compose([
            v2.ScaleJitter(spec.img_size, (scale_min, 2.0)),
            v2.RandomCrop(spec.img_size, pad_if_needed=True,
                          fill={tv_tensors.Image: grey, tv_tensors.Mask: spec.ignore_index}),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.4, 0.4, 0.4),
            v2.RandomApply([v2.GaussianBlur(5, (0.1, 2.0))], 0.3),
        ])

    def __len__(self) -> int:
        return self.each * self.epochs

    def __getitem__(self, index: int) -> Item:
        if not 0 <= index < len(self):
            raise IndexError(index)
        epoch, place = divmod(index, self.each)
        order = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(_word(self.seed, epoch)))
        image, label = self.data[int(order[place])]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_word(self.seed, epoch, place))
            image, label = self.change(tv_tensors.Image(image), tv_tensors.Mask(label))
        return image.as_subclass(torch.Tensor), label.as_subclass(torch.Tensor)


def _word(*numbers: int) -> int:
    """A seed of 32 bits; nearby numbers give unrelated ones."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def class_weights(labels: torch.utils.data.Dataset[Item], classes: int, balance: float) -> torch.Tensor:
    """Weights [classes] float32: the share of a class's pixels to the power of -balance, 1 for the average pixel."""
    counts = torch.zeros(classes, dtype=torch.int64)
    for _, label in labels:  # type: ignore[attr-defined]
        counts += torch.bincount(label.flatten(), minlength=classes)[:classes]
    share = counts / counts.sum().clamp(min=1)
    weights = share.clamp(min=1e-6) ** -balance
    return weights / (weights * share).sum()
