"""Strategies that pair similar tokens up: a token lives on where nothing else can stand for it."""

from __future__ import annotations

import sympy
from torch import fx

from lvtp_fx.config import Config
from lvtp_fx.ops.nearest import ADDED
from lvtp_fx.strategies.base import Choice, SiteNodes, SiteShape, hidden_last, owned, support_flops

ROUNDS = 5  # of the k-means of `Superpixels`


class Bipartite:
    """Every other token may be merged into the most similar of those in between, the most similar pairs first.

    After ToMe (arXiv 2210.09461, section 3): meant for a few tokens after every block, at most half at once.
    """

    smallest_keep_ratio = 0.5

    def decide(self, site: SiteNodes, config: Config) -> Choice:
        return _decide(site, site.call("partners_across", site.feature, *site.where_hidden), 0.0, config)

    def flops(self, shape: SiteShape, config: Config) -> sympy.Expr:
        first = sympy.ceiling(sympy.sympify(shape.N) / 2)
        return 2 * first * (shape.N - first) * shape.D + support_flops(shape, config)


class Mutual:
    """Of two tokens that are each other's most similar, one may be merged into the other; then tokens that are merely
    similar to another.

    After the abstract of MPM (arXiv 2604.05718), whose code is not public. There all pairs are merged, however many
    there are; here K is a static number, so the least similar pairs may stay, and others may be merged beyond them.
    """

    smallest_keep_ratio = 0.5  # no more pairs than that

    def decide(self, site: SiteNodes, config: Config) -> Choice:
        return _decide(site, site.call("partners", site.feature, *site.where_hidden), _AFTER_PAIRS, config)

    def flops(self, shape: SiteShape, config: Config) -> sympy.Expr:
        return 2 * shape.N**2 * shape.D + support_flops(shape, config)


class Superpixels:
    """k-means of features and places into K clusters; the most central token of each lives on.

    After Expedite (arXiv 2210.01035, section 3.2), which starts from averages over cells, assigns softly among near
    centres, and rebuilds a token from several: here clusters are hard, near centres preferred, seeds spread evenly, and
    what is rebuilt is `Config.restore`'s.
    """

    smallest_keep_ratio = 0.0

    def decide(self, site: SiteNodes, config: Config) -> Choice:
        partner = site.call("superpixels", site.feature, site.position, site.grid[1], max(site.grid), site.kept,
                            ROUNDS, config.neighbour_weight, *site.where_hidden)
        return _decide(site, partner, 0.0, config)

    def flops(self, shape: SiteShape, config: Config) -> sympy.Expr:
        means = 2 * ROUNDS * shape.N * shape.K * (shape.D + ADDED)
        return means + support_flops(shape, config)


_AFTER_PAIRS = 3.0  # more than cosines differ by


def _decide(site: SiteNodes, partner: fx.Node, unpaired: float, config: Config) -> Choice:
    """The least replaceable tokens live on; each dropped one is merged into its partner."""
    priority = hidden_last(site, site.call("pair_rank", site.feature, partner, unpaired))
    kept = site.call("select", priority, site.kept)
    return owned(site, kept, site.call("owners_of", partner, kept), config)
