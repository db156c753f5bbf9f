"""A checkpoint of a segmenter that runs in no time, with random weights: what it predicts does not matter."""

from __future__ import annotations

from pathlib import Path

from lvtp_fx.models.checkpoint import save_checkpoint
from lvtp_fx.models.random_weights import randomise
from lvtp_fx.models.segmenter import Segmenter, SegmenterConfig


def write_tiny(folder: Path, seed: int = 0) -> Path:
    """The folder, filled: a model of 64 px and 7 classes, as many as drawn scenes have."""
    config = {"img_size": 64, "patch_size": 8, "classes": 7, "C": 32, "depth": 4, "heads": 2, "mlp_ratio": 2}
    save_checkpoint(folder, randomise(Segmenter(SegmenterConfig(**config)), seed), {
        "what": "random weights", "segmenter": config, "img_size": [64, 64], "classes": 7, "ignore_index": None,
        "normalize": {"scale": "0-1", "mean": [0.5] * 3, "std": [0.25] * 3}})
    return folder
