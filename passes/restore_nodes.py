"""Undo one reduction of a state of the residual stream."""

from __future__ import annotations

import sys

import torch
from torch import fx

from lvtp_fx.config import Restore
from lvtp_fx.passes.axes.label import Label
from lvtp_fx.passes.coerce import Coercer, SpaceNodes
from lvtp_fx.passes.remember import ends

aten = torch.ops.aten


def restore_node(
    to: Coercer, mode: Restore, now: fx.Node, label: Label, site: tuple[fx.Node, fx.Node, Label], space: SpaceNodes
) -> fx.Node:
    """A state in the parent of `space`, where it is in `space` itself.

    Args:
        now: the state, laid out as `label` says. space: the one to leave.
        site: the stream before and after the reduction that made the space, and how they are laid out: other prefix
            tokens may have joined the stream or left it since (queries, a class token), or its axes may have moved.
    """
    (now, order), (entered, _), (left, _) = (
        to.as_tokens(now, label), to.as_tokens(site[0], site[2]), to.as_tokens(site[1], site[2]))
    before, after = ends(label)
    if ends(site[2]) == (before, after):
        return to.as_before(_call(to, mode, now, entered, left, space, before, after), order)
    first, last = ends(site[2])
    grids = (_cut(to, now, before, -after), _cut(to, entered, first, -last), _cut(to, left, first, -last))
    parts = [_call(to, mode, *grids, space, 0, 0)]
    if before:
        parts.insert(0, _cut(to, now, 0, before))
    if after:
        parts.append(_cut(to, now, -after, 0))
    return to.as_before(to.graph.call_function(aten.cat.default, (parts, 1)), order)


def _call(
    to: Coercer, mode: Restore, now: fx.Node, entered: fx.Node, left: fx.Node, space: SpaceNodes,
    before: int, after: int,
) -> fx.Node:
    if mode == "delta" and space.supports is not None:
        return to.call("restore_between", now, entered, left, space.supports, space.shares, before, after)
    if mode == "delta":
        return to.call("restore", now, entered, left, space.owner, before, after)
    return to.call("restore_frozen", now, entered, space.kept, before, after)


def _cut(to: Coercer, node: fx.Node, start: int, stop: int) -> fx.Node:
    """Tokens [start, stop) of [B, L, C]; a stop of 0 is the end."""
    if (start, stop) == (0, 0):
        return node
    return to.graph.call_function(aten.slice.Tensor, (node, 1, start, stop or sys.maxsize))
