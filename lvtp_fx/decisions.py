"""Which tokens live on: the decisions of a transformed module on given inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._dynamo.eval_frame import OptimizedModule

from lvtp_fx.errors import Code, LvtpError
from lvtp_fx.example_inputs import resolve
from lvtp_fx.ops.rows import rows
from lvtp_fx.record import RECORD, Record
from lvtp_fx.run_graph import Tap, run_flat


@dataclass(frozen=True)
class Decision:
    """One site's decision, on the full grid.

    Attributes:
        site: module path of the attention that tokens are dropped after.
        kept: [B, K] int64, ascending: positions of the living tokens.
        owner: [B, N] int64: for every grid token, the position of the living token that stands for it; living
            tokens own themselves.
        supports: [B, N, count] int64: for every grid token, the positions of the living tokens that what was dropped
            here is restored from, its owner first; None where that is the owner alone.
        shares: [B, N, count] float32: what each of them weighs.
    """

    site: str
    kept: torch.Tensor
    owner: torch.Tensor
    supports: torch.Tensor | None = None
    shares: torch.Tensor | None = None


def decisions(module: nn.Module, example_inputs: Any) -> list[Decision]:
    """Run a transformed module, eagerly, and return its decisions, one a site.

    Compiled code may break near-ties differently; a compiled module is read through its original.

    Raises:
        LvtpError: LVTP302 for a module that `transform` did not make.
    """
    return observe(module, example_inputs)[1]


def observe(
    module: nn.Module, example_inputs: Any, names: Sequence[str] = ()
) -> tuple[Any, list[Decision], dict[str, torch.Tensor]]:
    """Output, decisions, and the values of the nodes called `names`."""
    graph_module, record = original(module)
    args, kwargs = resolve(graph_module, example_inputs)
    wanted = {name for site in record.sites for name in site.nodes} | set(names)
    tap = Tap(graph_module, wanted)
    output = run_flat(tap, graph_module, args, kwargs)
    return output, resolved(record, tap.seen), {name: tap.seen[name] for name in names}


def original(module: nn.Module) -> tuple[fx.GraphModule, Record]:
    """The GraphModule that `transform` made, from it or from its compiled form, and its record."""
    inner = module._orig_mod if isinstance(module, OptimizedModule) else module
    if not isinstance(inner, fx.GraphModule) or RECORD not in inner.meta:
        raise LvtpError(
            Code.NOT_TRANSFORMED, where=type(inner).__name__, expected="what lvtp_fx.transform returned",
            got=type(inner).__name__, why="only its graph says where the decisions are taken",
            hint="fast = lvtp_fx.transform(model, example_inputs), then pass fast (torch.save loses its graph)",
        )
    return inner, inner.meta[RECORD]


def resolved(record: Record, values: dict[str, torch.Tensor]) -> list[Decision]:
    """Decisions on the full grid, from each site's indices into its parent space."""
    result: list[Decision] = []
    position: torch.Tensor | None = None  # [B, N_k] places of the living tokens
    place: torch.Tensor | None = None  # [B, N] for each grid token, its index among the living ones
    for site in record.sites:
        kept, owner = values[site.kept_node], values[site.owner_node]
        position = kept if position is None else position.gather(1, kept)
        supports = shares = None
        if site.supports_node:
            supports, shares = values[site.supports_node], values[site.shares_node]
            if place is not None:  # tokens of the parent space stand for those dropped before
                supports, shares = rows(supports, place), rows(shares, place)
            supports = position.gather(1, supports.flatten(1)).view(supports.shape)
        place = owner if place is None else owner.gather(1, place)
        result.append(Decision(site.path, position, position.gather(1, place), supports, shares))
    return result
