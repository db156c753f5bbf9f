"""One process, or several under torchrun, behind the same few calls."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    """This process among `world` ones; `device` is its own."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def gather(self, part: Any) -> list[Any]:
        """Every process's part, in the order of ranks, everywhere. All processes must call it."""
        parts: list[Any] = [part] * self.world
        if self.world > 1:
            dist.all_gather_object(parts, part)
        return parts

    def share(self, value: Any) -> Any:
        """The first process's value, everywhere. All processes must call it."""
        box = [value]
        if self.world > 1:
            dist.broadcast_object_list(box, 0)
        return box[0]


def find_device(name: str) -> torch.device:
    """This process's own device.

    Args:
        name: "cpu", "cuda" (a GPU each under torchrun), or "auto": cuda where there is one.

    Raises:
        ValueError: another name, or CUDA is asked for and missing.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device must be auto, cpu or cuda, got {name!r}")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("--device cuda: torch finds no GPU here")
    kind = "cuda" if available and name != "cpu" else "cpu"
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if kind == "cuda" else torch.device("cpu")


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """The processes that torchrun started, or this one alone. They talk over nccl where each has a GPU, else gloo."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_torchelastic_launched():
        yield Ranks(0, 1, device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    yield Ranks(dist.get_rank(), dist.get_world_size(), device)
    dist.destroy_process_group()  # not after an error: it would wait for processes that are gone


def reproducible(threads: int, device: torch.device) -> None:
    """The same bits whatever the number of processes, and in every run.

    How many threads add up a sum decides its last bit, so their number is the user's, not the machine's."""
    torch.set_num_threads(threads)
    torch.backends.mha.set_fastpath_enabled(False)  # a kernel of eager mode that no graph can hold
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
