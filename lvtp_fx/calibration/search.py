"""The search of `calibrate`: successive halving over schedules, then steps from the best one."""

from __future__ import annotations

from math import ceil, log2

from lvtp_fx.calibration.schedules import default_schedule, neighbours, spread_schedules
from lvtp_fx.calibration.trial import Choice, Trial
from lvtp_fx.errors import Code, LvtpError

_LARGEST_CUT, _HALVINGS = 0.9, 4  # of the interval of cuts that `deepest` looks in


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
