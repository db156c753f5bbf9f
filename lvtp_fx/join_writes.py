"""Writes into a part of a tensor, `x[:, 1:] += y`, as joins of its parts, which the passes follow."""

from __future__ import annotations

import sys

import torch
from torch import fx

from lvtp_fx.passes.attention_forms import call
from lvtp_fx.passes.attention_scores import same
from lvtp_fx.passes.axes.flow import argument
from lvtp_fx.provenance import told_by

aten = torch.ops.aten


def join_writes(graph: fx.Graph) -> None:
    """Changes `graph`; leaves the dead nodes to the caller. What is written with a step, or as another dtype, stays.

        before                                      after
        a = slice(x, 1, 1, max); b = add(a, y)      a = slice(x, 1, 1, max); b = add(a, y)
        slice_scatter(x, b, 1, 1, max)              cat([slice(x, 1, 0, 1), b], 1)
        select_scatter(x, z, 1, 0)                  cat([unsqueeze(z, 1), slice(x, 1, 1, max)], 1)
        copy(a, b), of one shape and dtype          b
    """
    for node in list(graph.nodes):
        if node.target is aten.copy.default and _alike(node, node.args[1]):
            node.replace_all_uses_with(node.args[1])
        elif node.target in (aten.slice_scatter.default, aten.select_scatter.default):
            with graph.inserting_before(node):
                joined = _joined(graph, node)
            if joined is not None:
                node.replace_all_uses_with(joined)


def _joined(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """What the node computes, out of parts of its operands, or None."""
    x, written = node.args[:2]
    assert isinstance(x, fx.Node)
    assert isinstance(written, fx.Node)
    selects = node.target is aten.select_scatter.default
    dim = argument(node, 2, "dim", 0) % x.meta["val"].ndim
    size = x.meta["val"].shape[dim]
    start, stop, step = (argument(node, i, name, None) for i, name in ((3, "start"), (4, "end"), (5, "step")))
    if selects:
        start, step = argument(node, 3, "index"), 1
        stop = start + 1 if isinstance(start, int) and start != -1 else None
    start, stop = 0 if start is None else start, sys.maxsize if stop is None else stop
    if written.meta["val"].dtype != x.meta["val"].dtype or step not in (None, 1):
        return None
    if not isinstance(start, int) or not isinstance(stop, int):
        return None
    if start == 0 and stop == sys.maxsize and not selects:
        return written
    if not isinstance(size, int):
        return None
    start, stop = (max(0, min(size, at + size if at < 0 else at)) for at in (start, stop))
    if start >= stop:
        return x
    part = call(graph, aten.unsqueeze.default, written, dim) if selects else written
    parts = [part]
    if start:
        parts.insert(0, call(graph, aten.slice.Tensor, x, dim, 0, start))
    if stop < size:
        parts.append(call(graph, aten.slice.Tensor, x, dim, stop, sys.maxsize))
    return told_by(node, call(graph, aten.cat.default, parts, dim) if len(parts) > 1 else part)


def _alike(node: fx.Node, other: object) -> bool:
    if not isinstance(other, fx.Node):
        return False
    a, b = node.meta["val"], other.meta["val"]
    return a.dtype == b.dtype and same(a.shape, b.shape)
