"""FLOPs of a graph as torch's FlopCounterMode counts them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from lvtp_fx.capture import TRACING
from lvtp_fx.capture_refusals import WITHOUT_FLEX, first_line
from lvtp_fx.errors import Code, LvtpError
from lvtp_fx.kept_state import kept_state
from lvtp_fx.run_graph import cloned, flat_inputs

aten = torch.ops.aten
_ATTENTION = (aten._scaled_dot_product_flash_attention_for_cpu, aten._scaled_dot_product_flash_attention,
              aten._scaled_dot_product_efficient_attention, aten._scaled_dot_product_cudnn_attention)


def measured_flops(module: fx.GraphModule, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: int) -> float:
    """FLOPs of one image as FlopCounterMode counts them, on fake tensors: no arithmetic is done, unless a shape depends
    on values (`mask[torch.where(...)]`).

    The fused attention of the CPU counts as that of a GPU does; FlopCounterMode itself takes it for free.

    Raises:
        LvtpError: LVTP101 for an op that cannot run under it (flex_attention).
    """
    inputs = flat_inputs(module, args, dict(kwargs))
    with TRACING, torch.no_grad():
        try:
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                fakes = [mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in inputs]
                return _counted(module, fakes) / batch
        except (DynamicOutputShapeException, DataDependentOutputException):
            with kept_state(module):
                return _counted(module, cloned(inputs)) / batch


def _counted(module: fx.GraphModule, inputs: list[Any]) -> float:
    with FlopCounterMode(display=False, custom_mapping=dict.fromkeys(_ATTENTION, _attention_flops)) as counter:
        runs = _OneOfAKind(module, counter)
        try:
            runs.run(*inputs, enable_io_processing=False)
        except (TypeError, NotImplementedError) as error:
            raise _no_count(module, error) from error
    return float(counter.get_total_flops() + runs.repeated_flops)


class _OneOfAKind(fx.Interpreter):
    """Runs a graph; of ops that get the same arguments and fake tensors of the same layout one alone is run, and the
    others have its result and its FLOPs: blocks are many, and alike.

    Attributes:
        repeated_flops: of the others.
    """

    def __init__(self, module: fx.GraphModule, counter: FlopCounterMode) -> None:
        super().__init__(module)
        self.counter, self.repeated_flops = counter, 0
        self._known: dict[str, tuple[Any, int]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """As of `fx.Interpreter`."""
        if not isinstance(n.target, torch._ops.OpOverload) or n.target._schema.is_mutable:
            return super().run_node(n)
        kind = f"{n.target}{fx.node.map_aggregate(self.fetch_args_kwargs_from_env(n), _layout)}"
        if kind in self._known:
            value, flops = self._known[kind]
            self.repeated_flops += flops
            return value
        before = self.counter.get_total_flops()
        value = super().run_node(n)
        if all(isinstance(leaf, FakeTensor) and leaf.constant is None for leaf in pytree.tree_leaves(value)):
            self._known[kind] = value, self.counter.get_total_flops() - before
        return value  # what is, or has, a value of its own may differ next time


def _layout(value: Any) -> Any:
    """What the shape of a result may depend on."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.stride(), value.dtype, value.device
    return value


def _no_count(module: fx.GraphModule, error: Exception) -> LvtpError:
    higher = {str(n.target) for n in module.graph.nodes if isinstance(n.target, torch._ops.HigherOrderOperator)}
    return LvtpError(
        Code.CAPTURE_FAILED, where=f"the captured graph ({', '.join(sorted(higher)) or 'an op'})",
        expected="ops that torch.utils.flop_counter can count", got=first_line(error)[:120],
        why="tokens are dropped for a share of the FLOPs",
        hint=WITHOUT_FLEX,
    )


def _attention_flops(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    """Keys that serve several heads of queries count for each; torch 2.11's formula knows no such heads."""
    return int(sdpa_flop_count(q, (k[0], q[1], *k[2:]), (v[0], q[1], *v[2:])))
