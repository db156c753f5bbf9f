"""Proportional attention: a key that stands for s tokens counts s times."""

from __future__ import annotations

from typing import Any

from torch import fx

from lvtp_fx.passes.axes.flow import Flow
from lvtp_fx.passes.axes.label import Kind, has_kind, token_factor
from lvtp_fx.passes.coerce import Coercer


def weigh_keys(
    to: Coercer, node: fx.Node, args: tuple[Any, ...], flow: Flow, grid: tuple[int, int], space: int
) -> tuple[Any, ...]:
    """The (already mapped) arguments of an attention, log size added to the scores of its keys.

    Args:
        node, flow: the attention in the captured graph. args: q, k, v, mask or None, and the rest.
        grid: of the trunk; other keys (text, another grid) are left as they are.
        space: number of the token space that the keys are in.
    """
    k = node.args[1]
    assert isinstance(k, fx.Node) and isinstance(flow.out, tuple)
    factor = token_factor(flow.uses[k][-2])
    if factor is None or factor.grid != grid:
        return args
    batch = next(i for i, axis in enumerate(flow.out) if has_kind(axis, Kind.BATCH))  # type: ignore[arg-type]
    size = to.per_axis(to.spaces[space].size, flow.out[batch])  # type: ignore[arg-type]
    bias = to.call("key_bias", args[3], size, factor.before, factor.after, batch, args[0])
    return (*args[:3], bias, *args[4:])
