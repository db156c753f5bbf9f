"""The protocol of a reduction strategy, and what a site gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import getitem
from typing import NamedTuple, Protocol

import sympy
from torch import fx

from lvtp_fx.config import Config
from lvtp_fx.ops.nearest import nearest_flops


@dataclass(frozen=True)
class SiteShape:
    """Sizes at a site, per image; N and K may be symbols.

    Attributes:
        N: living grid tokens. K: tokens to keep. before, after: prefix and suffix tokens.
        H: heads. D: head dim. C: channels of the residual stream.
        grid: (rows, columns) of the full grid.
    """

    N: sympy.Expr | int
    K: sympy.Expr | int
    before: int
    after: int
    H: int
    D: int
    C: int
    grid: tuple[int, int]

    @property
    def ends(self) -> int:
        """Prefix and suffix tokens."""
        return self.before + self.after


@dataclass(frozen=True)
class SiteNodes:
    """Nodes that a strategy may read, all in the space of the site.

    Attributes:
        q, k: [B, H, L, D] queries and keys of the site's attention; mask: its additive or boolean mask, or None.
        scale: its scale, None for D ** -0.5.
        stream: [B, L, C], the residual stream that is about to be reduced.
        feature: [B, N, D] what similarity of tokens is measured on. left, right: [B, N, D + 4], factors of their
            affinity (`lvtp.comparable`), in which near tokens are preferred.
        N: how many grid tokens live here.
        position: [B, N] int64, places of the living tokens on the full grid.
        size: [B, N] float32, how many tokens of the full grid each living one stands for; 0 where it is hidden.
        shown: [B, rows * columns] float32, 0 where masks of the inputs hide a token of the full grid (padding), else
            1; None where no tokens are hidden from all.
        image: float [B, channels, height, width] as it enters the patch embedding, or None where there is none.
        before, after: prefix and suffix tokens of the token axis L.
        grid: (rows, columns). kept: how many tokens will live on.
        call: inserts a `torch.ops.lvtp` op by its name and returns its node.
    """

    q: fx.Node
    k: fx.Node
    mask: fx.Node | None
    scale: float | None
    stream: fx.Node
    feature: fx.Node
    left: fx.Node
    right: fx.Node
    N: int
    position: fx.Node
    size: fx.Node
    shown: fx.Node | None
    image: fx.Node | None
    before: int
    after: int
    grid: tuple[int, int]
    kept: int
    call: Callable[..., fx.Node]

    @property
    def where_hidden(self) -> tuple[fx.Node, ...]:
        """`size`, where some tokens are hidden: the last argument of ops that leave those out. Else nothing."""
        return () if self.shown is None else (self.size,)


class Choice(NamedTuple):
    """What a strategy decides; a plain (kept, owner) is one, too.

    Attributes:
        kept: [B, K] int64, ascending indices of living tokens.
        owner: [B, N] int64, indices into `kept`; kept tokens own themselves.
        supports, shares: of `lvtp.supports`, where dropped tokens are restored from more than their owner; or None.
    """

    kept: fx.Node
    owner: fx.Node
    supports: fx.Node | None = None
    shares: fx.Node | None = None


class Strategy(Protocol):
    """Says which tokens of a site live on, and who stands for the others.

    Attributes:
        smallest_keep_ratio: the least share of the living tokens that a site can keep.
    """

    smallest_keep_ratio: float

    def decide(self, site: SiteNodes, config: Config) -> Choice | tuple[fx.Node, fx.Node]:
        """Insert nodes that compute a `Choice`. Image i must not depend on others."""

    def flops(self, shape: SiteShape, config: Config) -> sympy.Expr:
        """FLOPs of those nodes for one image, matrix products only, as FlopCounterMode counts."""


def keep_highest(site: SiteNodes, priority: fx.Node, config: Config) -> Choice:
    """The K tokens of the highest priority [B, N]; the most similar of them, near ones preferred, own the others."""
    kept = site.call("select", hidden_last(site, priority), site.kept)
    if several_supports(config):
        supports, shares = _supports(site, kept, None, config)
        return Choice(kept, site.call("owners_among", supports), supports, shares)
    return Choice(kept, site.call("owners", site.left, site.right, kept, site.call("dropped", kept, site.N)))


def hidden_last(site: SiteNodes, priority: fx.Node) -> fx.Node:
    """The priority [B, N], hidden tokens last: as long as one lives, no other has been dropped, and been merged into
    it."""
    return site.call("hide", priority, site.size) if site.where_hidden else priority


def owned(site: SiteNodes, kept: fx.Node, owner: fx.Node, config: Config) -> Choice:
    """Those owners, and the most similar kept tokens beside them to be restored from."""
    return Choice(kept, owner, *(_supports(site, kept, owner, config) if several_supports(config) else ()))


def several_supports(config: Config) -> bool:
    """Whether dropped tokens are restored from more than their owner."""
    return config.restore == "delta" and config.restore_from > 1


def _supports(site: SiteNodes, kept: fx.Node, owner: fx.Node | None, config: Config) -> tuple[fx.Node, fx.Node]:
    pair = site.call("supports", site.left, site.right, kept, site.call("dropped", kept, site.N), owner,
                     config.restore_from, config.restore_softness)
    supports, shares = both(pair, "who", "shares")
    return supports, shares


def both(pair: fx.Node, *names: str) -> Iterator[fx.Node]:
    """The tensors that a node returns."""
    for i, name in enumerate(names):
        yield pair.graph.create_node("call_function", getitem, (pair, i), name=f"{pair.name}_{name}")


def owner_flops(shape: SiteShape) -> sympy.Expr:
    """FLOPs of the owners of `keep_highest`, and of the supports of either."""
    return nearest_flops(shape.N - shape.K, shape.K, shape.N, shape.D)


def support_flops(shape: SiteShape, config: Config) -> sympy.Expr:
    """FLOPs of the supports beside owners found otherwise (`owned`)."""
    return owner_flops(shape) if several_supports(config) else sympy.Integer(0)
