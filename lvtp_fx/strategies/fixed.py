"""Strategies that do not look at the image: the baselines that any scoring must beat."""

from __future__ import annotations

import sympy

from lvtp_fx.config import Config
from lvtp_fx.strategies.base import Choice, SiteNodes, SiteShape, keep_highest, owner_flops


class Random:
    """A fixed pseudo-random ranking of places, another one at each number of living tokens."""

    smallest_keep_ratio = 0.0

    def decide(self, site: SiteNodes, config: Config) -> Choice:
        return keep_highest(site, site.call("hashed", site.position, site.kept), config)

    def flops(self, shape: SiteShape, config: Config) -> sympy.Expr:
        return owner_flops(shape)


class Grid:
    """Places spread evenly over the grid at every keep ratio."""

    smallest_keep_ratio = 0.0

    def decide(self, site: SiteNodes, config: Config) -> Choice:
        return keep_highest(site, site.call("spread", site.position, site.grid[1]), config)

    def flops(self, shape: SiteShape, config: Config) -> sympy.Expr:
        return owner_flops(shape)
