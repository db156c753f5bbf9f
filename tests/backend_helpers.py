"""What the tests of the Dynamo backend look at: the graphs that it hands on, and the tokens that they keep."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch._dynamo import lookup_backend

import lvtp_fx
from lvtp_fx.backend import NotPruned

SELECT = torch.ops.lvtp.select.default


class Inner:
    """An inner backend that remembers the graphs it compiles, and the tokens that each call keeps.

    Attributes:
        graphs: in the order in which they were compiled.
        kept: of the latest call, one tensor a site, as `selections` gives them.
    """

    def __init__(self, name: str = "eager") -> None:
        self.name, self.graphs, self.kept = name, list[fx.GraphModule](), list[torch.Tensor]()

    def __call__(self, graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        self.graphs.append(graph)
        compiled = lookup_backend(self.name)(graph, list(inputs))
        if not dialect(graph):  # to run it twice would draw random numbers twice
            return compiled

        def run(*args: Any) -> Any:
            self.kept = selections(graph, args)
            return compiled(*args)

        return run

    def pruned(self) -> list[bool]:
        return [bool(dialect(graph)) for graph in self.graphs]


class _Selections(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.target is SELECT:
            self.kept = [*getattr(self, "kept", []), result]
        return result


def selections(graph: fx.GraphModule, args: Sequence[Any]) -> list[torch.Tensor]:
    """What each site of a graph keeps, [B, K] indices into its parent's tokens."""
    interpreter = _Selections(graph)
    with torch.no_grad():
        interpreter.run(*args, enable_io_processing=False)
    return getattr(interpreter, "kept", [])


def dialect(graph: fx.GraphModule) -> list[tuple[str, tuple[Any, ...]]]:
    """The inserted nodes in order, with their plain arguments; the checks of inputs left out."""
    return [
        (str(node.target), tuple(a for a in node.args if isinstance(a, (int, float))))
        for node in graph.graph.nodes
        if str(node.target).startswith("lvtp.") and "check_input" not in str(node.target)
    ]


def compiled(model: nn.Module, inner: Inner, *, dynamic: bool | None = None, **options: Any) -> Callable[..., Any]:
    """The model under the backend, from a clean Dynamo."""
    torch._dynamo.reset()
    made: Callable[..., Any] = torch.compile(
        model, backend="lvtp_fx", dynamic=dynamic, options={"inner": inner, **options})
    return made


def refusals(run: Callable[[], Any]) -> list[str]:
    """The messages of the `NotPruned` warnings of a call."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run()
    return [str(w.message) for w in seen if w.category is NotPruned]


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest difference over the largest entry."""
    return float(((got - want).abs().max() / want.abs().max()).detach())


def transformed(model: nn.Module, x: torch.Tensor, **options: Any) -> fx.GraphModule:
    return lvtp_fx.transform(model, (x,), **options)
