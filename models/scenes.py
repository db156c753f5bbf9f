"""Procedural street-like scenes: large smooth regions, and detail where edges are.

Sky, ground and walls fill most of an image; foliage, vehicles, balls and thin structures (poles, wires, fences)
occlude them and each other. Classes differ in texture, colour and shape; light, hue and noise vary. Seeded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

CLASS_NAMES = ("sky", "ground", "wall", "foliage", "vehicle", "ball", "thin")
PALETTE = ((116, 173, 209), (140, 120, 100), (190, 90, 70), (60, 140, 60), (90, 60, 150), (240, 190, 40), (20, 20, 20))

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Scene:
    """image: float32 [3, S, S] in [0, 1]. label: int64 [S, S], indices into `CLASS_NAMES`."""

    image: torch.Tensor
    label: torch.Tensor


def make_scene(seed: int, size: int = 192) -> Scene:
    """One scene; the same seed and size give the same scene.

    Raises:
        ValueError: for a size below 32.
    """
    if size < 32:
        raise ValueError(f"a scene needs at least 32 pixels a side, got {size}")
    painter = _Painter(np.random.default_rng(seed), size)
    painter.background()
    painter.walls()
    for draw in painter.rng.permutation(np.array(["foliage", "vehicles", "balls", "foliage"])):
        getattr(painter, str(draw))()
    painter.thin()
    return painter.finish()


def make_batch(seeds: Sequence[int], size: int = 192) -> tuple[torch.Tensor, torch.Tensor]:
    """Scenes for several seeds: images [B, 3, S, S], labels [B, S, S]."""
    scenes = [make_scene(seed, size) for seed in seeds]
    return torch.stack([s.image for s in scenes]), torch.stack([s.label for s in scenes])


class _Painter:
    """One scene while it is painted. Lengths are shares of the image side."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.rng, self.size = rng, size
        self.y, self.x = np.mgrid[0:size, 0:size].astype(np.float32) / size
        self.image: Array = np.zeros((3, size, size), np.float32)
        self.label = np.zeros((size, size), np.int64)
        self.grain: Array = rng.random((size, size), dtype=np.float32) - 0.5
        self.horizon = float(rng.uniform(0.35, 0.55))

    def paint(self, mask: Mask, colour: Array, texture: Array | float, name: str) -> None:
        shade = np.broadcast_to(np.asarray(texture, np.float32), mask.shape)[mask]
        self.image[:, mask] = colour[:, None] + shade[None]
        self.label[mask] = CLASS_NAMES.index(name)

    def colour(self, base: tuple[float, float, float], spread: float = 0.08) -> Array:
        return (np.asarray(base) + self.rng.uniform(-spread, spread, 3)).astype(np.float32)

    def background(self) -> None:
        line = self.horizon + self.rng.uniform(-0.06, 0.06) * (self.x - 0.5)
        above = self.y < line
        self.paint(above, self.colour((0.55, 0.68, 0.85)), 0.2 * (self.y - 0.3), "sky")
        depth = np.clip(self.y - line, 1e-3, None)
        rows = 0.03 * np.sin(6 / (depth + 0.08) + self.rng.uniform(0, 6))
        self.paint(~above, self.colour((0.45, 0.42, 0.38)), rows + 0.1 * self.grain, "ground")

    def walls(self) -> None:
        for _ in range(self.rng.integers(1, 4)):
            left, width = self.rng.uniform(-0.1, 0.8), self.rng.uniform(0.15, 0.4)
            top, bottom = self.rng.uniform(0.05, self.horizon - 0.05), self.horizon + self.rng.uniform(0, 0.06)
            inside = (self.x > left) & (self.x < left + width) & (self.y > top) & (self.y < bottom)
            pitch = self.rng.uniform(0.05, 0.08)
            windows = ((self.x - left) % pitch > 0.6 * pitch) & ((self.y - top) % (1.5 * pitch) > 0.8 * pitch)
            self.paint(inside, self.colour((0.62, 0.42, 0.33)), -0.18 * windows, "wall")

    def foliage(self) -> None:
        for _ in range(self.rng.integers(1, 3)):
            cx, cy = self.rng.uniform(0, 1), self.horizon + self.rng.uniform(-0.2, 0.1)
            mask = np.zeros_like(self.label, bool)
            for _ in range(6):
                dx, dy = self.rng.normal(0, 0.06, 2)
                radius = self.rng.uniform(0.05, 0.1)
                mask |= (self.x - cx - dx) ** 2 + (self.y - cy - dy) ** 2 < radius**2
            self.paint(mask, self.colour((0.22, 0.42, 0.18)), 0.35 * self.grain, "foliage")

    def vehicles(self) -> None:
        for _ in range(self.rng.integers(1, 4)):
            width, height = self.rng.uniform(0.12, 0.28), self.rng.uniform(0.07, 0.13)
            left, top = self.rng.uniform(-0.05, 0.9), self.horizon + self.rng.uniform(-0.02, 0.3)
            u, v = (self.x - left) / width, (self.y - top) / height
            body = (u > 0) & (u < 1) & (v > 0.4) & (v < 1)
            cabin = (v > 0) & (v <= 0.4) & (np.abs(u - 0.5) < 0.25 + 0.25 * v)
            hue = self.rng.uniform(0, 1, 3).astype(np.float32)
            hue = 0.2 + 0.6 * (hue - hue.min()) / (hue.max() - hue.min() + 1e-3)
            dark = 0.25 * ((v > 0.1) & (v < 0.4)) + 0.3 * ((v > 0.85) & (np.abs(np.abs(u - 0.5) - 0.3) < 0.1))
            self.paint(body | cabin, hue.astype(np.float32), -dark, "vehicle")

    def balls(self) -> None:
        for _ in range(self.rng.integers(1, 4)):
            cx, cy, radius = self.rng.uniform(0, 1), self.rng.uniform(0.15, 0.95), self.rng.uniform(0.035, 0.09)
            distance = ((self.x - cx) ** 2 + (self.y - cy) ** 2) / radius**2
            light = 0.25 * (1 - distance) - 0.3 * ((self.x - cx) + (self.y - cy)) / radius * 0.3
            self.paint(distance < 1, self.colour((0.85, 0.68, 0.2)), light, "ball")

    def thin(self) -> None:
        tone = self.colour((0.16, 0.16, 0.18), 0.06)
        mask = np.zeros_like(self.label, bool)
        for _ in range(self.rng.integers(1, 4)):  # poles
            at, half = self.rng.uniform(0.03, 0.97), self.rng.uniform(0.008, 0.014)
            lean = self.rng.uniform(-0.04, 0.04)
            reach = (self.y > self.rng.uniform(0, 0.3)) & (self.y < self.horizon + self.rng.uniform(0.1, 0.4))
            mask |= (np.abs(self.x - at - lean * self.y) < half) & reach
        for _ in range(self.rng.integers(0, 2)):  # wires
            height, sag = self.rng.uniform(0.05, 0.3), self.rng.uniform(0.02, 0.12)
            mask |= np.abs(self.y - height - sag * (1 - (2 * self.x - 1) ** 2)) < 0.007
        if self.rng.random() < 0.4:  # a fence
            left, width, pitch = self.rng.uniform(0, 0.7), self.rng.uniform(0.2, 0.4), self.rng.uniform(0.05, 0.07)
            top = self.horizon + self.rng.uniform(0.02, 0.25)
            area = (self.x > left) & (self.x < left + width) & (self.y > top) & (self.y < top + 0.1)
            mask |= area & (((self.x - left) % pitch < 0.014) | (np.abs(self.y - top - 0.03) < 0.007))
        self.paint(mask, tone, 0.05 * self.grain, "thin")

    def finish(self) -> Scene:
        slope = self.rng.uniform(-0.25, 0.25, 2)
        light = 1 + slope[0] * (self.x - 0.5) + slope[1] * (self.y - 0.5)
        noise = self.rng.standard_normal(self.image.shape, dtype=np.float32) * self.rng.uniform(0.02, 0.06)
        image = np.clip(self.image * light * self.rng.uniform(0.8, 1.15) + noise, 0, 1).astype(np.float32)
        return Scene(torch.from_numpy(image), torch.from_numpy(self.label))
