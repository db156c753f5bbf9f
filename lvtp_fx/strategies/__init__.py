"""Reduction strategies by name. A strategy says which tokens live on; `base.Strategy` is its protocol."""

from __future__ import annotations

from lvtp_fx.strategies.base import Choice, SiteNodes, SiteShape, Strategy
from lvtp_fx.strategies.fixed import Grid, Random
from lvtp_fx.strategies.lvtp import Lvtp
from lvtp_fx.strategies.matching import Bipartite, Mutual, Superpixels
from lvtp_fx.strategies.scores import Edges, Fused, Received, Shannon

__all__ = ["Choice", "SiteNodes", "SiteShape", "Strategy", "get"]


def get(strategy: str | Strategy) -> Strategy:
    """The strategy of that name (`lvtp_fx.config.STRATEGIES` lists them), or one of the user's own as it is."""
    if not isinstance(strategy, str):
        return strategy
    table: dict[str, type[Strategy]] = {
        "lvtp": Lvtp, "random": Random, "grid": Grid, "shannon": Shannon, "edges": Edges, "received": Received,
        "fused": Fused, "bipartite": Bipartite, "mutual": Mutual, "superpixels": Superpixels,
    }
    return table[strategy]()
