"""The file a training run resumes from."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from lvtp_fx.replacing import replacing

NAME = "last.pt"


def save_state(folder: Path, run: dict[str, Any], stage: int, trainer: dict[str, Any]) -> None:
    """Write where a run stands: its settings, the number of its stage, and the trainer's state."""
    with replacing(folder / NAME) as draft:
        torch.save({"run": run, "stage": stage, "trainer": trainer}, draft)


def load_state(folder: Path, run: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
    """Stage and trainer's state of the same run, or None where nothing was saved.

    Raises:
        ValueError: where the file is broken or of another run. Stages not begun yet may differ.
    """
    path = folder / NAME
    if not path.exists():
        return None
    advice = "name another folder, or delete the file"
    try:
        saved = torch.load(path, weights_only=True)
        stage, trainer, before = saved["stage"], saved["trainer"], dict(saved["run"])
    except (EOFError, KeyError, RuntimeError, TypeError, UnpicklingError):
        raise ValueError(f"{path} cannot be resumed from: {advice}") from None
    for name, now in run.items():
        was = before.get(name)
        if name == "stages" and was is not None:
            was, now = was[: stage + 1], now[: stage + 1]
        if was != now:
            raise ValueError(f"{path} is of another run, its {name} was {was}, not {now}: {advice}")
    return stage, trainer
