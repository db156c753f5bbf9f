"""Strategies that rank tokens by one score: what users would write first, and LVTP's parts alone."""

from __future__ import annotations

from collections.abc import Sequence

import sympy
from torch import fx

from lvtp_fx.config import Config
from lvtp_fx.strategies.base import (
    Choice,
    SiteNodes,
    SiteShape,
    hidden_last,
    keep_highest,
    owned,
    owner_flops,
    support_flops,
)


class Shannon:
    """Tokens whose attention has the lowest (or highest: `Config.entropy_direction`) Shannon entropy live on."""

    smallest_keep_ratio = 0.0

    def decide(self, site: SiteNodes, config: Config) -> Choice:
        entropy = entropy_node(site, (1.0,), config)
        if config.entropy_direction == "low":
            entropy = site.call("blend", entropy, entropy, -1.0, 0.0)
        return keep_highest(site, entropy, config)

    def flops(self, shape: SiteShape, config: Config) -> sympy.Expr:
        return entropy_flops(shape, config) + owner_flops(shape)


class Edges:
    """Tokens with the strongest Sobel edges live on. Without an image, the first ones do."""

    smallest_keep_ratio = 0.0

    def decide(self, site: SiteNodes, config: Config) -> Choice:
        return keep_highest(site, edge_node(site), config)

    def flops(self, shape: SiteShape, config: Config) -> sympy.Expr:
        return owner_flops(shape)


class Received:
    """Tokens that receive the most attention live on, mean over heads and queries."""

    smallest_keep_ratio = 0.0

    def decide(self, site: SiteNodes, config: Config) -> Choice:
        return keep_highest(site, received_node(site, config, first=False), config)

    def flops(self, shape: SiteShape, config: Config) -> sympy.Expr:
        return entropy_flops(shape, config, shape.ends) + owner_flops(shape)


class Fused:
    """Tokens that the first prefix token (a class token) attends to most live on; the others are fused into one.

    After EViT (arXiv 2202.07800, section 3), where the fused token is one more, and its mean weighted by attention:
    here it is one of the K, and its mean is `merge`'s. Without a prefix, attention received from all queries.
    """

    smallest_keep_ratio = 0.0

    def decide(self, site: SiteNodes, config: Config) -> Choice:
        priority = hidden_last(site, received_node(site, config, first=site.before > 0))
        kept = site.call("select", priority, site.kept)
        return owned(site, kept, site.call("owners_fused", priority, kept), config)

    def flops(self, shape: SiteShape, config: Config) -> sympy.Expr:
        first = 2 * shape.H * (shape.N + shape.ends) * shape.D
        received = first if shape.before else entropy_flops(shape, config, shape.ends)
        return received + support_flops(shape, config)


def entropy_node(site: SiteNodes, orders: Sequence[float], config: Config) -> fx.Node:
    """Entropy of the attention of each token: [B, N], standardised."""
    return site.call("entropy", site.q, site.k, site.mask, site.scale, site.before, site.after, list(orders),
                     sample_step(site, config), *site.where_hidden)


def sample_step(site: SiteNodes, config: Config) -> int:
    """Every how many tokens one is looked at, so that it is at most `entropy_keys` of them."""
    return -(-(site.before + site.N + site.after) // config.entropy_keys)


def entropy_flops(shape: SiteShape, config: Config, more_rows: int = 0) -> sympy.Expr:
    """FLOPs of scores of all tokens (and `more_rows`) with a sample of the others."""
    n = sympy.sympify(shape.N)
    tokens = n + shape.ends
    sampled = sympy.ceiling(tokens / sympy.ceiling(tokens / config.entropy_keys))
    return 2 * shape.H * (n + more_rows) * sampled * shape.D


def received_node(site: SiteNodes, config: Config, first: bool) -> fx.Node:
    """Attention that each token receives: [B, N], from the first query or from a sample of all."""
    return site.call("received", site.q, site.k, site.mask, site.scale, site.before, site.after,
                     0 if first else sample_step(site, config), *site.where_hidden)


def edge_node(site: SiteNodes) -> fx.Node:
    """Sobel edges of each token: [B, N], standardised; zeros where no image enters the model."""
    if site.image is None:
        return site.call("blank", site.position)
    shown = () if site.shown is None else (site.shown,)
    return site.call("compose", site.call("edges", site.image, *site.grid, *shown), site.position)
