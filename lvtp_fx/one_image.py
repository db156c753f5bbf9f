"""Whether a model does with one image alone what it does with several."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from lvtp_fx.kept_state import kept_state
from lvtp_fx.randomness import random_nodes
from lvtp_fx.run_graph import cloned
from lvtp_fx.same_values import same_values
from lvtp_fx.twin import left_alone

_CLOSE = {torch.float16: 5e-2, torch.bfloat16: 5e-2}  # relative; other floats 1e-3
_LARGE = 1 << 25  # values in a graph for an image from which on computing takes longer than following the ops


def differs_alone(
    twin: Callable[[], nn.Module], graph: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    """Whether a twin of the model computes something else from a batch of one than the graph captured from two images.

    Export takes a free batch for one of two or more, without a word: `if len(x) == 1`, or a `squeeze()` of all axes.
    Models that draw random numbers are not compared. Large ones are run only where it cannot be told from their ops.
    """
    if next(random_nodes(graph.graph), None) is not None:
        return False
    if _values_of_an_image(graph.graph) >= _LARGE and _surely_same(twin(), graph, args, kwargs):
        return False
    model = twin()
    try:
        with torch.no_grad(), kept_state(graph), left_alone(model):
            want = pytree.tree_leaves(model(*cloned(args), **cloned(kwargs)))
    except Exception:  # it takes no single image, and nobody will hand it one
        return False
    try:
        with torch.no_grad(), kept_state(graph):
            got = pytree.tree_leaves(graph(*cloned(args), **cloned(kwargs)))
    except Exception:  # the model can do what its graph cannot
        return True
    return len(got) != len(want) or any(_differ(a, b) for a, b in zip(got, want, strict=True))


def _surely_same(model: nn.Module, graph: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        with left_alone(model):
            return same_values(model, graph, args, kwargs)
    except Exception:  # what it is, running shows
        return False


def _values_of_an_image(graph: fx.Graph) -> int:
    """How many numbers the tensors of the graph hold for one image."""
    values = (node.meta.get("val") for node in graph.nodes if node.op == "call_function")
    return sum(prod(map(_of_one, value.shape)) for value in values if isinstance(value, torch.Tensor))


def _of_one(size: int | torch.SymInt) -> int:
    """A size where the batch is one."""
    return size if isinstance(size, int) else int(size.node.expr.as_coeff_Mul()[0])


def _differ(got: Any, want: Any) -> bool:
    if not isinstance(want, torch.Tensor) or not isinstance(got, torch.Tensor):
        return False
    if got.shape != want.shape:
        return True
    if want.is_meta or not want.numel() or not want.is_floating_point():
        return False
    apart, scale = (float(x.nan_to_num().abs().max()) for x in (got - want, want))
    return apart > _CLOSE.get(want.dtype, 1e-3) * scale
