"""Schedules tried on images: each is run once on each image, and what came out is remembered.

Where there are several processes, each runs its share of the images, and all know all that came out, so that all of
them decide alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

import torch
from torch import fx

from lvtp_fx.api import Prepared, rewritten
from lvtp_fx.batch_axis import batch_size
from lvtp_fx.calibration.journal import Journal
from lvtp_fx.calibration.likeness import likeness, miou, reference, tally
from lvtp_fx.calibration.schedules import Choice
from lvtp_fx.config import Config
from lvtp_fx.errors import Code, LvtpError
from lvtp_fx.example_inputs import Inputs
from lvtp_fx.kept_state import kept_state
from lvtp_fx.passes import pipeline
from lvtp_fx.passes.find_trunk import refuse_unmatched
from lvtp_fx.plan import Trunk
from lvtp_fx.ranks import Ranks


class Trial:
    """Runs choices on images and remembers what came out.

    Args:
        labels: none, or one for each of `inputs`.
        passes: how many images may be run, by all processes; show: told how many were.
        journal: of scores; those that are in it are not found again, and count as passes all the same.

    Raises:
        LvtpError: LVTP102 without a trunk; LVTP105 for outputs or labels that cannot be compared; LVTP201 where
            `passes` does not suffice for the dense model and the default schedule; LVTP401 for inputs that do not fit.
    """

    def __init__(
        self, prepared: Prepared, base: Config, inputs: Sequence[Inputs], labels: Sequence[torch.Tensor],
        passes: int, show: Callable[[int], None], ranks: Ranks, journal: Journal,
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
        self.left, self.passes, self.show, self.ranks, self.journal = passes, passes, show, ranks, journal
        self.configs: dict[Choice, Config | LvtpError] = {}
        self.modules: dict[Choice, fx.GraphModule] = {}
        self.found: dict[Choice, list[torch.Tensor]] = {}  # by choice, for each image: likeness [] or counts [C, C]
        self.dense: dict[int, list[torch.Tensor]] = {}  # by number of the input, of this process's share
        dense = pipeline.finish(prepared.plan)  # with checks of what comes in
        self.dense_found = self._shared_out(range(len(inputs)), lambda i: self._dense(dense, i))
        if labels and not torch.stack(self.dense_found).sum():
            raise _incomparable("labels without a pixel of any class")

    @property
    def everything(self) -> int:
        return len(self.inputs)

    def config(self, choice: Choice) -> Config:
        """For `transform`.

        Raises:
            LvtpError: LVTP202 where the schedule cannot reach the cut.
        """
        found = self._solved(choice)
        if isinstance(found, LvtpError):
            raise found
        return found

    def reaches(self, choice: Choice) -> bool:
        """Whether the schedule can reach the cut."""
        return isinstance(self._solved(choice), Config)

    def _solved(self, choice: Choice) -> Config | LvtpError:
        """The config, or why the cut is out of reach; solved once."""
        if choice not in self.configs:
            try:
                self.configs[choice] = choice.schedule.config(
                    self.prepared.plan, self.base, self.prepared.dense_flops, choice.flops_cut)
            except LvtpError as refusal:
                if refusal.code != Code.CUT_UNREACHABLE.number:
                    raise
                self.configs[choice] = refusal
        return self.configs[choice]

    def affords(self, choices: Sequence[Choice], count: int) -> bool:
        """Whether enough passes are left for the `quality` of all of them."""
        return sum(sum(self.sizes[len(self.found.get(choice, [])) : count]) for choice in choices) <= self.left

    def quality(self, choice: Choice, count: int) -> float:
        """On the first `count` of the inputs: likeness to the dense outputs, or mean IoU (-inf before any label)."""
        found = self.found.setdefault(choice, [])
        known = self.journal.known(choice, range(len(found), count))
        self.left -= sum(self.sizes[len(found) : len(found) + len(known)])
        found += known
        new = self._shared_out(range(len(found), count), lambda i: self._compared(choice, i))
        self.journal.add(choice, new)
        found += new
        return self._mean(found[:count])

    def dense_quality(self) -> float:
        return self._mean(self.dense_found) if self.labels else 1.0

    def drop(self, choices: Sequence[Choice]) -> None:
        """Forget the graphs of choices that are out; what they scored is kept."""
        for choice in choices:
            self.modules.pop(choice, None)

    def _mean(self, found: Sequence[torch.Tensor]) -> float:
        mean = miou(torch.stack(list(found)).sum(0)) if self.labels else float(torch.stack(list(found)).mean())
        return mean if mean == mean else -inf

    def _shared_out(self, inputs: range, score: Callable[[int], torch.Tensor]) -> list[torch.Tensor]:
        """The scores of some inputs, in order. Input i is always the same process's, which has its dense output."""
        own = [i for i in inputs if i % self.ranks.world == self.ranks.rank]
        parts = self.ranks.each(lambda: {i: score(i) for i in own})
        self.left -= sum(self.sizes[i] for i in inputs) - sum(self.sizes[i] for i in own)  # `_run` counted its own
        return [parts[i % self.ranks.world][i] for i in inputs]

    def _module(self, choice: Choice) -> fx.GraphModule:
        if choice not in self.modules:
            self.modules[choice] = pipeline.finish(rewritten(self.prepared, self.config(choice)))
        return self.modules[choice]

    def _run(self, module: fx.GraphModule, i: int) -> object:
        args, kwargs = self.inputs[i]
        with torch.no_grad(), kept_state(module):
            output = module(*args, **kwargs)
        self.left -= self.sizes[i]
        self.show(self.passes - self.left)
        return output

    def _compared(self, choice: Choice, i: int) -> torch.Tensor:
        output = self._run(self._module(choice), i)
        return self._tally(output, i) if self.labels else torch.tensor(likeness(output, self.dense[i]))

    def _dense(self, module: fx.GraphModule, i: int) -> torch.Tensor:
        output = self._run(module, i)
        try:
            self.dense[i] = reference(output)
        except ValueError as error:
            raise _incomparable(str(error)) from None
        return self._tally(output, i) if self.labels else torch.tensor(1.0)

    def _tally(self, output: object, i: int) -> torch.Tensor:
        try:
            return tally(output, self.labels[i])
        except ValueError as error:
            raise _incomparable(str(error)) from None


def _incomparable(what: str) -> LvtpError:
    return LvtpError(
        Code.BAD_EXAMPLE, where="calibrate", expected="outputs to compare, and labels that fit them", got=what,
        why="schedules are ranked by what comes out", hint="images alone, or labels [M, H, W] of a segmenter's classes",
    )
