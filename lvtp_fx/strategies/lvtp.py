"""LVTP: entropy and edges choose who represents a cluster, and which clusters may shrink.

After arXiv 2504.17996, which names the parts (multi-scale Tsallis entropy with dynamic weights, Sobel edges, two
clusterings, progressive pruning); the formulas are ours, see each op.
"""

from __future__ import annotations

from collections.abc import Iterator

import sympy
from torch import fx

from lvtp_fx.config import Config
from lvtp_fx.ops.cluster import part_size
from lvtp_fx.ops.nearest import nearest_flops
from lvtp_fx.strategies.base import Choice, SiteNodes, SiteShape, keep_highest, owner_flops
from lvtp_fx.strategies.scores import edge_node, entropy_flops, entropy_node


class Lvtp:
    """The default strategy."""

    smallest_keep_ratio = 0.0

    def decide(self, site: SiteNodes, config: Config) -> Choice:
        return keep_highest(site, self._priority(site, config), config)

    def _priority(self, site: SiteNodes, config: Config) -> fx.Node:
        rows, columns = site.grid
        edges = edge_node(site)
        if config.entropy_weight:
            entropy = entropy_node(site, config.qs, config)
            sign = -1.0 if config.entropy_direction == "low" else 1.0
            importance = site.call("blend", entropy, edges, sign * config.entropy_weight, config.edge_weight)
        else:
            importance = site.call("blend", edges, edges, config.edge_weight, 0.0)
        cell = fitting_cell(config.cell, site.grid, site.kept)
        anchors = site.call("representatives", importance, site.position, rows, columns, *cell, *site.where_hidden)
        return site.call(
            "rank", site.left, site.right, anchors, importance, edges, config.importance_in_rank, config.edge_in_rank,
            site.kept, config.rounds, *site.where_hidden,
        )

    def flops(self, shape: SiteShape, config: Config) -> sympy.Expr:
        entropy = entropy_flops(shape, config) if config.entropy_weight else sympy.Integer(0)
        anchors = anchor_count(shape, config)
        # All tokens are compared with the anchors, those left over with what each round but the last chooses.
        ranking = nearest_flops(shape.N, anchors, shape.N, shape.D)
        more = part_size(config.rounds, anchors, shape.K)
        ranking += (config.rounds - 1) * nearest_flops(shape.N - anchors - more, more, shape.N, shape.D)
        return entropy + ranking + owner_flops(shape)


def fitting_cell(cell: tuple[int, int], grid: tuple[int, int], kept: int) -> tuple[int, int]:
    """The cell, enlarged until its representatives are at most half of the tokens that live on."""
    return next(larger for larger in enlarged(cell, grid) if cells(grid, larger) <= max(1, kept // 2))


def enlarged(cell: tuple[int, int], grid: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The cell and larger ones, step by step, up to one that covers the grid."""
    rows, columns = cell
    yield rows, columns
    while cells(grid, (rows, columns)) > 1:
        rows, columns = (rows + 1, columns) if rows <= columns else (rows, columns + 1)
        yield rows, columns


def cells(grid: tuple[int, int], cell: tuple[int, int]) -> int:
    """How many cells cover the grid."""
    return -(-grid[0] // cell[0]) * -(-grid[1] // cell[1])


def anchor_count(shape: SiteShape, config: Config) -> sympy.Expr:
    """Representatives at a site; piecewise while K is a symbol, as `fitting_cell` chooses."""
    if isinstance(shape.K, int):
        return sympy.Integer(cells(shape.grid, fitting_cell(config.cell, shape.grid, shape.K)))
    counts = dict.fromkeys(cells(shape.grid, cell) for cell in enlarged(config.cell, shape.grid))
    return sympy.Piecewise(*((count, sympy.Ge(shape.K, 2 * count)) for count in counts if count > 1), (1, True))
