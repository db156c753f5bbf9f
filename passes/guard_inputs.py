"""Check inputs at call time, inside the graph, so that the checks survive deepcopy, export and compile."""

from __future__ import annotations

import torch
from torch import fx

import lvtp_fx.ops  # noqa: F401  (registers lvtp.check_input)
from lvtp_fx.batch_axis import fixed_size
from lvtp_fx.ops.guard import check_constant

_CONSTANTS = (bool, int, float, str, torch.dtype, torch.device, type(None))


def guard_inputs(graph: fx.Graph) -> None:
    """Let every tensor input pass through `lvtp.check_input`, and every other one through `check_constant`. Changes
    `graph`.

        before               after
        x = placeholder      x = placeholder
        scale = placeholder  scale = placeholder
                             check_constant = check_constant(scale, "scale", 2.0)
        conv2d(x)            check_input = lvtp.check_input(x, "x", [-1, 3, 224, 224], "", float32); conv2d(check_input)
    """
    device = _literal_device(graph)
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    for node in placeholders:
        value = node.meta.get("val", ...)
        if isinstance(value, _CONSTANTS):
            with graph.inserting_after(placeholders[-1]):
                graph.call_function(check_constant, (node, str(node.target), value))
        if not isinstance(value, torch.Tensor) or not node.users:
            continue
        shape = [-1 if (known := fixed_size(size)) is None else known for size in value.shape]
        where = "" if value.is_meta else device  # a graph on the meta device is only looked at
        with graph.inserting_after(placeholders[-1]):
            check = graph.call_function(
                torch.ops.lvtp.check_input.default, (node, str(node.target), shape, where, value.dtype))
        node.replace_all_uses_with(check, delete_user_cb=lambda user, check=check: user is not check)


def _literal_device(graph: fx.Graph) -> str:
    """The device that the graph creates tensors on, or "" where it creates none: then it can be moved."""
    for node in graph.nodes:
        for argument in (*node.args, *node.kwargs.values()):
            if isinstance(argument, torch.device):
                return argument.type
    return ""
