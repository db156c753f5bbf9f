"""Paired bootstrap over images: how far a figure moves when other images of the same kind had been photographed.

Every model of a comparison is resampled with the same images, so that what makes an image hard for all of them cancels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

SEED = 0
LEVEL = 0.95  # share of the resamples inside an interval


@dataclass(frozen=True)
class Interval:
    """A figure on the images as they are, and the limits of its interval, in the figure's unit."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def weights(images: int, resamples: int, seed: int = SEED) -> torch.Tensor:
    """How often each image is drawn: float64 [1 + resamples, images], each row adding up to `images`.

    Row 0 is the images as they are, once each. The others are drawn with replacement; a seed gives the same rows.

    Raises:
        ValueError: fewer than one image or resample.
    """
    if images < 1 or resamples < 1:
        raise ValueError(f"a bootstrap needs images and resamples, got {images} and {resamples}")
    drawn = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples)
    return torch.from_numpy(np.concatenate([np.ones((1, images)), drawn]))


def resampled(counts: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Totals of counts, int64 [images, F], under weights [1 + R, images]: float64 [1 + R, F].

    The totals are whole numbers far below 2**53, so they are exact, whatever order they are added up in.
    """
    return drawn @ counts.double()


def interval(series: torch.Tensor) -> Interval:
    """Of a figure under all weights, [1 + R]: its value under the first, the middle `LEVEL` of the others.

    NaN resamples (none of their images has the pixels that the figure is about) are left out.
    """
    tail = (1 - LEVEL) / 2
    low, high = torch.nanquantile(series[1:], torch.tensor([tail, 1 - tail], dtype=series.dtype))
    return Interval(float(series[0]), float(low), float(high))
