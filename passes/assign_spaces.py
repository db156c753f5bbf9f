"""Decide for each value in which token space it is computed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import fx

from lvtp_fx.cost import node_flops
from lvtp_fx.passes.axes.label import Factor, Kind, grids
from lvtp_fx.passes.find_trunk import reads_other_tokens
from lvtp_fx.plan import Plan


@dataclass(frozen=True)
class AssignSpaces:
    """Unifies to the smallest space inside the trunk and the later streams, and to the full grid (space 0) elsewhere.

    Requires: `trunk`, `sites`, `labels`, `flows`. Ensures: `spaces`; labels know the tokens of one grid.

        x1 = add(x0, attention)   space 0, reduced to space 1 for what follows in the trunk
        norm(x1), mlp, add        space 1
        windows(norm(x2))         space 0, the norm too: x2 is restored before it
        tap = norm(x2)            space 0 (outside the trunk: x2 is restored first)
        y0 = linear(norm(x2))     space 0, where a later stream begins: merged into space 1 again for what follows in it
        add(y0, attention)        space 1
    """

    name: ClassVar[str] = "assign_spaces"

    def __call__(self, plan: Plan) -> Plan:
        assert plan.trunk is not None
        plan = _on_one_grid(plan, plan.trunk.grid)
        assert plan.trunk is not None
        spaces: dict[fx.Node, int] = {}
        born, reducible = births(plan), plan.reducible
        others = {match.node for match in plan.attentions if reads_other_tokens(plan, match.node, reducible)}
        for node in plan.graph_module.graph.nodes:
            spaces[node] = 0
            flow = plan.flows[node]
            if node in reducible and node not in others and not flow.full:
                spaces[node] = max(
                    (seen(operand, spaces, born) for operand, label in flow.uses.items()
                     if plan.trunk.grid in grids(label)), default=0,
                )
        _restore_early(plan, spaces, born)
        return replace(plan, spaces=spaces)


def _restore_early(plan: Plan, spaces: dict[fx.Node, int], born: dict[fx.Node, int]) -> None:
    """What is made of a state without products, for readers on the full grid alone (a norm before windows or a
    convolution), is made there: a state can be restored, other values only copied from owners."""
    states = set(plan.states)
    made: set[fx.Node] = set()
    for node, space in spaces.items():
        operands = [n for n in node.all_input_nodes if seen(n, spaces, born)]
        if space and node not in states and all(n in states or n in made for n in operands) and \
                node_flops(plan, node, 1) == 0:
            made.add(node)
    for node in reversed(spaces):
        if node in made and all(not spaces[user] for user in node.users):
            spaces[node] = 0


def _on_one_grid(plan: Plan, grid: tuple[int, int]) -> Plan:
    """From here on only tokens of the trunk's grid are tokens: those of another one (pooled keys) are in no space."""

    def one(factor: Factor) -> Factor:
        other = factor.kind is Kind.TOKEN and factor.grid != grid
        return Factor(Kind.PLAIN, factor.size) if other else factor

    def known(label: Any) -> Any:
        return one(label) if isinstance(label, Factor) else label and tuple(known(part) for part in label)

    flows = {node: replace(flow, out=known(flow.out), uses={n: known(label) for n, label in flow.uses.items()})
             for node, flow in plan.flows.items()}
    return replace(plan, labels={node: known(label) for node, label in plan.labels.items()}, flows=flows)


def sites_by_state(plan: Plan) -> dict[fx.Node, int]:
    """For each state where a space is born: the number of that space (1, 2, ...)."""
    assert plan.trunk is not None
    return {plan.trunk.blocks[site.block].state: i + 1 for i, site in enumerate(plan.sites)}


def births(plan: Plan) -> dict[fx.Node, int]:
    """The states that are seen in another space than they are computed in, and that space: those of the sites, and
    the first one of each later stream, which enters the last space."""
    entered = {stream.states[0]: len(plan.sites) for stream in plan.later if plan.sites}
    return {**sites_by_state(plan), **entered}


def seen(node: fx.Node, spaces: dict[fx.Node, int], born: dict[fx.Node, int]) -> int:
    """The space in which later nodes of the trunk see a value: a state is seen after its reduction."""
    return born.get(node, spaces[node])
