"""Train the bundled segmenter on procedural scenes, made as they are needed.

    python -m lvtp_fx.models.train --out runs/segmenter            # resumes by itself where it was stopped

Needs `lvtp_fx[demo]`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import nn

from lvtp_fx.models.checkpoint import save_checkpoint
from lvtp_fx.models.metrics import SegmentationMeter
from lvtp_fx.models.run_state import load_state, save_state
from lvtp_fx.models.scenes import CLASS_NAMES, make_batch, make_scene
from lvtp_fx.models.segmenter import Segmenter, SegmenterConfig, normalize
from lvtp_fx.models.training import Optimised, progress_bar, warmup_cosine

HELD_OUT = 1_000_000_000  # training scenes have seeds below it, held-out scenes from it on
STAGES = ("128:1200:0.001", "192:240:0.0005")  # of the bundled checkpoint, as is BATCH
BATCH = 8


@dataclass(frozen=True)
class Stage:
    """`steps` optimiser steps on scenes of `size` pixels, from learning rate `lr` down to a hundredth of it.

    Raises:
        ValueError: for a value that is not positive and finite.
    """

    size: int
    steps: int
    lr: float

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} of a stage must be positive, got {value}")

    @classmethod
    def parse(cls, text: str) -> Stage:
        """'128:1200:0.001' to Stage(128, 1200, 0.001).

        Raises:
            ValueError: for other text.
        """
        try:
            size, steps, lr = text.split(":")
            values = int(size), int(steps), float(lr)
        except ValueError:
            raise ValueError(f"a stage is size:steps:lr, as in {STAGES[0]}, got {text!r}") from None
        return cls(*values)


def learning_rate(stage: Stage, step: int) -> float:
    """Linear warm-up over a twentieth of the stage, then cosine."""
    return warmup_cosine(stage.lr, stage.steps, step)


def resized(state: dict[str, torch.Tensor], config: SegmenterConfig) -> dict[str, torch.Tensor]:
    """Weights for another image size: the position embedding is interpolated over the grid."""
    table = state["pos_embed"]
    side = math.isqrt(table.shape[1])
    planes = table.transpose(1, 2).unflatten(2, (side, side))
    planes = F.interpolate(planes, (config.grid, config.grid), mode="bicubic", align_corners=False)
    return {**state, "pos_embed": planes.flatten(2).transpose(1, 2).contiguous()}


def loss_of(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Cross-entropy plus soft Dice over classes, which keeps rare classes from being ignored."""
    hot = F.one_hot(label, logits.shape[1]).movedim(-1, 1).float()
    share = logits.softmax(1)
    overlap, total = (share * hot).sum((0, 2, 3)), (share + hot).sum((0, 2, 3))
    return F.cross_entropy(logits, label) + 0.5 * (1 - (2 * overlap / (total + 1)).mean())


def evaluate(model: nn.Module, size: int, scenes: int, batch: int = 8) -> SegmentationMeter:
    """Confusion counts over held-out scenes.

    Raises:
        ValueError: for fewer than one scene, or one a batch.
    """
    _check_positive(scenes=scenes, batch=batch)
    meter = SegmentationMeter(len(CLASS_NAMES))
    with torch.inference_mode(), progress_bar() as progress:
        for first in progress.track(range(0, scenes, batch), description=f"{scenes} held-out scenes"):
            seeds = range(HELD_OUT + first, HELD_OUT + min(scenes, first + batch))
            images, labels = make_batch(seeds, size)
            meter.update(model(normalize(images)).argmax(1), labels)
    return meter


class Trainer(Optimised[Segmenter]):
    """Model, averaged weights and optimiser of one stage, and where it stands."""

    def __init__(self, config: SegmenterConfig, state: dict[str, torch.Tensor] | None, average: float) -> None:
        model = Segmenter(config)
        if state is not None:
            model.load_state_dict(resized(state, config))
        super().__init__(model, average)

    def train_step(self, stage: Stage, batch: int, first_seed: int) -> float:
        """One step on scenes that no other step sees."""
        start = first_seed + self.step * batch
        images, labels = make_batch(range(start, start + batch), stage.size)
        return self.update(loss_of(self.model(normalize(images)), labels), learning_rate(stage, self.step))


def train(
    config: SegmenterConfig, stages: Sequence[Stage], out: Path, *, batch: int = BATCH, seed: int = 0,
    average: float = 0.998, save_every: int = 200, stop_after: int | None = None,
) -> Trainer | None:
    """Run the stages, resuming from `out/last.pt`. Returns the trainer of the last stage, or None where
    `stop_after` steps (over all stages) were done before the end.

    Raises:
        ValueError: for values that cannot be trained with (found before the first step), or where `out` holds
            another run.
    """
    _check_positive(stages=len(stages), batch=batch, save_every=save_every)
    if config.classes != len(CLASS_NAMES):
        raise ValueError(f"scenes have {len(CLASS_NAMES)} classes, the config has {config.classes}")
    if not 0 <= seed <= HELD_OUT - batch * sum(stage.steps for stage in stages):
        raise ValueError(f"seed {seed} is negative, or the run would reach the held-out scenes")
    sizes = [replace(config, img_size=stage.size) for stage in stages]
    for stage in stages:
        make_scene(0, stage.size)  # refuses what is too small
    run = {"config": asdict(config), "batch": batch, "seed": seed, "average": average,
           "stages": [asdict(stage) for stage in stages]}
    out.mkdir(parents=True, exist_ok=True)
    saved = load_state(out, run)
    done, weights = 0, None
    trainer: Trainer | None = None
    with progress_bar() as progress:
        for number, (stage, size) in enumerate(zip(stages, sizes, strict=True)):
            torch.manual_seed(seed)
            if saved is not None and saved[0] > number:
                done += stage.steps
                continue
            if saved is not None and saved[0] == number:
                trainer = Trainer(size, None, average)
                trainer.load(saved[1])
            else:
                trainer = Trainer(size, weights, average)
            task = progress.add_task(f"stage {number + 1}, {stage.size} px", total=stage.steps, completed=trainer.step)
            first_seed = seed + sum(s.steps for s in stages[:number]) * batch
            while trainer.step < stage.steps:
                if stop_after is not None and done + trainer.step >= stop_after:
                    save_state(out, run, number, trainer.state())
                    return None
                loss = trainer.train_step(stage, batch, first_seed)
                progress.update(task, advance=1, description=f"stage {number + 1}, {stage.size} px, loss {loss:.3f}")
                if trainer.step % save_every == 0:
                    save_state(out, run, number, trainer.state())
                    if not progress.console.is_terminal:
                        progress.console.print(f"stage {number + 1} step {trainer.step} loss {loss:.4f}")
            save_state(out, run, number, trainer.state())
            done, weights = done + stage.steps, trainer.mean.state_dict()
    return trainer


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")


def export(trainer: Trainer, stages: Sequence[Stage], out: Path, scenes: int, batch: int) -> dict[str, Any]:
    """Write `model.safetensors` (averaged weights) and `model.json`, with the mIoU measured on held-out scenes."""
    model = trainer.mean.eval()
    meter = evaluate(model, model.config.img_size, scenes)
    size = model.config.img_size
    spec = {
        "what": "plain ViT segmenter trained on procedural scenes (lvtp_fx.models.scenes)",
        "segmenter": asdict(model.config), "img_size": [size, size], "classes": len(CLASS_NAMES), "ignore_index": None,
        "normalize": {"scale": "0-1", "mean": [0.5] * 3, "std": [0.25] * 3},
        "trained": {"stages": [asdict(s) for s in stages], "batch": batch},
        "held_out": {"scenes": scenes, "first_seed": HELD_OUT, "miou": round(100 * meter.miou(), 2),
                     "boundary_miou": round(100 * meter.boundary_miou(), 2)},
        "licence": "Apache-2.0",
    }
    save_checkpoint(out, model, spec)
    return spec


def main(
    out: Annotated[Path, typer.Option(file_okay=False, help="folder for the run; resumes from it")],
    stage: Annotated[list[str] | None, typer.Option(help="size:steps:lr, repeatable")] = None,
    batch: Annotated[int, typer.Option(min=1, help="scenes a step")] = BATCH,
    scenes: Annotated[int, typer.Option(min=1, help="held-out scenes of the final evaluation")] = 256,
) -> None:
    """Train, then write model.safetensors and model.json into the folder.

    Without --stage as the bundled checkpoint was: 128:1200:0.001, then 192:240:0.0005.
    """
    try:
        stages = [Stage.parse(text) for text in stage or STAGES]
        trainer = train(SegmenterConfig(), stages, out, batch=batch)
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    assert trainer is not None  # nothing stops it early
    typer.echo(json.dumps(export(trainer, stages, out, scenes, batch)["held_out"]))


if __name__ == "__main__":
    typer.run(main)
