"""The search of `calibrate`: successive halving over schedules, then steps from the best one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, log2

import torch
from torch import fx

from lvtp_fx.api import Prepared, rewritten
from lvtp_fx.capture import batch_size
from lvtp_fx.config import Config
from lvtp_fx.errors import Code, LvtpError
from lvtp_fx.example_inputs import Inputs
from lvtp_fx.likeness import likeness, miou, reference, tally
from lvtp_fx.passes import pipeline
from lvtp_fx.passes.find_trunk import refuse_unmatched
from lvtp_fx.plan import Trunk
from lvtp_fx.schedules import Schedule, default_schedule, neighbours, spread_schedules

_LARGEST_CUT, _HALVINGS = 0.9, 4  # of the interval of cuts that `deepest` looks in


@dataclass(frozen=True)
class Choice:
    """A schedule at a cut."""

    schedule: Schedule
    flops_cut: float


class Trial:
    """Runs choices on images and remembers what came out.

    Args:
        labels: none, or one for each of `inputs`.
        passes: how many images may be run; show: told how many were.

    Raises:
        LvtpError: LVTP102 without a trunk; LVTP105 for outputs or labels that cannot be compared; LVTP201 where
            `passes` does not suffice for the dense model and the default schedule.
    """

    def __init__(
        self, prepared: Prepared, base: Config, inputs: Sequence[Inputs], labels: Sequence[torch.Tensor],
        passes: int, show: Callable[[int], None],
    ) -> None:
        if prepared.plan.trunk is None:
            raise refuse_unmatched(prepared.plan)
        self.prepared, self.base, self.inputs, self.labels = prepared, base, inputs, labels
        self.trunk: Trunk = prepared.plan.trunk
        self.sizes = [batch_size(*each) for each in inputs]
        if passes < 4 * sum(self.sizes):
            raise LvtpError(
                Code.CONFIG_OUT_OF_RANGE, where="calibrate.passes", expected=f"at least {4 * sum(self.sizes)}",
                got=f"{passes}", why="four times the images: the dense model, the default and two more at the least",
                hint="more passes, or fewer images",
            )
        self.left, self.passes, self.show = passes, passes, show
        self.configs: dict[Choice, Config] = {}
        self.modules: dict[Choice, fx.GraphModule] = {}
        self.found: dict[Choice, list[torch.Tensor]] = {}  # by choice, for each image: likeness [] or counts [C, C]
        self.dense: list[list[torch.Tensor]] = []
        self.dense_found = [self._dense(i) for i in range(len(inputs))]

    def config(self, choice: Choice) -> Config:
        """For `transform`.

        Raises:
            LvtpError: LVTP202 where the schedule cannot reach the cut.
        """
        if choice not in self.configs:
            self.configs[choice] = choice.schedule.config(
                self.prepared.plan, self.base, self.prepared.dense_flops, choice.flops_cut)
        return self.configs[choice]

    def cost(self, choice: Choice, count: int) -> int:
        """Images yet to run for `quality`."""
        return sum(self.sizes[len(self.found.get(choice, [])) : count])

    def quality(self, choice: Choice, count: int) -> float:
        """On the first `count` of the inputs: likeness to the dense outputs, or mean IoU."""
        found = self.found.setdefault(choice, [])
        for i in range(len(found), count):
            output = self._run(self._module(choice), i)
            found.append(self._tally(output, i) if self.labels else torch.tensor(likeness(output, self.dense[i])))
        return self._mean(found[:count])

    def dense_quality(self) -> float:
        return self._mean(self.dense_found) if self.labels else 1.0

    def drop(self, modules: Sequence[Choice]) -> None:
        """Forget the graphs of choices that are out; what they scored is kept."""
        for choice in modules:
            self.modules.pop(choice, None)

    def _mean(self, found: Sequence[torch.Tensor]) -> float:
        return miou(torch.stack(list(found)).sum(0)) if self.labels else float(torch.stack(list(found)).mean())

    def _module(self, choice: Choice) -> fx.GraphModule:
        if choice not in self.modules:
            self.modules[choice] = pipeline.finish(rewritten(self.prepared, self.config(choice)))
        return self.modules[choice]

    def _run(self, module: fx.GraphModule, i: int) -> object:
        args, kwargs = self.inputs[i]
        with torch.no_grad():
            output = module(*args, **kwargs)
        self.left -= self.sizes[i]
        self.show(self.passes - self.left)
        return output

    def _dense(self, i: int) -> torch.Tensor:
        output = self._run(self.prepared.captured.module, i)
        try:
            self.dense.append(reference(output))
        except ValueError as error:
            raise _incomparable(str(error)) from None
        return self._tally(output, i) if self.labels else torch.tensor(1.0)

    def _tally(self, output: object, i: int) -> torch.Tensor:
        try:
            return tally(output, self.labels[i])
        except ValueError as error:
            raise _incomparable(str(error)) from None


def search(trial: Trial, flops_cut: float) -> Choice:
    """The best schedule found at a cut. Half of the passes go to schedules spread over the depth, half to steps from
    the best of them.

    Raises:
        LvtpError: LVTP202 where no schedule reaches the cut.
    """
    default = Choice(default_schedule(trial.trunk), flops_cut)
    choices = _reachable(trial, [Choice(s, flops_cut) for s in spread_schedules(trial.trunk)])
    if not choices:
        trial.config(default)  # raises
    best = _halved(trial, choices, trial.left // 2)
    everything = len(trial.inputs)
    tried = set(choices)
    while True:
        steps = [Choice(s, flops_cut) for s in neighbours(best.schedule, trial.trunk)]
        better = _first_better(trial, best, _reachable(trial, [s for s in steps if s not in tried]), tried)
        if better is None:
            break
        best = better
    if default in choices and trial.cost(default, everything) <= trial.left:
        best = max(best, default, key=lambda choice: trial.quality(choice, everything))
    return best


def deepest(trial: Trial, max_drop: float) -> Choice:
    """The largest cut found that loses at most `max_drop`.

    Raises:
        LvtpError: LVTP202 where even the smallest cut tried loses more.
    """
    floor = trial.dense_quality() - max_drop
    low, high, best = 0.0, _LARGEST_CUT, None
    schedule = default_schedule(trial.trunk)
    for _ in range(_HALVINGS):
        middle = Choice(schedule, (low + high) / 2)
        if _holds(trial, middle, floor):
            low, best = middle.flops_cut, middle
        else:
            high = middle.flops_cut
    if best is None:
        raise LvtpError(
            Code.CUT_UNREACHABLE, where="calibrate.max_drop", expected=f"a cut of {high:.2f} or more",
            got=f"more than {max_drop} lost at {high:.2f}", why="smaller cuts are not worth their overhead",
            hint="a larger max_drop, or calibrate(model, images, flops_cut=...) to see what a cut costs",
        )
    better = search(trial, best.flops_cut)
    if not _holds(trial, better, floor):
        return best
    best, low = better, better.flops_cut
    high = min(_LARGEST_CUT, high + (high - low))
    for _ in range(_HALVINGS):
        middle = Choice(best.schedule, (low + high) / 2)
        if trial.cost(middle, len(trial.inputs)) > trial.left:
            break
        if _holds(trial, middle, floor):
            low, best = middle.flops_cut, middle
        else:
            high = middle.flops_cut
    return best


def _halved(trial: Trial, choices: list[Choice], passes: int) -> Choice:
    """Successive halving: all on a few images, the better half on twice as many, and so on, within `passes` images.

    The default schedule, first of the choices, stays in to the end.
    """
    everything, rounds = len(trial.inputs), max(1, ceil(log2(len(choices))))
    per_input = sum(trial.sizes) / everything
    count = min(everything, max(1, int(passes / per_input / len(choices) / (1 + (rounds - 1) / 2))))
    default = choices[0]
    while len(choices) > 1:
        ranked = sorted(choices, key=lambda choice: trial.quality(choice, count), reverse=True)
        kept = ranked[: ceil(len(ranked) / 2)]
        out = [choice for choice in ranked if choice not in kept and choice != default]
        trial.drop(out)
        if len(kept) == 1:
            return kept[0]
        choices = list(dict.fromkeys([*kept, default])) if len(kept) > 2 else kept
        count = min(everything, 2 * count)
    return choices[0]


def _first_better(trial: Trial, best: Choice, steps: list[Choice], tried: set[Choice]) -> Choice | None:
    """The first step that is better than the best on all images; one that is not on a quarter of them is given up."""
    everything = len(trial.inputs)
    part = max(1, everything // 4)
    for step in steps:
        if trial.cost(step, everything) + trial.cost(best, everything) > trial.left:
            return None
        tried.add(step)
        if all(trial.quality(step, count) > trial.quality(best, count) for count in (part, everything)):
            trial.drop([best])
            return step
        trial.drop([step])
    return None


def _reachable(trial: Trial, choices: list[Choice]) -> list[Choice]:
    def can(choice: Choice) -> bool:
        try:
            trial.config(choice)
        except LvtpError as refusal:
            if refusal.code != Code.CUT_UNREACHABLE.number:
                raise
            return False
        return True

    return [choice for choice in choices if can(choice)]


def _holds(trial: Trial, choice: Choice, floor: float) -> bool:
    """Whether the choice can be made and is at least so good on all images."""
    return bool(_reachable(trial, [choice])) and trial.quality(choice, len(trial.inputs)) >= floor


def _incomparable(what: str) -> LvtpError:
    return LvtpError(
        Code.BAD_EXAMPLE, where="calibrate", expected="outputs to compare, and labels that fit them", got=what,
        why="schedules are ranked by what comes out", hint="images alone, or labels [M, H, W] of a segmenter's classes",
    )
