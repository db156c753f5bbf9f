"""Choose the blocks after whose attention tokens are reduced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

from torch import fx

from lvtp_fx.config import Config
from lvtp_fx.errors import Code, LvtpError
from lvtp_fx.plan import Plan, Site, Trunk

# After these twelfths of the depth, rounded down: of the sites tried on CamVid's validation split and on drawn scenes
# (bench/README.md), those that lose least over all cuts. Later ones must drop more tokens at each for the same FLOPs.
_TWELFTHS = (1, 4, 7)


@dataclass(frozen=True)
class ChooseSites:
    """Turns `Config.sites` into blocks. Kept counts are filled in by the next pass.

    Requires: `trunk`. Ensures: `sites`, in order, at different states.

        12 blocks, sites="auto"  ->  after the attention of blocks 0, 3, 6
    """

    name: ClassVar[str] = "choose_sites"

    def __call__(self, plan: Plan) -> Plan:
        assert plan.trunk is not None
        trunk = plan.trunk
        count = trunk.grid[0] * trunk.grid[1]
        others = len(plan.misses) + sum(len(stream.attentions) for stream in trunk.later)
        indices = _indices(plan.config.sites, trunk, others)
        _check_order(plan.config, len(trunk.blocks))
        if not indices:
            raise _nothing_to_save(trunk, others)
        return replace(plan, sites=tuple(Site(i, count, count) for i in indices))


def automatic(trunk: Trunk) -> tuple[int, ...]:
    """Up to three blocks, from the first on to a little behind the middle."""
    distinct = places(trunk)
    return tuple(distinct[p] for p in picks(len(distinct)))


def picks(count: int) -> tuple[int, ...]:
    """Which of so many places, one a block, the last block aside."""
    return tuple(sorted({max(0, part * (count + 1) // 12 - 1) for part in _TWELFTHS})) if count else ()


def places(trunk: Trunk) -> tuple[int, ...]:
    """Blocks after which it pays to drop tokens: each at a state of its own, never the last one."""
    states = [b.state for b in trunk.blocks]
    distinct = [states.index(s) for s in dict.fromkeys(states) if s is not trunk.states[-1]]
    if len(distinct) > 1 and states[distinct[-1]] is states[-1]:
        distinct = distinct[:-1]  # after the last attention only one MLP is left to save
    return tuple(distinct)


def _indices(given: Sequence[int] | str, trunk: Trunk, others: int) -> tuple[int, ...]:
    if isinstance(given, str):
        return automatic(trunk) if given == "auto" else places(trunk)
    return _given(given, trunk, others)


def _given(sites: Sequence[int], trunk: Trunk, others: int) -> tuple[int, ...]:
    depth = len(trunk.blocks)
    if not all(-depth <= s < depth for s in sites):
        raise _refusal(sites, f"block indices in [{-depth}, {depth})", f"the encoder has {_count(depth)}"
                       + (f"; {others} more are no part of it" if others else ""))
    indices = sorted({s % depth for s in sites})
    seen: dict[fx.Node, int] = {}
    for index in indices:
        state = trunk.blocks[index].state
        if state in seen:
            raise _refusal(sites, "blocks with a point of their own in the stream",
                           f"blocks {seen[state]} and {index} run in parallel and end in the same add")
        seen[state] = index
    return tuple(indices)


def _check_order(config: Config, depth: int) -> None:
    """Sites are sorted: with a keep ratio each, given in another order, the ratios would belong to other sites."""
    if isinstance(config.sites, str) or not isinstance(config.keep_ratio, tuple) or len(config.keep_ratio) == 1:
        return
    if any(a % depth >= b % depth for a, b in pairwise(config.sites)):
        raise _refusal(config.sites, "blocks in rising order, each once", "each has a keep ratio of its own, in order")


def _nothing_to_save(trunk: Trunk, others: int) -> LvtpError:
    return LvtpError(
        Code.CUT_UNREACHABLE, where=trunk.blocks[0].attention.path or "the top level",
        expected="an encoder that works on the tokens after its first attention",
        got=f"{_count(len(trunk.blocks))} with attention, and behind them no state of the residual stream, but its "
        "last, that all later ones are made from" + (f"; {others} more are no part of it" if others else ""),
        why="tokens are dropped at such a state, behind an attention",
        hint="lvtp_fx.explain(model, example_inputs) says why others are not used" if others else
        "a deeper encoder, or one without skips from one block to a later one",
    )


def _count(blocks: int) -> str:
    return f"{blocks} block{'s' * (blocks != 1)}"


def _refusal(sites: Sequence[int], expected: str, why: str) -> LvtpError:
    return LvtpError(
        Code.SITES_OUT_OF_RANGE, where="Config.sites", expected=expected, got=str(tuple(sites)), why=why,
        hint='sites="auto", or lvtp_fx.explain(model, example_inputs) to see the blocks',
    )
