"""Schedules: after which blocks tokens are dropped, and how the cut is shared out between these sites."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lvtp_fx.config import Config
from lvtp_fx.passes.assign_spaces import AssignSpaces
from lvtp_fx.passes.choose_sites import ChooseSites, automatic, places
from lvtp_fx.passes.solve_counts import SolveCounts
from lvtp_fx.plan import Plan, Trunk

_COUNTS = (1, 2, 3, 4, 6)
_SHARES = (1 / 4, 1 / 2, 3 / 4, 1.0)
_TILTS = (-0.75, 0.75)


@dataclass(frozen=True)
class Schedule:
    """Sites, and how the cut is shared out between them.

    Attributes:
        sites: blocks after whose attention tokens are dropped, ascending.
        tilt: in (-1, 1): how much more of the cut the first sites take than the last ones; 0: all keep the same ratio.
    """

    sites: tuple[int, ...]
    tilt: float = 0.0

    @property
    def weights(self) -> tuple[float, ...]:
        """Exponents of the keep ratio, one a site, mean 1."""
        last = len(self.sites) - 1
        return tuple(1 + self.tilt * (1 - 2 * i / last) if last else 1.0 for i in range(last + 1))

    def config(self, plan: Plan, base: Config, dense_flops: float, flops_cut: float) -> Config:
        """`base` with these sites, and the keep ratios that meet the cut.

        Args:
            plan: analysed, with a trunk. dense_flops: of one image.

        Raises:
            LvtpError: LVTP202 where these sites cannot reach it.
        """
        wanted = replace(base, sites=self.sites, keep_ratio=None, flops_cut=flops_cut)
        plan = replace(plan, config=wanted)
        for step in (ChooseSites(), AssignSpaces(), SolveCounts(dense_flops, self.weights)):
            plan = step(plan)
        ratios = tuple(site.kept / site.parent for site in plan.sites)
        return replace(wanted, sites=tuple(site.block for site in plan.sites), keep_ratio=ratios)


@dataclass(frozen=True)
class Choice:
    """A schedule at a cut."""

    schedule: Schedule
    flops_cut: float


def default_schedule(trunk: Trunk) -> Schedule:
    """What `sites="auto"` and one keep ratio give."""
    return Schedule(automatic(trunk))


def spread_schedules(trunk: Trunk) -> list[Schedule]:
    """The default one, and one to six sites spread over a quarter of the depth, half, three quarters, all of it."""
    blocks = places(trunk)
    found = [default_schedule(trunk)]
    for share in _SHARES:
        for count in _COUNTS:
            room = max(1, round(share * len(blocks)))
            picks = {max(0, round((i + 1) * room / count) - 1) for i in range(count)}
            found.append(Schedule(tuple(blocks[p] for p in sorted(picks))))
    return list(dict.fromkeys(found))


def neighbours(schedule: Schedule, trunk: Trunk) -> Iterator[Schedule]:
    """Schedules one step away: another tilt, one site moved by a block, one left out, one more."""
    blocks = places(trunk)
    at = [blocks.index(site) for site in schedule.sites]
    for tilt in _TILTS if len(at) > 1 else ():
        yield Schedule(schedule.sites, max(-0.75, min(0.75, schedule.tilt + tilt)))
    for i, place in enumerate(at):
        for step in (-1, 1):
            if 0 <= place + step < len(blocks) and place + step not in at:
                moved = sorted([*at[:i], place + step, *at[i + 1 :]])
                yield Schedule(tuple(blocks[p] for p in moved), schedule.tilt)
        if len(at) > 1:
            yield Schedule(tuple(s for s in schedule.sites if s != schedule.sites[i]), schedule.tilt)
    for place in range(len(blocks)):
        if place not in at:
            yield Schedule(tuple(blocks[p] for p in sorted([*at, place])), schedule.tilt)
