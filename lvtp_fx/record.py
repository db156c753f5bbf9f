"""What a transformed module remembers of its making: names only, so that it survives deepcopy and moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from lvtp_fx.config import Config

RECORD = "lvtp_fx"  # key of the `Record` in GraphModule.meta, and of the mark of inserted nodes in files


@dataclass(frozen=True)
class SiteRecord:
    """One site.

    Attributes:
        path: module path of its attention. state: node of the captured graph that is reduced.
        kept_node, owner_node: nodes of the pruned graph, [B, K] into the parent and [B, N] into this space.
        supports_node, shares_node: [B, N, count], whom tokens are restored from; "" where that is their owner alone.
    """

    path: str
    state: str
    kept_node: str
    owner_node: str
    supports_node: str = ""
    shares_node: str = ""

    @property
    def nodes(self) -> tuple[str, ...]:
        """All that the site decides, by name."""
        return tuple(filter(None, (self.kept_node, self.owner_node, self.supports_node, self.shares_node)))


@dataclass(frozen=True)
class StateRecord:
    """One state of the encoder's residual stream, or of a later one.

    Attributes:
        name, pruned_name: its node in the captured and in the pruned graph. path: module path.
        batch_dim, token_dim: its axes. before, after: prefix and suffix tokens.
        space: the token space it is computed in.
        entry: of a state of a later stream, the first state of that stream, where it enters the last space; else "".
    """

    name: str
    pruned_name: str
    path: str
    batch_dim: int
    token_dim: int
    before: int
    after: int
    space: int
    entry: str = ""


@dataclass(frozen=True)
class HookRecord:
    """One attention in token space `space`: `name` is its softmax or fused node in the captured graph.

    Attributes:
        before, after: prefix and suffix tokens of its keys. rows: those of its queries; None where these are no tokens
            of the grid (a class token alone, latents).
        batch: the axis that holds the batch, and how many entries of others lie outside and inside of it there.
    """

    name: str
    space: int
    before: int
    after: int
    rows: tuple[int, int] | None
    batch: tuple[int, int, int]


@dataclass(frozen=True)
class CopyRecord:
    """A value of space `space`, no state of the stream, that a reader needs in a larger space: there a dropped token
    has its owner's entries.

    Attributes:
        value, reader: nodes of the captured graph.
        sizes: of the factors of the value's axes, -1 for the batch; `batch` is its place among them.
        tokens: (place, prefix, suffix) of each token factor.
    """

    value: str
    reader: str
    space: int
    sizes: tuple[int, ...]
    batch: int
    tokens: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Record:
    """The decisions of the passes, for `decisions` and for the dense oracle.

    Attributes:
        sites, states, hooks: in graph order.
        restored: (state, reader) pairs, by name: readers that get the restored stream.
        reduced: (state, reader) pairs: readers that see the state of a site, or of an entry, after its reduction.
        copied: other values that are read in a larger space than they are computed in.
        grid: (rows, columns).
        hides: the attentions whose masks say which tokens are hidden from all (padding), and count as none.
    """

    config: Config
    sites: tuple[SiteRecord, ...] = ()
    states: tuple[StateRecord, ...] = ()
    hooks: tuple[HookRecord, ...] = ()
    restored: frozenset[tuple[str, str]] = frozenset()
    reduced: frozenset[tuple[str, str]] = frozenset()
    copied: tuple[CopyRecord, ...] = ()
    grid: tuple[int, int] = (0, 0)
    hides: tuple[HookRecord, ...] = ()


def mark_inserted(graph: fx.Graph) -> None:
    """Mark the nodes of the dialect, so that files in which they are taken apart can be told from dense ones."""
    for node in graph.nodes:
        if _of_dialect(node):
            node.meta.setdefault("custom", {})[RECORD] = node.target.name()  # "custom" is what files keep


def is_transformed(model: Any) -> bool:
    """Whether a module or an exported program is what `transform` made, or what was read from a file of it."""
    graph = getattr(model, "graph", None)
    return RECORD in getattr(model, "meta", {}) or (isinstance(graph, fx.Graph) and any(
        _of_dialect(node) or RECORD in node.meta.get("custom", {}) for node in graph.nodes))


def _of_dialect(node: fx.Node) -> bool:
    return getattr(node.target, "namespace", "") == "lvtp"
