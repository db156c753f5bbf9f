"""The search of `calibrate`: successive halving over schedules, then steps from the best one."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil, log2

from lvtp_fx.calibration.schedules import Choice, default_schedule, neighbours, spread_schedules
from lvtp_fx.calibration.trial import Trial
from lvtp_fx.errors import Code, LvtpError

_LARGEST_CUT, _HALVINGS = 0.9, 4  # of the interval of cuts that `deepest` looks in


def search(trial: Trial, flops_cut: float) -> Choice:
    """The best schedule found at a cut: at least as good as the default one where that reaches it.

    Half of the passes go to schedules spread over the depth, the rest to steps from the best of them.

    Raises:
        LvtpError: LVTP202 where no schedule reaches the cut.
    """
    default = Choice(default_schedule(trial.trunk), flops_cut)
    spread = [Choice(s, flops_cut) for s in spread_schedules(trial.trunk)]
    best = default if trial.reaches(default) and trial.affords([default], trial.everything) else None
    if best is not None:
        trial.quality(best, trial.everything)
    best = _better(trial, best, _halved(trial, [c for c in spread if c != default and trial.reaches(c)]))
    if best is None:
        trial.config(default)  # raises, unless the passes are gone
        return default
    tried = {*spread, best}
    while (step := _first_better(trial, best, tried)) is not None:
        best = step
    return best


def deepest(trial: Trial, max_drop: float) -> Choice:
    """The largest cut found that loses at most `max_drop`.

    Raises:
        LvtpError: LVTP202 where every cut tried loses more, or cannot be reached.
    """
    floor = trial.dense_quality() - max_drop
    low, high, best, lost = 0.0, _LARGEST_CUT, None, False
    default = default_schedule(trial.trunk)
    for _ in range(_HALVINGS):
        middle = Choice(default, (low + high) / 2)
        if not trial.affords([middle], trial.everything):
            break
        if _holds(trial, middle, floor):
            low, best = middle.flops_cut, middle
        else:
            high, lost = middle.flops_cut, lost or trial.reaches(middle)
    if best is None:
        raise LvtpError(
            Code.CUT_UNREACHABLE, where="calibrate.max_drop", expected=f"a cut of {high:.2f} or more",
            got=f"more than {max_drop} lost at {high:.2f}" if lost else "a schedule that cannot save so much",
            why="smaller cuts are not worth their overhead",
            hint="a larger max_drop, or calibrate(model, images, flops_cut=...) to see what a cut costs",
        )
    better = search(trial, best.flops_cut)
    if trial.quality(better, trial.everything) < floor:
        return best
    best, high = better, min(_LARGEST_CUT, 2 * high - low)
    for _ in range(_HALVINGS):
        middle = Choice(best.schedule, (low + high) / 2)
        if not trial.affords([middle], trial.everything):
            break
        if _holds(trial, middle, floor):
            low, best = middle.flops_cut, middle
        else:
            high = middle.flops_cut
    return best


def _halved(trial: Trial, choices: list[Choice]) -> Choice | None:
    """Successive halving: all on a few inputs, the better half on twice as many, and so on, within half of the passes
    that are left. None where they do not suffice for two."""
    per_input, passes = sum(trial.sizes) / trial.everything, trial.left // 2
    room = int(passes / max(trial.sizes) / 2)
    if not choices or not room:
        return None
    choices = choices[:: ceil(len(choices) / room)]
    rounds = ceil(log2(len(choices))) if len(choices) > 1 else 1
    # The first round runs n choices on `count` inputs, each later one half as many on as many new ones.
    count = min(trial.everything, max(1, int(passes / per_input / len(choices) / (1 + (rounds - 1) / 2))))
    while len(choices) > 1 and trial.affords(choices, count):
        ranked = sorted(choices, key=lambda choice: trial.quality(choice, count), reverse=True)
        choices = ranked[: ceil(len(ranked) / 2)]
        trial.drop(ranked[len(choices) :])
        count = min(trial.everything, 2 * count)
    return choices[0]


def _better(trial: Trial, best: Choice | None, other: Choice | None) -> Choice | None:
    """The better of the two on all inputs; the first where the other cannot be afforded."""
    if other is None or not trial.affords([other], trial.everything):
        return best
    if best is None or trial.quality(other, trial.everything) > trial.quality(best, trial.everything):
        return other
    return best


def _first_better(trial: Trial, best: Choice, tried: set[Choice]) -> Choice | None:
    """The first step that is better than the best on all inputs; one that is not on a quarter of them is given up."""
    part = max(1, trial.everything // 4)
    for step in _steps(trial, best, tried):
        if not trial.affords([step, best], trial.everything):
            return None
        tried.add(step)
        if all(trial.quality(step, count) > trial.quality(best, count) for count in (part, trial.everything)):
            trial.drop([best])
            return step
        trial.drop([step])
    return None


def _steps(trial: Trial, best: Choice, tried: set[Choice]) -> Iterable[Choice]:
    choices = (Choice(schedule, best.flops_cut) for schedule in neighbours(best.schedule, trial.trunk))
    return (choice for choice in choices if choice not in tried and trial.reaches(choice))


def _holds(trial: Trial, choice: Choice, floor: float) -> bool:
    """Whether the choice reaches its cut and is at least so good on all inputs."""
    return trial.reaches(choice) and trial.quality(choice, trial.everything) >= floor
