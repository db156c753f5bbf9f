"""Latency of two models, measured in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lvtp_fx.stopwatch import accelerators, stopped_ms

Run = Callable[..., Any]


@dataclass(frozen=True)
class Latency:
    """Of one batch: median and quartiles in milliseconds."""

    median_ms: float
    low_ms: float
    high_ms: float

    @classmethod
    def of(cls, times_ms: Sequence[float]) -> Latency:
        low, median, high = statistics.quantiles(times_ms, n=4, method="inclusive")
        return cls(median, low, high)


def compiled(model: nn.Module, fast: nn.Module, *inputs: torch.Tensor) -> tuple[Run, Run, str]:
    """Both modules through torch.compile(fullgraph=True), run once, and how they were made.

    They come back as they are where the machine has no C++ compiler, which Inductor needs on a CPU.
    """
    from torch._dynamo.exc import TorchDynamoException  # here: it takes seconds to import

    dense: Run = torch.compile(model, fullgraph=True)
    try:
        dense(*inputs)
    except TorchDynamoException as error:
        # The plain model fails: it is the machine. Where only the pruned one fails, that is an error.
        return model, fast, f"eager (torch.compile needs a C++ compiler, here: {type(error).__name__})"
    pruned: Run = torch.compile(fast, fullgraph=True)
    pruned(*inputs)
    return dense, pruned, "torch.compile, fullgraph"


def latencies(
    runs: Sequence[Run], *inputs: torch.Tensor, rounds: int, warm_up: int = 3,
    turns: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> list[Latency]:
    """`in_turn`, summed up."""
    return [Latency.of(found) for found in in_turn(runs, *inputs, rounds=rounds, warm_up=warm_up, turns=turns)]


def in_turn(
    runs: Sequence[Run], *inputs: torch.Tensor, rounds: int, warm_up: int = 3,
    turns: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> list[list[float]]:
    """Milliseconds of each run in each round: A B A B, so that a machine that slows down slows all of them down.

    Args:
        turns: is handed the numbers of the turns and gives them back: a place for a progress bar.
    """
    times_ms: list[list[float]] = [[] for _ in runs]
    devices = accelerators(inputs)
    for turn in turns(range(warm_up + rounds)):
        for run, found in zip(runs, times_ms, strict=True):
            took_ms = stopped_ms(run, *inputs, devices=devices)
            if turn >= warm_up:
                found.append(took_ms)
    return times_ms
