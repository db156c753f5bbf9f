"""Solve for how many tokens live on at each site."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import sympy
import torch
from torch import fx

from lvtp_fx import cost, latency
from lvtp_fx.errors import Code, LvtpError
from lvtp_fx.passes.assign_spaces import AssignSpaces
from lvtp_fx.plan import Plan, Site
from lvtp_fx.strategies import get

_SMALLEST = 1e-3  # keep ratios below this leave one token anyway
# Tokens that are multiplied at once: by matrix units, and in float32 by vector units. The largest tile is taken that a
# grid holds _FEWEST of, so that rounding to whole tiles takes few tokens from a site.
_TILES = {torch.bfloat16: (32, 16, 8), torch.float16: (32, 16, 8), torch.float32: (16, 8)}
_FEWEST = 16


@dataclass(frozen=True)
class _Goal:
    """The wanted `share` of what the dense graph costs in `total`; `saved`, in K1, K2, ..., and `code` where it is out
    of reach. `name`: of the option."""

    name: str
    share: float
    total: float
    saved: sympy.Expr
    code: Code


@dataclass(frozen=True)
class SolveCounts:
    """Finds the keep ratio that meets `Config.flops_cut` (or `latency_cut`) on the symbolic cost (or time), or takes
    `Config.keep_ratio`.

    Attributes:
        dense_flops: FLOPs of one image through the captured graph, as FlopCounterMode counts them.
        weights: how much of the cut each site takes, > 0; None for the same keep ratio at all sites.
        in_reach: where the wanted cut is out of reach, take the largest that is not, and do not refuse.

    Requires: `sites`, `spaces`. Ensures: `sites` with `parent` and `kept`.

        before                                  after (576 tokens and a class token, flops_cut=0.35, align="auto")
        sites behind blocks 0, 1, 3             576 -> 495 -> 415 -> 351: with the class token multiples of 16
    """

    dense_flops: float
    weights: tuple[float, ...] | None = None
    in_reach: bool = False
    name: ClassVar[str] = "solve_counts"

    def __call__(self, plan: Plan) -> Plan:
        ratios = plan.config.keep_ratio
        if ratios is None:
            return _with_counts(plan, self._solve(plan))
        if isinstance(ratios, tuple) and len(ratios) not in (1, len(plan.sites)):
            raise LvtpError(
                Code.CONFIG_OUT_OF_RANGE, where="Config.keep_ratio", expected=f"one ratio, or {len(plan.sites)}",
                got=f"{len(ratios)} ratios", why="each site needs its own", hint="keep_ratio=0.7 for all sites",
            )
        given = ratios if isinstance(ratios, tuple) else (ratios,)
        counts = _counts(plan, given * len(plan.sites) if len(given) == 1 else given)
        self._check_strategy(plan, given, counts)
        saved = float(cost.saved_flops(plan).subs(dict(zip(cost.counts(plan), counts, strict=True))))
        done = _with_counts(plan, counts)
        if done.sites and saved <= 0:
            raise self._costs_more(plan, saved)
        return done

    def _check_strategy(self, plan: Plan, given: tuple[float, ...], counts: tuple[int, ...]) -> None:
        least = _least(plan)
        parents = (plan.sites[0].parent, *counts)
        if any(kept < int(parent * least) for parent, kept in zip(parents, counts, strict=False)):
            raise LvtpError(
                Code.CONFIG_OUT_OF_RANGE, where="Config.keep_ratio",
                expected=f"at least {least} with strategy={plan.config.strategy!r}", got=f"{min(given)}",
                why="it cannot merge more tokens at one site", hint="more sites, each with a larger keep_ratio",
            )

    def _costs_more(self, plan: Plan, saved: float) -> LvtpError:
        assert plan.trunk is not None
        block = plan.trunk.blocks[plan.sites[0].block].attention
        return LvtpError(
            Code.CUT_UNREACHABLE, where=block.path or "the top level",
            expected="a reduction that saves more FLOPs than scoring, owners and restores cost",
            got=f"{-saved / self.dense_flops:+.1%} FLOPs at keep_ratio={plan.config.keep_ratio}",
            why="the graph would be slower than the dense one: too few tokens are dropped, or most ops after this "
            "block need the full grid",
            hint=f"a smaller keep_ratio{_earlier_sites(plan)}; or leave this model dense",
        )

    def _solve(self, plan: Plan) -> tuple[int, ...]:
        """Kept counts at the largest keep ratio r that meets the cut; site i keeps r ** weight[i], and of what rounding
        takes from it as much as the cut allows."""
        weights = self.weights or (1.0,) * len(plan.sites)
        least = _least(plan)
        symbols = cost.counts(plan)
        goal = self._goal(plan)
        saved = sympy.lambdify(symbols, goal.saved, modules="math")
        wanted = goal.share * goal.total

        def counts_at(ratio: float) -> tuple[int, ...]:
            return _counts(plan, tuple(max(least, ratio**weight) for weight in weights))

        low, high = _SMALLEST, 1.0
        if saved(*counts_at(low)) < wanted:
            most = max(saved(*counts_at(ratio / 100)) for ratio in range(1, 100))
            if not self.in_reach:
                raise self._unreachable(plan, goal, most / goal.total)
            wanted = most
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if saved(*counts_at(middle)) >= wanted else (low, middle)
        return _topped_up(plan, counts_at(low), lambda counts: saved(*counts) >= wanted)

    def _goal(self, plan: Plan) -> _Goal:
        if plan.config.latency_cut is None:
            return _Goal("flops_cut", plan.config.flops_cut, self.dense_flops, cost.saved_flops(plan),
                         Code.CUT_UNREACHABLE)
        assert plan.clock is not None
        return _Goal("latency_cut", plan.config.latency_cut, plan.clock.dense_ms, latency.saved_ms(plan, plan.clock),
                     Code.TOO_LITTLE_TIME_SAVED)

    def _unreachable(self, plan: Plan, goal: _Goal, best: float) -> LvtpError:
        first = plan.sites[0].block
        why = f"all before block {first} and after the encoder runs on the full grid"
        if least := _least(plan):
            why += f", and strategy={plan.config.strategy!r} keeps at least {least} of the tokens of a site"
        if nearest := plan.nearest_miss:
            why += f"; {len(plan.misses)} attentions are not used, the nearest miss at {nearest.where}: " \
                   f"{nearest.reason}"
        if plan.clock is not None and goal.name == "latency_cut":
            why += f"; scoring, clustering, gathers and restores take {plan.clock.inserted_ms:.2f} ms of the " \
                   f"{goal.total:.2f} ms that the dense model takes"
        return LvtpError(
            goal.code, where=f"Config.{goal.name}",
            expected=f"at most {best:.3f} for this model and these sites" if best > 0 else
            "a model of which dropping tokens saves more than choosing them costs",
            got=f"{goal.share}", why=why,
            hint=(f"a smaller {goal.name}" if best > 0 else "a larger image or batch; or leave this model dense")
            + _earlier_sites(plan),
        )


def _earlier_sites(plan: Plan) -> str:
    """Advice, where there are any."""
    assert plan.trunk is not None
    earlier = tuple(range(min(3, len(plan.trunk.blocks))))
    return f", or earlier sites, e.g. sites={earlier}" if plan.sites[0].block else ""


def _least(plan: Plan) -> float:
    return get(plan.config.strategy).smallest_keep_ratio


def _counts(plan: Plan, ratios: tuple[float, ...]) -> tuple[int, ...]:
    """Grid tokens of each space: rounded down to the alignment of the whole token axis, at least one; as wanted where
    that would be too few for the strategy, or where none is dropped."""
    living, result = plan.sites[0].parent, []
    least, align = _least(plan), _alignment(plan)
    for ratio, shape in zip(ratios, cost.site_shapes(plan), strict=True):
        wanted = int(living * ratio + 1e-9)
        aligned = (wanted + shape.ends) // align * align - shape.ends
        fits = max(1, int(living * least)) <= aligned and wanted < living
        living = max(1, aligned if fits else wanted)
        result.append(living)
    return tuple(result)


def _topped_up(plan: Plan, counts: tuple[int, ...], meets: Callable[[tuple[int, ...]], bool]) -> tuple[int, ...]:
    """The counts, one step of the alignment more at each site where the cut is met all the same; the last site, where a
    token costs least, first. What rounding to whole tokens takes is not worth it."""
    align = _alignment(plan)
    for i in reversed(range(len(counts))) if align > 1 else ():
        more = (*counts[:i], counts[i] + align, *counts[i + 1 :])
        if more[i] <= (plan.sites[0].parent, *counts)[i] and meets(more):
            counts = more
    return counts


def _alignment(plan: Plan) -> int:
    """`Config.align`, "auto" as a number."""
    if plan.config.align != "auto":
        return plan.config.align
    assert plan.trunk is not None
    q = plan.trunk.blocks[plan.sites[0].block].attention.node.args[0]
    assert isinstance(q, fx.Node)
    tiles = _TILES.get(q.meta["val"].dtype, ())
    return next((tile for tile in tiles if tile * _FEWEST <= plan.sites[0].parent), 1)


def _with_counts(plan: Plan, counts: tuple[int, ...]) -> Plan:
    parents = (plan.sites[0].parent, *counts[:-1])
    sites = [Site(s.block, p, k) for s, p, k in zip(plan.sites, parents, counts, strict=True)]
    pruning = tuple(s for s in sites if s.kept < s.parent)
    plan = replace(plan, sites=pruning)
    # A site that keeps every token makes no space: the spaces after it move up by one.
    return plan if len(pruning) == len(sites) else AssignSpaces()(plan)
