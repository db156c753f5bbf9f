"""Latency of two models, measured in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lvtp_fx.capture_refusals import first_line
from lvtp_fx.stopwatch import accelerators, stopped_ms

Run = Callable[..., Any]
WARM_UP = 3  # turns before those that count


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
    """Both modules through torch.compile, run once, and how they were made.

    Each is one graph, but for a model that Dynamo cannot take whole: that one is compiled as its user would compile it,
    in pieces. Both come back as they are where torch.compile fails on the model itself, as it does on a CPU without a
    C++ compiler. Where it fails on the pruned one only, that is an error.
    """
    from torch._dynamo.exc import TorchDynamoException  # here: it takes seconds to import

    dense: Run = torch.compile(model, fullgraph=True)
    how = "torch.compile, fullgraph"
    try:
        dense(*inputs)
    except TorchDynamoException as broken:
        dense, how = torch.compile(model), f"torch.compile, the dense model in pieces ({first_line(broken)})"
        try:
            dense(*inputs)
        except TorchDynamoException as error:
            return model, fast, f"eager (torch.compile fails: {first_line(error)})"
    pruned: Run = torch.compile(fast, fullgraph=True)
    pruned(*inputs)
    return dense, pruned, how


def latencies(
    runs: Sequence[Run], *inputs: torch.Tensor, rounds: int, warm_up: int = WARM_UP,
    turns: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> list[Latency]:
    """`in_turn`, summed up."""
    return [Latency.of(found) for found in in_turn(runs, *inputs, rounds=rounds, warm_up=warm_up, turns=turns)]


def in_turn(
    runs: Sequence[Run], *inputs: torch.Tensor, rounds: int, warm_up: int = WARM_UP,
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
