"""One process, or several under torchrun, behind the same few calls."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from lvtp_fx.errors import LvtpError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process, number `rank` among `world` ones."""

    rank: int
    world: int

    @property
    def first(self) -> bool:
        return self.rank == 0

    def gather(self, part: T) -> list[T]:
        """Every process's part, in the order of ranks, everywhere. All processes must call it."""
        parts: list[T] = [part] * self.world
        if self.world > 1:
            dist.all_gather_object(parts, part)
        return parts

    def share(self, value: T) -> T:
        """The first process's value, everywhere. All processes must call it."""
        box = [value]
        if self.world > 1:
            dist.broadcast_object_list(box, 0)
        return box[0]

    def each(self, work: Callable[[], T]) -> list[T]:
        """What `work` gives in every process, in the order of ranks, everywhere. All processes must call it.

        Raises:
            LvtpError: that of the first process whose `work` raised one; in all of them, so that none waits for it.
        """
        part: T | LvtpError
        try:
            part = work()
        except LvtpError as error:
            part = error
        found: list[T] = []
        for each in self.gather(part):
            if isinstance(each, LvtpError):
                raise each
            found.append(each)
        return found


def current() -> Ranks:
    """The processes of `torch.distributed`'s default group where it is initialised, else this one alone."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks(0, 1)


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """The processes that torchrun started, or this one alone. They talk over nccl where each has a GPU, else gloo.

    Args:
        device: this process's own.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not _launched():
        yield Ranks(0, 1)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    yield current()
    dist.destroy_process_group()  # not after an error: it would wait for processes that are gone


def own_number() -> int:
    """This process's among those that torchrun started, before they are joined too; 0 alone."""
    return int(os.environ["RANK"]) if _launched() else 0


def speaks() -> bool:
    """Whether this process tells the user what goes on: alone, or the first that torchrun started."""
    return own_number() == 0


def own_device(name: str) -> str:
    """"cuda" as this process's own GPU, one each under torchrun; other names as they are."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name == "cuda" else name


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
    return torch.device(own_device("cuda" if available and name != "cpu" else "cpu"))


def reproducible(device: torch.device, threads: int | None = None) -> None:
    """The same bits whatever the number of processes, and in every run.

    Args:
        threads: how many add up a sum decides its last bit, so their number is the user's, not the machine's. Without
            it, as many as the environment says (OMP_NUM_THREADS; torchrun sets it to 1 where it is not set).
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.backends.mha.set_fastpath_enabled(False)  # a kernel of eager mode that no graph can hold
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def _launched() -> bool:
    return dist.is_available() and dist.is_torchelastic_launched()
