"""Figures of images that are done, kept in a folder, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lvtp_fx.replacing import replacing


@dataclass
class Kept:
    """What is known of one variant on one checkpoint.

    Attributes:
        cost: figures of the graph (`accuracy_run.cost`), {"refused": text} where there is none, {} before it is made.
        rows: counts of an image, int64 [F], by its id.
    """

    cost: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, torch.Tensor] = field(default_factory=dict)


class UnreadableError(Exception):
    """A file of the store is not what it should be."""


class Store:
    """One file a key: what the figures depend on, the cost, and a row of counts an image.

    A key is the text of all that the figures depend on, so what has changed since is never found.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"

    def load(self, key: str) -> Kept:
        """What is kept for a key; nothing where there is no file.

        Raises:
            UnreadableError: the file is none that `save` wrote for this key.
        """
        path = self.path(key)
        if not path.exists():
            return Kept()
        try:
            with np.load(path) as file:
                about, ids, counts = json.loads(str(file["about"])), file["ids"], torch.from_numpy(file["counts"])
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise UnreadableError(f"{path} cannot be read ({error}): delete it") from error
        if about["key"] != json.loads(key):
            raise UnreadableError(f"{path} holds other figures than its name says: delete it")
        return Kept(about["cost"], dict(zip(map(str, ids), counts, strict=True)))

    def save(self, key: str, kept: Kept) -> None:
        """Written whole, then moved in place: a run that is cut leaves the last good file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        counts = torch.stack(list(kept.rows.values())) if kept.rows else torch.zeros(0, 0, dtype=torch.int64)
        about = json.dumps({"key": json.loads(key), "cost": kept.cost})
        with replacing(self.path(key)) as draft, draft.open("wb") as file:
            np.savez_compressed(file, about=np.array(about), ids=np.array(list(kept.rows), dtype=str),
                                counts=counts.numpy())
