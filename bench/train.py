"""Train a ViT segmenter on CamVid, or on any folder laid out like it.

    python bench/train.py --data DIR --model mask --out RUN --epochs 40                       # from random weights
    python bench/train.py --data DIR --model patch8 --out RUN --epochs 8 --init CHECKPOINT    # from another model's

A stopped run goes on from RUN, on the CPU with the same bits as if nothing had stopped it. RUN then holds log.jsonl
(loss and validation figures by epoch), and at the end model.safetensors and model.json, which `bench/accuracy.py
--checkpoint RUN` reads. Needs `pip install -e '.[demo]'`.
"""

from __future__ import annotations

import copy
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from rich.progress import Progress
from torch import nn
from torch.utils.data import DataLoader, Subset
from train_images import Draws, class_weights
from train_models import KINDS, card_of, warm_start

from lvtp_fx.models.camvid import CamVid
from lvtp_fx.models.checkpoint import build, load_checkpoint, save_checkpoint
from lvtp_fx.models.metrics import SegmentationMeter
from lvtp_fx.models.run_state import load_state, save_state
from lvtp_fx.models.training import Optimised, progress_bar, warmup_cosine
from lvtp_fx.ranks import find_device

LICENCE = "trained on CamVid, CC BY-NC 4.0: research use"
SAVE_EVERY = 40  # steps, and at the end of each epoch


@dataclass(frozen=True)
class Recipe:
    """What a run's bits depend on, apart from the data and the start.

    Attributes:
        model: key of `KINDS`.
        lr: highest learning rate; warm-up over a twentieth of the run, then cosine.
        average: of the weights' moving average.
        balance: 0 where each pixel counts the same in the loss, 1 where each class does.
        scale_min: smallest of the random scales, see `Draws`.
    """

    model: str
    epochs: int
    batch: int
    lr: float
    average: float
    balance: float
    scale_min: float
    seed: int
    device: str
    bf16: bool


class Run:
    """One training run, or the rest of it."""

    def __init__(self, folder: Path, out: Path, recipe: Recipe, init: Path | None, workers: int = 0) -> None:
        """Raises:
            FileNotFoundError, ValueError: data, start, recipe or `out` cannot be trained with.
        """
        if recipe.model not in KINDS:
            raise ValueError(f"--model must be one of {', '.join(KINDS)}, got {recipe.model!r}")
        kind = KINDS[recipe.model]
        self.out, self.recipe, self.workers = out, recipe, workers
        self.train = CamVid(folder, "train", kind.read)
        source, begun = (None, None) if init is None else load_checkpoint(init)
        self.card = card_of(kind, self.train, begun)
        torch.manual_seed(recipe.seed)
        model, self.spec = build(self.card)
        self.val = CamVid(folder, "val", self.spec.img_size)
        self.draws = Draws(self.train, self.spec, recipe.batch, recipe.epochs, recipe.seed, recipe.scale_min)
        self.epoch_steps = self.draws.each // recipe.batch
        self.card["init"] = None
        if init is not None and source is not None and begun is not None:
            self.card["init"] = {"checkpoint": init.name, "what": begun.what, "new": warm_start(model, source)}
        self.trainer = Optimised(model.to(recipe.device).train(), recipe.average)
        self.settings = {**asdict(recipe), "init": self.card["init"], "images": len(self.train)}
        self.log: list[dict[str, Any]] = []
        self.losses: list[float] = []  # of the epoch under way
        saved = load_state(out, self.settings)
        if saved is not None:
            self.trainer.load(saved[1])
            self.log, self.losses = saved[1]["log"], saved[1]["losses"]

    def save(self) -> None:
        state = {**self.trainer.state(), "log": self.log, "losses": self.losses}
        save_state(self.out, self.settings, 0, state)
        (self.out / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in self.log))

    def fit(self, progress: Progress, eval_every: int = 1) -> None:
        """Train to the end, with validation figures each `eval_every` epochs and after the last."""
        recipe, trainer = self.recipe, self.trainer
        self.out.mkdir(parents=True, exist_ok=True)
        steps, start = self.epoch_steps * recipe.epochs, time.monotonic()
        weights = class_weights(self.train, self.spec.classes, recipe.balance) if recipe.balance else None
        rest = Subset(self.draws, range(trainer.step * recipe.batch, len(self.draws)))
        task = progress.add_task(recipe.model, total=steps, completed=trainer.step)
        for image, label in DataLoader(rest, recipe.batch, num_workers=self.workers):
            lr = warmup_cosine(recipe.lr, steps, trainer.step)
            self.losses.append(trainer.update(self.loss(image, label, weights), lr))
            epoch, within = divmod(trainer.step, self.epoch_steps)
            progress.update(task, advance=1, description=f"{recipe.model}, epoch {epoch + bool(within)}, "
                            f"loss {self.losses[-1]:.3f}, lr {lr:.1e}")
            if not within:
                line = {"epoch": epoch, "step": trainer.step, "loss": sum(self.losses) / len(self.losses), "lr": lr,
                        "seconds": round(time.monotonic() - start)}
                self.losses, start = [], time.monotonic()
                if epoch % eval_every == 0 or epoch == recipe.epochs:
                    line |= self.evaluate(progress)
                self.log.append(line)
                progress.console.print(json.dumps(line), soft_wrap=True)
            if not within or trainer.step % SAVE_EVERY == 0:
                self.save()

    def loss(self, image: torch.Tensor, label: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        device = self.recipe.device
        with torch.autocast(device, torch.bfloat16, enabled=self.recipe.bf16):
            logits = self.trainer.model(self.spec.preprocess(image.to(device)))
        return F.cross_entropy(logits.float(), label.to(device), None if weights is None else weights.to(device),
                               ignore_index=self.train.ignore_index)

    def stored(self) -> nn.Module:
        """The averaged weights as the file will have them, in half the bytes."""
        return copy.deepcopy(self.trainer.mean).half().float().eval()

    def evaluate(self, progress: Progress) -> dict[str, float]:
        """Figures of `stored` on the validation images, in percent."""
        model, device = self.stored(), self.recipe.device
        meter = SegmentationMeter(self.spec.classes, self.spec.ignore_index)
        task = progress.add_task("validation images", total=len(self.val))
        with torch.inference_mode():
            for image, label in DataLoader(self.val, self.recipe.batch, num_workers=self.workers):
                meter.update(model(self.spec.preprocess(image.to(device))).argmax(1).cpu(), label)
                progress.update(task, advance=len(image))
        progress.remove_task(task)
        return {"val_miou": round(100 * meter.miou(), 2), "val_boundary_miou": round(100 * meter.boundary_miou(), 2)}

    def export(self, licence: str) -> dict[str, Any]:
        """Write model.safetensors (float16) and model.json; returns the figures of the last epoch."""
        last, begun = self.log[-1], self.card["init"]
        figures = {"images": len(self.val), "miou": last["val_miou"], "boundary_miou": last["val_boundary_miou"]}
        start = "random weights" if begun is None else f"{begun['checkpoint']} ({begun['what']})"
        card = {
            **self.card,
            "what": f"{self.card['timm_name']} {json.dumps(self.card['timm_kwargs'])} + {self.card['head']} head, "
                    f"{self.recipe.epochs} epochs on {len(self.train)} images of {self.train.folder.name}, "
                    f"from {start}",
            "trained": {**asdict(self.recipe), "steps": self.trainer.step, "loss": round(last["loss"], 4)},
            "val": figures, "licence": licence,
        }
        save_checkpoint(self.out, self.stored(), card, torch.float16)
        return figures


def main(
    data: Annotated[Path, typer.Option(help="folder laid out like CamVid")],
    model: Annotated[str, typer.Option(help=" or ".join(KINDS))],
    out: Annotated[Path, typer.Option(file_okay=False, help="folder for the run; resumes from it")],
    init: Annotated[Path | None, typer.Option(help="checkpoint folder to start from; without it random")] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 60,
    batch: Annotated[int, typer.Option(min=1, help="images a step")] = 4,
    lr: Annotated[float, typer.Option(min=0, help="highest learning rate")] = 3e-4,
    average: Annotated[float, typer.Option(min=0, max=0.9999, help="of the weights' moving average")] = 0.99,
    balance: Annotated[float, typer.Option(min=0, max=1, help="0: pixels count alike, 1: classes do")] = 0.25,
    scale_min: Annotated[float, typer.Option(min=0.1, max=2, help="images are scaled by this to 2")] = 0.5,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    bf16: Annotated[bool, typer.Option(help="autocast to bfloat16")] = False,
    eval_every: Annotated[int, typer.Option(min=1, help="epochs between two validations")] = 1,
    workers: Annotated[int, typer.Option(min=0, help="processes that load images")] = 0,
    licence: Annotated[str, typer.Option(help="note for model.json: what the data allows")] = LICENCE,
) -> None:
    """Train, print the validation figures, leave a checkpoint in the folder."""
    try:
        recipe = Recipe(model, epochs, batch, lr, average, balance, scale_min, seed, find_device(device).type, bf16)
        run = Run(data, out, recipe, init, workers)
    except (FileNotFoundError, ValueError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    with progress_bar() as progress:
        run.fit(progress, eval_every)
    typer.echo(json.dumps(run.export(licence)))


if __name__ == "__main__":
    typer.run(main)
