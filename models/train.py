"""Train the bundled segmenter on procedural scenes, made as they are needed.

    python -m lvtp_fx.models.train --out runs/segmenter            # resumes by itself where it was stopped
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import nn

from lvtp_fx.models.metrics import SegmentationMeter
from lvtp_fx.models.scenes import CLASS_NAMES, make_batch
from lvtp_fx.models.segmenter import Segmenter, SegmenterConfig, normalize

HELD_OUT = 1_000_000_000  # training scenes have seeds below it, held-out scenes from it on


@dataclass(frozen=True)
class Stage:
    """`steps` optimiser steps on scenes of `size` pixels, from learning rate `lr` down to a hundredth of it."""

    size: int
    steps: int
    lr: float

    @classmethod
    def parse(cls, text: str) -> Stage:
        size, steps, lr = text.split(":")
        return cls(int(size), int(steps), float(lr))


def learning_rate(stage: Stage, step: int) -> float:
    """Linear warm-up over a twentieth of the stage, then cosine."""
    warm = max(1, stage.steps // 20)
    if step < warm:
        return stage.lr * (step + 1) / warm
    phase = (step - warm) / max(1, stage.steps - warm)
    return stage.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * phase)))


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
    """Confusion counts over held-out scenes."""
    meter = SegmentationMeter(len(CLASS_NAMES))
    with torch.inference_mode():
        for first in range(0, scenes, batch):
            seeds = range(HELD_OUT + first, HELD_OUT + min(scenes, first + batch))
            images, labels = make_batch(seeds, size)
            meter.update(model(normalize(images)).argmax(1), labels)
    return meter


class Trainer:
    """Model, averaged weights and optimiser of one stage, and where it stands."""

    def __init__(self, config: SegmenterConfig, state: dict[str, torch.Tensor] | None, average: float) -> None:
        self.model = Segmenter(config)
        if state is not None:
            self.model.load_state_dict(resized(state, config))
        self.mean = copy.deepcopy(self.model).requires_grad_(False)
        self.average = average
        decay = [p for p in self.model.parameters() if p.ndim > 1]
        plain = [p for p in self.model.parameters() if p.ndim <= 1]
        self.optimiser = torch.optim.AdamW(
            [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], betas=(0.9, 0.98))
        self.step = 0

    def train_step(self, stage: Stage, batch: int, first_seed: int) -> float:
        """One step on scenes that no other step sees."""
        start = first_seed + self.step * batch
        images, labels = make_batch(range(start, start + batch), stage.size)
        loss = loss_of(self.model(normalize(images)), labels)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(stage, self.step)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        keep = min(self.average, (1 + self.step) / (10 + self.step))
        for mean, now in zip(self.mean.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(now.detach(), 1 - keep)
        self.step += 1
        return float(loss.detach())

    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "mean": self.mean.state_dict(),
                "optimiser": self.optimiser.state_dict(), "step": self.step}

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.mean.load_state_dict(state["mean"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]


def train(
    config: SegmenterConfig, stages: Sequence[Stage], out: Path, *, batch: int = 16, seed: int = 0,
    average: float = 0.998, save_every: int = 200, stop_after: int | None = None,
) -> Trainer | None:
    """Run the stages, resuming from `out/last.pt`. Returns the trainer of the last stage, or None where
    `stop_after` steps (over all stages) were done before the end."""
    out.mkdir(parents=True, exist_ok=True)
    saved = torch.load(out / "last.pt", weights_only=True) if (out / "last.pt").exists() else None
    done, weights = 0, None
    trainer: Trainer | None = None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        for number, stage in enumerate(stages):
            torch.manual_seed(seed)
            size = SegmenterConfig(**{**asdict(config), "img_size": stage.size})
            if saved is not None and saved["stage"] > number:
                done += stage.steps
                continue
            if saved is not None and saved["stage"] == number:
                trainer = Trainer(size, None, average)
                trainer.load(saved["trainer"])
            else:
                trainer = Trainer(size, weights, average)
            task = progress.add_task(f"stage {number + 1}, {stage.size} px", total=stage.steps, completed=trainer.step)
            first_seed = seed + sum(s.steps for s in stages[:number]) * batch
            while trainer.step < stage.steps:
                if stop_after is not None and done + trainer.step >= stop_after:
                    _save(out, number, trainer)
                    return None
                loss = trainer.train_step(stage, batch, first_seed)
                progress.update(task, advance=1, description=f"stage {number + 1}, {stage.size} px, loss {loss:.3f}")
                if trainer.step % save_every == 0:
                    _save(out, number, trainer)
                    if not progress.console.is_terminal:
                        progress.console.print(f"stage {number + 1} step {trainer.step} loss {loss:.4f}")
            _save(out, number, trainer)
            done, weights = done + stage.steps, trainer.mean.state_dict()
    return trainer


def _save(out: Path, stage: int, trainer: Trainer) -> None:
    partial = out / "last.pt.partial"
    torch.save({"stage": stage, "trainer": trainer.state()}, partial)
    partial.replace(out / "last.pt")  # a stopped process leaves the old file whole


def export(trainer: Trainer, stages: Sequence[Stage], out: Path, scenes: int, batch: int) -> dict[str, Any]:
    """Write `model.safetensors` (averaged weights) and `model.json`, with the mIoU measured on held-out scenes."""
    model = trainer.mean.eval()
    meter = evaluate(model, model.config.img_size, scenes)
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, out / "model.safetensors")
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
    (out / "model.json").write_text(json.dumps(spec, indent=1) + "\n")
    return spec


def main(
    out: Annotated[Path, typer.Option(help="folder for the run; resumes from it")],
    stage: Annotated[list[str] | None, typer.Option(help="size:steps:lr, repeatable")] = None,
    batch: Annotated[int, typer.Option(help="scenes a step")] = 16,
    scenes: Annotated[int, typer.Option(help="held-out scenes of the final evaluation")] = 256,
) -> None:
    """Train, then write model.safetensors and model.json into the folder."""
    stages = [Stage.parse(s) for s in stage or ["128:3000:0.0015", "192:700:0.0004"]]
    trainer = train(SegmenterConfig(), stages, out, batch=batch)
    assert trainer is not None
    typer.echo(json.dumps(export(trainer, stages, out, scenes, batch)["held_out"]))


if __name__ == "__main__":
    typer.run(main)
