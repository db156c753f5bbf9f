"""What every training run here shares: rates, clipped steps with averaged weights, a progress bar."""

from __future__ import annotations

import copy
import math
from typing import Any, Generic, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def warmup_cosine(lr: float, steps: int, step: int) -> float:
    """Linear warm-up to `lr` over a twentieth of `steps`, then cosine, down to a hundredth of it."""
    warm = max(1, steps // 20)
    if step < warm:
        return lr * (step + 1) / warm
    phase = (step - warm) / max(1, steps - warm)
    return lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * phase)))


class Optimised(Generic[Model]):
    """A model in training, its averaged weights and its optimiser.

    Attributes:
        model: the one that is trained.
        mean: a copy with the exponential moving average of its parameters; needs no gradient.
        step: steps done.
    """

    def __init__(self, model: Model, average: float) -> None:
        """Args:
            average: weight of the old average at each step, in [0, 1); smaller at the beginning, so that the
                random start is forgotten.
        """
        self.model, self.mean = model, copy.deepcopy(model).requires_grad_(False)
        self.average, self.step = average, 0
        decay = [p for p in self.model.parameters() if p.ndim > 1]
        plain = [p for p in self.model.parameters() if p.ndim <= 1]
        self.optimiser = torch.optim.AdamW(
            [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], betas=(0.9, 0.98))

    def update(self, loss: torch.Tensor, lr: float) -> float:
        """One step down the gradient of `loss`, a scalar; returns its value."""
        for group in self.optimiser.param_groups:
            group["lr"] = lr
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
        """What `load` needs to go on with the same bits."""
        return {"model": self.model.state_dict(), "mean": self.mean.state_dict(),
                "optimiser": self.optimiser.state_dict(), "step": self.step}

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.model.load_state_dict(state["model"])
        self.mean.load_state_dict(state["mean"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]


def progress_bar(shown: bool = True) -> Progress:
    """On stderr: what a run prints to stdout is its result."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not shown)
