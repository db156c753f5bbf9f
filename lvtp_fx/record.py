"""What a transformed module remembers of its making: names only, so that it survives deepcopy and moves."""

from __future__ import annotations

from dataclasses import dataclass

from lvtp_fx.config import Config


@dataclass(frozen=True)
class SiteRecord:
    """One site.

    Attributes:
        path: module path of its attention. state: node of the captured graph that is reduced.
        kept_node, owner_node: nodes of the pruned graph, [B, K] and [B, N] (into the parent and this space).
        parent, kept: grid tokens before and after.
    """

    path: str
    state: str
    kept_node: str
    owner_node: str
    parent: int
    kept: int


@dataclass(frozen=True)
class Record:
    """The decisions of the passes, for `decisions` and for the dense oracle.

    Attributes:
        sites: in order.
        root: where the token axis is born. states: the residual stream. All are names in the captured graph.
        hooks: attention nodes of the captured graph whose keys are masked and weighed -> module path.
        restored: (state, reader) pairs: readers that get the restored stream.
        reduced: (state, reader) pairs: readers that see a site's state after its reduction.
        grid: (rows, columns).
    """

    sites: tuple[SiteRecord, ...]
    root: str
    states: tuple[str, ...]
    hooks: dict[str, str]
    restored: frozenset[tuple[str, str]]
    reduced: frozenset[tuple[str, str]]
    grid: tuple[int, int]
    config: Config
