"""What happens at each site on given images, read from the values of the pruned graph's own nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from lvtp_fx.decisions import Decision, observe, original
from lvtp_fx.ops.score import standardise
from lvtp_fx.record import Record

SCORES = ("entropy", "edges", "received")  # ops of `lvtp_fx.ops.score` that give a token a score


@dataclass(frozen=True)
class SiteMaps:
    """One site, on the full grid of rows x columns tokens.

    Attributes:
        site: module path of the attention that tokens are dropped after.
        living: [B, rows, columns] bool, tokens that live on.
        owner: [B, rows, columns] int64, row-major position of the living token that stands for each.
        scores: by name (of `SCORES`) [B, rows, columns] float32, standardised per image; NaN for tokens that were
            dropped at an earlier site.
        absent: by name, why there is no entropy or no edges.
    """

    site: str
    living: torch.Tensor
    owner: torch.Tensor
    scores: dict[str, torch.Tensor] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


def site_maps(module: nn.Module, images: torch.Tensor) -> tuple[Any, list[SiteMaps]]:
    """Run a transformed module, eagerly: its output, and the maps of its sites, on the CPU.

    Args:
        module: what `transform` made, or its compiled form. images: [B, 3, H, W] as it takes them.

    Raises:
        LvtpError: LVTP302 for a module that `transform` did not make.
    """
    graph_module, record = original(module)
    nodes = list(_score_nodes(graph_module, record))
    names = {node.name for found in nodes for node in found.values()}
    output, decided, values = observe(graph_module, images, sorted(names))
    maps, position = [], None
    for found, decision in zip(nodes, decided, strict=True):
        maps.append(_site(record, decision, {n: values[found[n].name] for n in SCORES if n in found}, position,
                          "blank" in found))
        position = decision.kept
    return output, maps


def _site(
    record: Record, decision: Decision, scores: dict[str, torch.Tensor], position: torch.Tensor | None, blank: bool
) -> SiteMaps:
    rows, columns = record.grid
    batch = len(decision.kept)
    living = torch.zeros(batch, rows * columns, dtype=torch.bool, device=decision.kept.device)
    living.scatter_(1, decision.kept, True)
    full = {name: _spread(value, position, rows * columns).view(batch, rows, columns).cpu()
            for name, value in scores.items()}
    absent = {name: _why_absent(record, name, blank) for name in SCORES[:2] if name not in scores}
    return SiteMaps(decision.site, living.view(batch, rows, columns).cpu(),
                    decision.owner.view(batch, rows, columns).cpu(), full, absent)


def _spread(value: torch.Tensor, position: torch.Tensor | None, tokens: int) -> torch.Tensor:
    """Scores [B, N] of living tokens (or of all) on the full grid: [B, tokens], standardised, NaN elsewhere."""
    value = standardise(value.float())
    if position is None or value.shape[1] == tokens:
        return value
    return value.new_full((len(value), tokens), float("nan")).scatter_(1, position, value)


def _why_absent(record: Record, name: str, blank: bool) -> str:
    config = record.config
    if name == "edges" and blank:
        return "no image enters the model"
    if name == "entropy" and config.strategy == "lvtp" and config.entropy_weight == 0:
        return "it is not computed where entropy_weight is 0"
    return f"no node of the graph computes it: the strategy {config.strategy!r} does without"


def _score_nodes(module: fx.GraphModule, record: Record) -> Iterator[dict[str, fx.Node]]:
    """For each site, by name of the op, the first of the nodes that its decision comes from."""
    nodes = {node.name: node for node in module.graph.nodes}
    decided: set[fx.Node] = set()
    for site in record.sites:
        own = [nodes[site.kept_node], nodes[site.owner_node]]
        found: dict[str, fx.Node] = {}
        for node in _reached(own, decided):
            found.setdefault(op_name(node) or "", node)
        decided.update(own)
        yield found


def _reached(start: Sequence[fx.Node], stop: set[fx.Node]) -> list[fx.Node]:
    """Inserted nodes that `start` is computed from, itself included; not what earlier decisions come from."""
    seen: dict[fx.Node, None] = {}
    ahead = list(start)
    while ahead:
        node = ahead.pop()
        if node not in seen and node not in stop and op_name(node) is not None:
            seen[node] = None
            ahead.extend(node.all_input_nodes)
    return list(seen)


def op_name(node: fx.Node) -> str | None:
    """`entropy` for a node that calls `torch.ops.lvtp.entropy`; None for nodes that were the model's."""
    parts = str(node.target).split(".")
    return parts[1] if node.op == "call_function" and parts[0] == "lvtp" and len(parts) > 1 else None
