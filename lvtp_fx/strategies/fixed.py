"""Strategies that do not look at the image: the baselines that any scoring must beat."""

from __future__ import annotations

import sympy
from torch import fx

from lvtp_fx.config import Config
from lvtp_fx.strategies.base import SiteNodes, SiteShape


class Random:
    """A fixed pseudo-random ranking of places, another one at each number of living tokens."""

    def priority(self, site: SiteNodes, config: Config) -> fx.Node:
        return site.call("hashed", site.position, site.kept)

    def flops(self, shape: SiteShape, config: Config) -> sympy.Expr:
        return sympy.Integer(0)


class Grid:
    """Places spread evenly over the grid at every keep ratio."""

    def priority(self, site: SiteNodes, config: Config) -> fx.Node:
        return site.call("spread", site.position, site.grid[1])

    def flops(self, shape: SiteShape, config: Config) -> sympy.Expr:
        return sympy.Integer(0)
