"""A graph that Dynamo traced, as a module that can be captured; and the way back.

Dynamo hands parameters, buffers and symbolic sizes to a graph as inputs:

    f(s0, weight, x[s0, 3, 64, 64])  ->  module(x) with weight as a parameter and s0 read off x  ->  pruned(x)
                                     ->  f(s0, weight, x) with the pruned nodes
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor

from lvtp_fx.batch_axis import BATCH_STAND_IN
from lvtp_fx.capture import Capture
from lvtp_fx.dynamo_refusals import changes_in_training
from lvtp_fx.errors import Code, LvtpError
from lvtp_fx.provenance import describe

aten = torch.ops.aten
_KEPT_META = ("nn_module_stack", "stack_trace")


class DynamoGraph:
    """A GraphModule of Dynamo and its example inputs.

    Args:
        graph: its placeholders are inputs, parameters, buffers and symbolic sizes.
        example_inputs: one real value a placeholder.
    """

    def __init__(self, graph: fx.GraphModule, example_inputs: Sequence[Any]) -> None:
        self.graph, self.trains = graph, torch.is_grad_enabled()
        placeholders = graph.graph.find_nodes(op="placeholder")
        self.values: dict[fx.Node, Any] = dict(zip(placeholders, example_inputs, strict=True))
        tensors = [n for n in placeholders if isinstance(self.values[n], torch.Tensor)]
        self.held = [n for n in tensors if _is_held(n, self.values[n])]
        # Python floats come as tensors of no axis, of which the graph takes the item.
        self.numbers = [n for n in tensors if not self.values[n].ndim and n.users and all(map(_is_item, n.users))]
        self.inputs: list[fx.Node] = [n for n in tensors if n not in self.held and n not in self.numbers]

    def examples(self) -> tuple[torch.Tensor, ...]:
        """The tensors that are inputs of the model, copied.

        Raises:
            LvtpError: LVTP105 for tensors without data, and for inputs that are neither tensors nor sizes.
        """
        for node, value in self.values.items():
            if isinstance(value, FakeTensor) or not isinstance(value, (torch.Tensor, int, torch.SymInt)):
                hint = "lvtp_fx.transform(model, example_inputs), then torch.compile"
                if isinstance(value, FakeTensor):
                    hint = f"under DistributedDataParallel, torch._dynamo.config.optimize_ddp = False; or {hint}"
                raise LvtpError(
                    Code.BAD_EXAMPLE, where=f"input {node.name}", expected="a real tensor or a size",
                    got=type(value).__name__, why="the graph is captured again with the inputs that Dynamo saw",
                    hint=hint,
                )
        return tuple(self.values[node].detach().clone() for node in self.inputs)

    def module(self) -> fx.GraphModule:
        """The same graph with parameters and buffers as attributes, shared, and only the model's inputs left.

        Raises:
            LvtpError: LVTP101 for a graph that calls a module in training mode, which capture would put in eval mode,
                and for one that has a part without gradients, which capture would give some.
        """
        graph, env = fx.Graph(), dict[fx.Node, Any]()
        root: dict[str, Any] = {node.name: self.values[node] for node in self.held}
        for node in self.inputs:
            env[node] = graph.node_copy(node)
        for node in self.held:
            env[node] = graph.get_attr(node.name)
        for node, value in self.values.items():
            if node not in env and node not in self.numbers:
                source = self._batch_of(node)
                env[node] = int(value) if source is None else graph.call_function(aten.sym_size.int, (env[source], 0))
        if (image := self._image()) is not None and not isinstance(_size(image), torch.SymInt):
            # The batch is a literal in Dynamo's graph; where it is one, two images would pass for one twice as large.
            same = graph.call_function(operator.eq, (graph.call_function(aten.sym_size.int, (env[image], 0)),
                                                     self.values[image].shape[0]))
            graph.call_function(torch._check, (same,))
        for node in self.graph.graph.nodes:
            if node.op in ("get_attr", "call_module"):
                root[str(node.target)] = attrgetter(str(node.target))(self.graph)
            if node.op == "call_module" and root[str(node.target)].training:
                raise changes_in_training(f"{node.target} (node {node.name})", "a module in training mode")
            if self.trains and node.target is torch._C._set_grad_enabled:
                raise changes_in_training(describe(node), "a part under torch.no_grad(), in a graph with gradients")
            if node.op == "placeholder":
                continue
            if _is_item(node) and node.args[0] in self.numbers:
                env[node] = self.values[node.args[0]].item()
                continue
            env[node] = graph.node_copy(node, env.__getitem__)
            _name_as_in_model(env[node])
        return fx.GraphModule(root, graph)

    def replace_by(self, fast: fx.GraphModule, captured: Capture) -> None:
        """Put the pruned nodes in the place of Dynamo's own; its placeholders stay.

        The pruned graph holds one image size: sizes that Dynamo left open become guards here, all but the batch, so
        that another size is traced anew.
        """
        self._fix_sizes(batch_is_free=captured.batch == BATCH_STAND_IN)
        graph = self.graph.graph
        for node in reversed(graph.nodes):
            if node.op != "placeholder":
                graph.erase_node(node)
        of_tensor = {id(self.values[node]): node for node in self.held}
        env = dict(zip(fast.graph.find_nodes(op="placeholder"), self.inputs, strict=True))
        for node in fast.graph.nodes:
            if node.op == "placeholder":
                continue
            if node.op == "get_attr":
                value = attrgetter(str(node.target))(fast)
                env[node] = of_tensor[id(value)] if id(value) in of_tensor else self._constant(node, value)
                continue
            env[node] = graph.node_copy(node, env.__getitem__)
            # Values of another tracing would be taken for this one's.
            env[node].meta = {key: node.meta[key] for key in _KEPT_META if key in node.meta}
        # Dynamo reads a flat tuple, which is what the pruned graph returns: it was captured from this one.
        output = next(iter(graph.find_nodes(op="output")))
        output.args = (tuple(output.args[0]),)
        graph.lint()
        self.graph.recompile()

    def _constant(self, node: fx.Node, value: Any) -> fx.Node:
        name = f"lvtp_{node.name}"
        if isinstance(value, torch.Tensor):
            self.graph.register_buffer(name, value, persistent=False)
        else:
            setattr(self.graph, name, value)
        return self.graph.graph.get_attr(name)

    def _batch_of(self, size: fx.Node) -> fx.Node | None:
        """The input whose first axis is this symbolic size."""
        symbol = str(size.meta.get("example_value"))
        return next((node for node in self.inputs if str(_size(node)) == symbol), None)

    def _fix_sizes(self, *, batch_is_free: bool) -> None:
        image = self._image()
        free = {str(_size(image))} if batch_is_free and image is not None else set[str]()
        for number in self.numbers:
            for item in number.users:
                float(item.meta["example_value"])  # guards on it
        for node, value in self.values.items():
            known = node.meta.get("example_value")
            sizes = known.shape if isinstance(value, torch.Tensor) and known is not None else (known,)
            for axis, size in enumerate(sizes):
                if isinstance(size, torch.SymInt) and not (axis == 0 and str(size) in free):
                    int(size)  # guards on it

    def _image(self) -> fx.Node | None:
        """The input that capture reads the batch from."""
        order = sorted(self.inputs, key=lambda n: (not self.values[n].is_floating_point(), -self.values[n].ndim))
        return order[0] if order and self.values[order[0]].ndim else None


def _size(node: fx.Node) -> Any:
    """Of an input, the first size as Dynamo has it, or None."""
    known = node.meta.get("example_value")
    return known.shape[0] if isinstance(known, torch.Tensor) and known.ndim else None


def _is_item(node: fx.Node) -> bool:
    return node.op == "call_method" and node.target == "item"


def _name_as_in_model(node: fx.Node) -> None:
    """Module paths as the model has them, `blocks.3.attn`, where Dynamo has `L['self'].blocks.3.attn`."""
    stack = node.meta.get("nn_module_stack") or {}
    node.meta["nn_module_stack"] = {key: (path.removeprefix("L['self']").removeprefix("."), kind)
                                    for key, (path, kind) in stack.items()}


def _is_held(node: fx.Node, value: torch.Tensor) -> bool:
    """Whether a tensor belongs to a module, or to a namespace, and is not handed in."""
    if isinstance(value, nn.Parameter):
        return True
    source = getattr(getattr(node, "_dynamo_source", None), "name", "")
    name = str(source() if callable(source) else source)  # a method in older torch
    inside = any(part in name for part in ("._modules[", "._parameters[", "._buffers["))
    return inside or name.startswith(("L['self'].", "G["))
