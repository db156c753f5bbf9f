"""The pipeline: all passes in order, and the one runner."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from torch import fx

from lvtp_fx.capture import Capture
from lvtp_fx.clean_graph import copy_graph
from lvtp_fx.config import Config
from lvtp_fx.passes.assign_spaces import AssignSpaces
from lvtp_fx.passes.choose_sites import ChooseSites
from lvtp_fx.passes.find_trunk import FindTrunk
from lvtp_fx.passes.flatten_convolutions import FlattenConvolutions
from lvtp_fx.passes.guard_inputs import guard_inputs
from lvtp_fx.passes.insert_reduction import InsertReduction
from lvtp_fx.passes.label_axes import LabelAxes
from lvtp_fx.passes.match_attention import MatchAttention
from lvtp_fx.passes.solve_counts import SolveCounts
from lvtp_fx.plan import Plan


class Pass(Protocol):
    """A pass: reads a plan, returns a fuller one."""

    @property
    def name(self) -> str: ...

    def __call__(self, plan: Plan) -> Plan: ...


def analysis() -> tuple[Pass, ...]:
    """Find out what the graph is. Nothing depends on the wanted cut."""
    return (
        FlattenConvolutions(),
        MatchAttention(),  # before the labels: one form of attention for all that follows
        LabelAxes(),       # after it: the fused node has the rule that lets keys be dropped
        FindTrunk(),       # needs labels: blocks are attention over the tokens of one grid
    )


def rewrite(dense_flops: float, *, in_reach: bool = False) -> tuple[Pass, ...]:
    """Decide, then build. Needs a trunk. `in_reach`: as of `SolveCounts`."""
    return (
        ChooseSites(),
        AssignSpaces(),             # before the counts: the cost of a node depends on its space
        SolveCounts(dense_flops, in_reach=in_reach),
        InsertReduction(),          # last of the passes that read the captured graph
    )


def start(capture: Capture, config: Config) -> Plan:
    """An empty plan over a copy of the captured graph, which the passes may normalise."""
    working = fx.GraphModule(capture.module, copy_graph(capture.module.graph))
    return Plan(working, capture.module, config, capture.batch)


def run(passes: Iterable[Pass], plan: Plan) -> Plan:
    """Run passes in order; the working graph must be well-formed after each."""
    for step in passes:
        plan = step(plan)
        plan.graph_module.graph.lint()
    return plan


def finish(plan: Plan) -> fx.GraphModule:
    """The module of the pruned graph, or of the captured one where nothing is pruned, of a copy of it: input checks,
    dead code, lint, code generation."""
    graph = copy_graph(plan.captured.graph if plan.pruned is None else plan.pruned)
    graph.set_codegen(plan.captured.graph._codegen)
    guard_inputs(graph)
    # All that is decided can be read, even where nothing is merged or restored; compilers drop it then.
    decided = {name for site in plan.record.sites for name in site.nodes} if plan.record else set()
    graph.eliminate_dead_code(lambda node: node.is_impure() or node.name in decided)
    graph.lint()
    return fx.GraphModule(plan.captured, graph)
