"""Run a graph node by node, as its module is called."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from lvtp_fx.kept_state import kept_state


class Tap(fx.Interpreter):
    """Runs a graph and remembers the values of some nodes."""

    def __init__(self, module: fx.GraphModule, names: set[str]) -> None:
        super().__init__(module)
        self.names, self.seen = names, dict[str, Any]()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self.names:
            self.seen[n.name] = result
        return result


def run_flat(
    interpreter: fx.Interpreter, module: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run an interpreter on a module's inputs as the module itself takes them; these, and buffers, are left as they
    were, also where the graph writes into them."""
    with torch.no_grad(), kept_state(module):
        flat = interpreter.run(*cloned(flat_inputs(module, args, kwargs)), enable_io_processing=False)
    return module.graph.process_outputs(flat)


def cloned(inputs: Any) -> Any:
    """The same with other tensors of the same values, for what may write into them."""
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, inputs)


def flat_inputs(module: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """A module's inputs as its placeholders take them, in order."""
    spec = module.graph._codegen.pytree_info.in_spec  # type: ignore[attr-defined]
    return pytree.tree_leaves((args, {name: kwargs[name] for name in spec.child(1).context} if kwargs else {}))
