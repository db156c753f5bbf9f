"""Reduce a state of a residual stream to a smaller token space."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from lvtp_fx.config import Reduce
from lvtp_fx.passes.axes.label import Label
from lvtp_fx.passes.coerce import Coercer, SpaceNodes
from lvtp_fx.passes.remember import ends


def reduce_node(
    to: Coercer, mode: Reduce, state: fx.Node, label: Label, parent: SpaceNodes, space: SpaceNodes
) -> fx.Node:
    """A state, laid out as `label` says, on the tokens that live on: means of what each of them owns, or they alone.

    Args:
        parent: the space of the state. space: the one to enter, a child of it.
    """
    tokens, order = to.as_tokens(state, label)
    before, after = ends(label)
    if mode == "merge":
        reduced = to.call("merge", tokens, space.kept, to.call("dropped", space.kept, parent.count), space.owner,
                          parent.size, space.size, before, after)
    else:
        reduced = to.call("gather", tokens, space.kept, 0, 1, before, after)
    return to.as_before(reduced, order)


def from_full_grid(to: Coercer, space: int) -> SpaceNodes:
    """Space number `space` as a child of the full grid."""
    return replace(to.spaces[space], kept=to.index(0, space), owner=to.index(space, 0), supports=None, shares=None)
