"""Time as a function of the token counts, from a short measured probe of the model's own ops.

Each op is timed alone on the full grid and in a first rewritten graph, on the example inputs and where they are.
Between and beyond the two, the part that shrinks goes with its FLOPs, or with its output where it has none. What is
inserted is compiled as a graph of its own, and timed.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import sympy
import torch
from torch import fx
from torch._dynamo.exc import TorchDynamoException

from lvtp_fx import cost
from lvtp_fx.capture import Capture
from lvtp_fx.errors import Code, LvtpError
from lvtp_fx.kept_state import kept_state
from lvtp_fx.plan import Clock, Plan
from lvtp_fx.run_graph import Tap, flat_inputs
from lvtp_fx.stopwatch import accelerators, stopped_ms

_REPEATS = 3  # the fastest counts: what disturbs a measurement makes it longer
_CERTAIN = 0.95  # of the dense time: what is less faster than that, the probe cannot tell from no gain


def probe(graph: fx.GraphModule, captured: Capture) -> Clock:
    """Time each op of the analysed graph; takes four forward passes."""
    times = op_times(graph, captured)
    return Clock(times, times)


def op_times(module: fx.GraphModule, captured: Capture) -> dict[str, float]:
    """Milliseconds of each op on the example inputs, alone and not compiled, by the name of its node."""
    return _timed(module, flat_inputs(module, *captured.given))


def calibrated(clock: Clock, plan: Plan, module: fx.GraphModule, captured: Capture) -> Clock:
    """The clock that also knows how ops shrink, and what the inserted ones take: those of the rewritten `module`, made
    of `plan`, that the analysed graph has not."""
    reduced = op_times(module, captured)
    counts = [site.kept for site in plan.sites]
    shrinking = dict(clock.node_ms)
    for node, space in plan.spaces.items():
        if space and node.name in clock.node_ms and node.name in reduced:
            share = float(cost.share(plan, node, counts[space - 1]))
            if share < 1:
                full = clock.node_ms[node.name]
                shrinking[node.name] = min(full, max(0.0, full - reduced[node.name]) / (1 - share))
    return replace(clock, shrinking_ms=shrinking, inserted_ms=inserted_ms(plan, module, captured))


def inserted_ms(plan: Plan, module: fx.GraphModule, captured: Capture) -> float:
    """Milliseconds of the ops that the rewritten `module`, made of `plan`, has beyond the analysed graph.

    As one compiled graph, as they will run; one by one where Inductor finds no compiler."""
    inputs = flat_inputs(module, *captured.given)
    part, outside = _inserted_part(module, {node.name for node in plan.graph_module.graph.nodes})
    tap = Tap(module, {node.name for node in outside})
    with torch.no_grad(), kept_state(module):
        tap.run(*inputs, enable_io_processing=False)
        values = [tap.seen[node.name] for node in outside]
        compiled, devices = torch.compile(part, fullgraph=True), accelerators(values)
        try:
            compiled(*values)
        except TorchDynamoException:
            return sum(_timed(part, values).values())
        return min(stopped_ms(compiled, *values, devices=devices) for _ in range(_REPEATS))


def _inserted_part(module: fx.GraphModule, old: set[str]) -> tuple[fx.GraphModule, list[fx.Node]]:
    """A graph of the inserted ops alone, and the nodes of the module whose values are its inputs."""
    inserted = [n for n in module.graph.nodes if n.op == "call_function" and n.name not in old]
    outside = list(dict.fromkeys(a for n in inserted for a in n.all_input_nodes if a not in set(inserted)))
    graph = fx.Graph()
    new = {node: graph.placeholder(node.name) for node in outside}
    for node in inserted:
        new[node] = graph.node_copy(node, lambda n: new[n])
    last = [n for n in inserted if any(user not in set(inserted) for user in n.users)]
    graph.output(tuple(new[n] for n in last))
    return fx.GraphModule(module, graph), outside


def saved_ms(plan: Plan, clock: Clock) -> sympy.Expr:
    """Milliseconds that the rewritten graph saves, in K1, K2, ... (see `cost.counts`), what is inserted taken off."""
    saved = sympy.Float(-clock.inserted_ms)
    for node, space in plan.spaces.items():
        if space and node.name in clock.node_ms:
            saved += clock.shrinking_ms[node.name] * (1 - cost.share(plan, node, cost.counts(plan)[space - 1]))
    return saved


def predicted_ms(plan: Plan, clock: Clock) -> float:
    """Milliseconds of the rewritten graph."""
    values = dict(zip(cost.counts(plan), (site.kept for site in plan.sites), strict=True))
    return clock.dense_ms - float(saved_ms(plan, clock).subs(values))


def refuse_slower(plan: Plan, clock: Clock) -> None:
    """Raises:
        LvtpError: LVTP204 where the rewritten graph is not expected to be faster.
    """
    if not plan.sites or (expected := predicted_ms(plan, clock)) < _CERTAIN * clock.dense_ms:
        return
    assert plan.trunk is not None
    raise LvtpError(
        Code.TOO_LITTLE_TIME_SAVED, where=plan.trunk.blocks[plan.sites[0].block].attention.path or "the top level",
        expected=f"less than {_CERTAIN * clock.dense_ms:.2f} ms: {_CERTAIN:.0%} of what the dense model takes",
        got=f"{expected:.2f} ms, of which scoring, clustering, gathers and restores take {clock.inserted_ms:.2f} ms",
        why="with few tokens, choosing some of them costs more time than dropping the others saves",
        hint="a larger image or batch, a larger cut, entropy_weight=0 or rounds=1; or leave this model dense",
    )


def _timed(module: fx.GraphModule, inputs: list[Any]) -> dict[str, float]:
    """Milliseconds of each op, by the name of its node."""
    watch = _Stopwatch(module, accelerators(inputs))
    with torch.no_grad(), kept_state(module):
        for turn in range(_REPEATS + 1):
            watch.run(*inputs, enable_io_processing=False)
            if turn == 0:
                watch.found.clear()  # the first pass warms up
    return watch.found


class _Stopwatch(fx.Interpreter):
    """Runs a graph and keeps the shortest time of each call."""

    def __init__(self, module: fx.GraphModule, devices: set[torch.device]) -> None:
        super().__init__(module)
        self.devices, self.found, self._now = devices, dict[str, float](), ""

    def run_node(self, n: fx.Node) -> Any:
        self._now = n.name
        return super().run_node(n)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        out = []
        took_ms = stopped_ms(lambda: out.append(target(*args, **kwargs)), devices=self.devices)
        self.found[self._now] = min(self.found.get(self._now, inf), took_ms)
        return out[0]
