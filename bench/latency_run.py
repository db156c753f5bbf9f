"""Time dense and pruned models in turn: A B C A B C ..., both compiled, and what that comes to."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rivals import rivals
from torch import nn
from torch._inductor.utils import fresh_cache

import lvtp_fx
from lvtp_fx import api, latency
from lvtp_fx.capture import Capture, capture
from lvtp_fx.cli.timing import Run, in_turn
from lvtp_fx.models.adapters import timm_segmenter
from lvtp_fx.models.checkpoint import load_checkpoint
from lvtp_fx.passes import pipeline
from lvtp_fx.stopwatch import accelerators, stopped_ms

CLASSES = 19


@dataclass(frozen=True)
class Case:
    """One model on one input.

    Attributes:
        model: of timm, with random weights and a linear head; or a checkpoint's folder.
        size: pixels of a side; None for a checkpoint, which has its own.
        depth: blocks, or None for as many as the model has.
    """

    model: str
    size: int | None
    batch: int
    dtype: str
    depth: int | None = None

    def build(self, device: str) -> tuple[nn.Module, torch.Tensor]:
        """The segmenter, and a batch of images."""
        torch.manual_seed(0)
        dtype = getattr(torch, self.dtype)
        if self.size is None:
            model, spec = load_checkpoint(self.model)
            sides = spec.img_size
        else:
            blocks = {} if self.depth is None else {"depth": self.depth}
            model = timm_segmenter(self.model, "linear", CLASSES, img_size=self.size, **blocks)
            sides = self.size, self.size
        return model.to(device, dtype), torch.rand(self.batch, 3, *sides).to(device, dtype)

    @property
    def name(self) -> str:
        return Path(self.model).name


@dataclass(frozen=True)
class Measured:
    """A pruned model against the dense one, in the same run.

    Attributes:
        aim: the wanted cut.
        ratio_low, ratio, ratio_high: dense time / pruned time of one turn: quartiles and median over the turns.
        inserted_ms: of scoring, clustering, gathers and restores as one compiled graph; nan where it was not asked for.
        compile_s_dense, compile_s_pruned: of the first call, with nothing in Inductor's caches.
        peak_mib_dense, peak_mib_pruned: of the accelerator's memory; 0 on a CPU.
        refused: why there is no pruned model, or "".
    """

    case: Case
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
    compile_s_dense: float = 0.0
    compile_s_pruned: float = 0.0
    peak_mib_dense: float = 0.0
    peak_mib_pruned: float = 0.0
    refused: str = ""

    @property
    def promised(self) -> float:
        """The speed that the FLOPs promise."""
        return self.gflops_dense / self.gflops_pruned

    @property
    def efficiency(self) -> float:
        """What the clock shows of it."""
        return self.ratio / self.promised


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
    captured = capture(model, (x,), {})  # once, for all that is made of it
    compiled = partial(torch.compile, fullgraph=True, mode=mode)
    runs, rows = [compiled(model)], []
    for strategy, cut in product(strategies, cuts):
        step(f"{strategy}, cut {cut:.0%}: transform")
        row, config = Measured(case, strategy, cut), lvtp_fx.Config(flops_cut=cut, **rivals()[strategy])
        try:
            fast = lvtp_fx.transform(captured, config=config)
        except lvtp_fx.LvtpError as error:
            rows.append(replace(row, refused=str(error).splitlines()[0]))
            continue
        report: Any = fast.report
        row = replace(row, gflops_dense=report.gflops_dense, gflops_pruned=report.gflops_pruned)
        rows.append(replace(row, inserted_ms=inserted_ms(captured, config)) if parts else row)
        runs.append(compiled(fast))
    first_calls = _compile(runs, x, step)
    with torch.inference_mode():
        times = in_turn(runs, x, rounds=turns, turns=lambda all_turns: _told(all_turns, step))
    done = zip(times, first_calls, strict=True)
    dense = next(done)
    return [row if row.refused else _with_times(row, *dense, *next(done)) for row in rows]


def _told(turns: Iterable[int], step: Callable[[str], None]) -> Iterator[int]:
    for turn in turns:
        step(f"turn {turn + 1}, warming up included")
        yield turn


def inserted_ms(captured: Capture, config: lvtp_fx.Config) -> float:
    """Milliseconds of the inserted ops, as one compiled graph."""
    plan = api.rewritten(api.prepare(captured, None, config), config)
    return latency.inserted_ms(plan, pipeline.finish(plan), captured)


class _Once(NamedTuple):
    """What is measured once: the seconds of the call that compiles, and the most memory of the next one in MiB."""

    compile_s: float
    peak_mib: float


def _compile(runs: Sequence[Run], x: torch.Tensor, step: Callable[[str], None]) -> list[_Once]:
    """Run each once, which compiles it, and once more."""
    found = []
    with torch.inference_mode():
        torch.compile(torch.neg)(x)  # Inductor's processes start
        for i, run in enumerate(runs):
            step(f"compile graph {i + 1} of {len(runs)}")
            with fresh_cache():
                compile_s = stopped_ms(run, x, devices=accelerators(x)) / 1e3
            if x.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            run(x)
            found.append(_Once(
                compile_s, torch.cuda.max_memory_allocated() / 2**20 if x.device.type == "cuda" else 0.0))
    return found


def _with_times(
    row: Measured, dense_ms: Sequence[float], dense: _Once, pruned_ms: Sequence[float], pruned: _Once
) -> Measured:
    ratios = [a / b for a, b in zip(dense_ms, pruned_ms, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return replace(row, dense_ms=statistics.median(dense_ms), pruned_ms=statistics.median(pruned_ms), ratio_low=low,
                   ratio=middle, ratio_high=high, compile_s_dense=dense.compile_s, peak_mib_dense=dense.peak_mib,
                   compile_s_pruned=pruned.compile_s, peak_mib_pruned=pruned.peak_mib)
