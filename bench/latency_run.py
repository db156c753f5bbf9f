"""Time dense and pruned models in turn: A B C A B C ..., both compiled, and what that comes to."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rivals import rivals
from torch import nn

import lvtp_fx
from lvtp_fx import api, latency
from lvtp_fx.models.adapters import timm_segmenter
from lvtp_fx.passes import pipeline

CLASSES = 19


@dataclass(frozen=True)
class Case:
    """One model on one input."""

    model: str
    size: int
    batch: int
    dtype: str

    def build(self, device: str) -> tuple[nn.Module, torch.Tensor]:
        """A segmenter with random weights and a linear head, and a batch of images."""
        torch.manual_seed(0)
        dtype = getattr(torch, self.dtype)
        model = timm_segmenter(self.model, "linear", classes=CLASSES, img_size=self.size).to(device, dtype)
        return model, torch.rand(self.batch, 3, self.size, self.size).to(device, dtype)


@dataclass(frozen=True)
class Measured:
    """A pruned model against the dense one, in the same run.

    Attributes:
        ratio_low, ratio, ratio_high: dense time / pruned time of one turn: quartiles and median over the turns.
        inserted_ms: of scoring, clustering, gathers and restores as one compiled graph; nan where it was not asked for.
        peak_mib: of the accelerator's memory; 0 on a CPU.
        refused: why there is no pruned model, or "".
    """

    model: str
    size: int
    batch: int
    dtype: str
    strategy: str
    aim: float
    gflops_dense: float = 0.0
    gflops_pruned: float = 0.0
    dense_ms: float = 0.0
    pruned_ms: float = 0.0
    ratio_low: float = 0.0
    ratio: float = 0.0
    ratio_high: float = 0.0
    inserted_ms: float = float("nan")
    peak_mib_dense: float = 0.0
    peak_mib_pruned: float = 0.0
    refused: str = ""

    @property
    def efficiency(self) -> float:
        """What the clock shows of what the FLOPs promise."""
        return self.ratio / (self.gflops_dense / self.gflops_pruned)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    case: Case, strategies: Sequence[str], cuts: Sequence[float], turns: int, device: str, mode: str | None,
    parts: bool, step: Callable[[str], None],
) -> list[Measured]:
    """Times of one model, each strategy at each cut.

    Args:
        turns: how often each graph is timed. mode: of torch.compile. parts: time what is inserted alone as well.
        step: told what is done next.
    """
    model, x = case.build(device)
    wait = torch.accelerator.synchronize if device != "cpu" else lambda: None
    runs, rows = [torch.compile(model, fullgraph=True, mode=mode)], []
    for strategy in strategies:
        for cut in cuts:
            step(f"{strategy}, cut {cut:.0%}: transform")
            row = Measured(**asdict(case), strategy=strategy, aim=cut)
            try:
                fast = lvtp_fx.transform(model, (x,), flops_cut=cut, **rivals()[strategy])
            except lvtp_fx.LvtpError as error:
                rows.append(Measured(**{**row.to_dict(), "refused": str(error).splitlines()[0]}))
                continue
            found: Any = fast.report
            figures = {"gflops_dense": found.gflops_dense, "gflops_pruned": found.gflops_pruned}
            if parts:
                figures["inserted_ms"] = inserted_ms(model, x, {"flops_cut": cut, **rivals()[strategy]})
            rows.append(Measured(**{**row.to_dict(), **figures}))
            runs.append(torch.compile(fast, fullgraph=True, mode=mode))
    times, peaks = _times(runs, x, turns, wait, step)
    done = iter(zip(times[1:], peaks[1:], strict=True))
    return [row if row.refused else _with_times(row, times[0], peaks[0], *next(done)) for row in rows]


def inserted_ms(model: nn.Module, x: torch.Tensor, options: dict[str, Any]) -> float:
    """Milliseconds of the inserted ops, as one compiled graph."""
    config = lvtp_fx.Config(**options)
    prepared = api.prepare(model, (x,), config)
    plan = api.rewritten(prepared, config)
    clock = latency.probe(prepared.plan.graph_module, prepared.captured)
    return latency.calibrated(clock, plan, pipeline.finish(plan), prepared.captured).inserted_ms


def _times(
    runs: Sequence[Callable[[torch.Tensor], Any]], x: torch.Tensor, turns: int, wait: Callable[[], None],
    step: Callable[[str], None],
) -> tuple[list[list[float]], list[float]]:
    """Milliseconds of each run in each turn, and the most memory of each in MiB."""
    times: list[list[float]] = [[] for _ in runs]
    peaks = []
    with torch.inference_mode():
        for i, run in enumerate(runs):
            step(f"compile graph {i + 1} of {len(runs)}")
            run(x)
            if x.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            run(x)
            peaks.append(torch.cuda.max_memory_allocated() / 2**20 if x.device.type == "cuda" else 0.0)
        for turn in range(turns):
            step(f"turn {turn + 1} of {turns}")
            for run, found in zip(runs, times, strict=True):
                wait()
                start = time.perf_counter()
                run(x)
                wait()
                found.append(1e3 * (time.perf_counter() - start))
    return times, peaks


def _with_times(row: Measured, dense: Sequence[float], dense_peak: float, pruned: Sequence[float],
                peak: float) -> Measured:
    ratios = [a / b for a, b in zip(dense, pruned, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Measured(**{
        **row.to_dict(), "dense_ms": statistics.median(dense), "pruned_ms": statistics.median(pruned),
        "ratio_low": low, "ratio": middle, "ratio_high": high, "peak_mib_dense": dense_peak, "peak_mib_pruned": peak,
    })
