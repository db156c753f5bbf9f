"""What a transformed module remembers of its making: names only, so that it survives deepcopy and moves."""

from __future__ import annotations

from dataclasses import dataclass

from lvtp_fx.config import Config


@dataclass(frozen=True)
class SiteRecord:
    """One site.

    Attributes:
        path: module path of its attention. state: node of the captured graph that is reduced.
        kept_node, owner_node: nodes of the pruned graph, [B, K] into the parent and [B, N] into this space.
    """

    path: str
    state: str
    kept_node: str
    owner_node: str


@dataclass(frozen=True)
class StateRecord:
    """One state of the residual stream.

    Attributes:
        name, pruned_name: its node in the captured and in the pruned graph. path: module path.
        batch_dim, token_dim: its axes. before, after: prefix and suffix tokens.
        space: the token space it is computed in.
    """

    name: str
    pruned_name: str
    path: str
    batch_dim: int
    token_dim: int
    before: int
    after: int
    space: int


@dataclass(frozen=True)
class HookRecord:
    """One attention of the trunk: `name` is its softmax or fused node in the captured graph."""

    name: str
    before: int
    after: int


@dataclass(frozen=True)
class Record:
    """The decisions of the passes, for `decisions` and for the dense oracle.

    Attributes:
        sites, states, hooks: in graph order.
        restored: (state, reader) pairs, by name: readers that get the restored stream.
        reduced: (state, reader) pairs: readers that see a site's state after its reduction.
        grid: (rows, columns).
    """

    config: Config
    sites: tuple[SiteRecord, ...] = ()
    states: tuple[StateRecord, ...] = ()
    hooks: tuple[HookRecord, ...] = ()
    restored: frozenset[tuple[str, str]] = frozenset()
    reduced: frozenset[tuple[str, str]] = frozenset()
    grid: tuple[int, int] = (0, 0)
