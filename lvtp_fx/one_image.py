"""Whether a model does with one image alone what it does with several."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from lvtp_fx.kept_state import kept_state
from lvtp_fx.randomness import random_nodes
from lvtp_fx.run_graph import cloned
from lvtp_fx.same_values import same_values
from lvtp_fx.twin import left_alone

Alone = Literal["same", "other", "restless"]
_CLOSE = {torch.float16: 5e-2, torch.bfloat16: 5e-2}  # relative; other floats 1e-3
_LARGE = 1 << 25  # values in a graph for an image from which on computing takes longer than following the ops


def compared_alone(
    twin: Callable[[], nn.Module], graph: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Alone:
    """Whether a twin of the model computes something "other" from a batch of one than the graph captured from two
    images; "restless" where it does so from one call to the next, as one that draws from Python's or NumPy's numbers.

    Export takes a free batch for one of two or more, without a word: `if len(x) == 1`, or a `squeeze()` of all axes.
    Models that draw torch's numbers are not compared. Large ones are run only where it cannot be told from their ops.
    """
    if next(random_nodes(graph.graph), None) is not None:
        return "same"
    if _values_of_an_image(graph.graph) >= _LARGE and _surely_same(twin(), graph, args, kwargs):
        return "same"

    def run(module: nn.Module) -> list[Any]:
        with torch.no_grad(), kept_state(graph):
            return pytree.tree_leaves(module(*cloned(args), **cloned(kwargs)))

    def run_twin() -> list[Any]:
        with left_alone(model := twin()):
            return run(model)

    try:
        want = run_twin()
    except Exception:  # it takes no single image, and nobody will hand it one
        return "same"
    try:
        if _agree(run(graph), want):
            return "same"
    except Exception:  # the model can do what its graph cannot
        return "other"
    return "other" if _agree(run_twin(), want) else "restless"


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


def _agree(got: list[Any], want: list[Any]) -> bool:
    return len(got) == len(want) and not any(_differ(a, b) for a, b in zip(got, want, strict=True))


def _differ(got: Any, want: Any) -> bool:
    if not isinstance(want, torch.Tensor) or not isinstance(got, torch.Tensor):
        return False
    if got.shape != want.shape:
        return True
    if want.is_meta or not want.numel() or not want.is_floating_point():
        return False
    apart, scale = (float(x.nan_to_num().abs().max()) for x in (got - want, want))
    return apart > _CLOSE.get(want.dtype, 1e-3) * scale
