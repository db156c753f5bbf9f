"""Whether a model does with one image alone what it does with several."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from lvtp_fx.kept_state import kept_state
from lvtp_fx.randomness import random_nodes
from lvtp_fx.run_graph import cloned
from lvtp_fx.twin import left_alone

_CLOSE = {torch.float16: 5e-2, torch.bfloat16: 5e-2}  # relative; other floats 1e-3


def differs_alone(model: nn.Module, graph: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the twin `model` computes something else from a batch of one than the graph captured from two images.

    Export takes a free batch for one of two or more, without a word: `if len(x) == 1`, or a `squeeze()` of all axes.
    Models that draw random numbers are not compared.
    """
    if next(random_nodes(graph.graph), None) is not None:
        return False
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


def _differ(got: Any, want: Any) -> bool:
    if not isinstance(want, torch.Tensor) or not isinstance(got, torch.Tensor):
        return False
    if got.shape != want.shape:
        return True
    if want.is_meta or not want.numel() or not want.is_floating_point():
        return False
    apart, scale = (float(x.nan_to_num().abs().max()) for x in (got - want, want))
    return apart > _CLOSE.get(want.dtype, 1e-3) * scale
