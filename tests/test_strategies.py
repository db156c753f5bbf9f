"""Strategies: what they insert, what it costs, and that one image's ranking is its own business."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import pi, prod
from typing import Any

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx
from torch.utils.flop_counter import FlopCounterMode

import lvtp_fx
from lvtp_fx.config import STRATEGIES, Config
from lvtp_fx.errors import LvtpError
from lvtp_fx.models.segmenter import Segmenter, SegmenterConfig
from lvtp_fx.run_graph import Tap
from lvtp_fx.strategies import SiteNodes, SiteShape, Strategy, get
from lvtp_fx.strategies.base import both
from lvtp_fx.strategies.lvtp import cells, fitting_cell
from tests.draws import normal, subsets

few = settings(max_examples=15, deadline=None)


@dataclass(frozen=True)
class Site:
    """A site as a pass would meet it: N of the grid's tokens live, kept of them will live on."""

    grid: tuple[int, int] = (6, 5)
    N: int = 22
    kept: int = 10
    before: int = 1
    after: int = 2
    H: int = 2
    D: int = 4
    C: int = 12
    mask: bool = False
    image: bool = True
    padded: bool = False  # whether some tokens are hidden

    @property
    def L(self) -> int:
        return self.before + self.N + self.after

    @property
    def shape(self) -> SiteShape:
        return SiteShape(self.N, self.kept, self.before, self.after, self.H, self.D, self.C, self.grid)

    def inputs(self, B: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
        rows, columns = self.grid
        position = subsets(seed + 3, B, prod(self.grid), self.N)
        shown = (torch.arange(rows * columns) % columns < max(1, columns - 1)).float().expand(B, -1)
        return {
            "q": normal(seed, B, self.H, self.L, self.D, dtype=torch.float32),
            "k": normal(seed + 1, B, self.H, self.L, self.D, dtype=torch.float32),
            "stream": normal(seed + 2, B, self.L, self.C, dtype=torch.float32),
            "position": position,
            "image": normal(seed + 4, B, 3, 4 * rows, 4 * columns, dtype=torch.float32),
            "mask": normal(seed + 5, B, 1, self.L, self.L, dtype=torch.float32),
            "size": shown.gather(1, position) * 2,
            "shown": shown,
        }

    def build(self, strategy: Strategy, config: Config) -> fx.GraphModule:
        """A graph from the site's tensors to what is decided."""
        graph = fx.Graph()
        given = {name: graph.placeholder(name) for name in self.inputs()}

        def call(name: str, *args: Any) -> fx.Node:
            return graph.call_function(getattr(torch.ops.lvtp, name).default, args)

        source = given["stream"] if config.feature == "stream" else given["k"]
        feature = call("features", source, self.before, self.after, self.D)
        factors = call("comparable", feature, given["position"], self.grid[1], max(self.grid), config.neighbour_weight)
        left, right = both(factors, "left", "right")
        nodes = SiteNodes(
            q=given["q"], k=given["k"], mask=given["mask"] if self.mask else None, scale=None,
            stream=given["stream"], feature=feature, left=left, right=right,
            position=given["position"], size=given["size"], shown=given["shown"] if self.padded else None,
            image=given["image"] if self.image else None, before=self.before, after=self.after, grid=self.grid,
            N=self.N, kept=self.kept, call=call,
        )
        graph.output(tuple(node for node in strategy.decide(nodes, config) if node is not None))
        graph.eliminate_dead_code()
        graph.lint()
        return fx.GraphModule(torch.nn.Module(), graph)


SITES = {"plain": Site(), "first": Site(N=30), "masked": Site(mask=True), "no image": Site(image=False),
         "no ends": Site(before=0, after=0), "keep all": Site(kept=22), "keep one": Site(kept=1),
         "padded": Site(padded=True), "one head": Site(H=1), "one row": Site(grid=(1, 30))}
CONFIGS = {"default": Config(), "stream": Config(feature="stream"), "all keys": Config(entropy_keys=1000),
           "one key": Config(entropy_keys=1),
           "low": Config(entropy_direction="low", importance_in_rank=0.3), "shannon": Config(qs=(1.0,)),
           "cells": Config(cell=(3, 2), entropy_keys=7), "one round": Config(rounds=1), "rounds": Config(rounds=5),
           "no entropy": Config(entropy_weight=0.0), "from three": Config(restore_from=3)}
every_strategy = pytest.mark.parametrize("name", STRATEGIES)
every_site = pytest.mark.parametrize("site", SITES.values(), ids=SITES.keys())
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def decided(strategy: str, site: Site, config: Config, inputs: dict[str, torch.Tensor]) -> tuple[Any, Any]:
    kept, owner = site.build(get(strategy), config)(**inputs)[:2]
    return kept, owner


@every_strategy
@every_site
def test_exactly_k_live_on_and_each_token_has_one_owner(name: str, site: Site) -> None:
    inputs = site.inputs()
    kept, owner = decided(name, site, Config(), inputs)
    assert kept.shape == (2, site.kept)
    assert owner.shape == (2, site.N)
    assert kept.dtype == owner.dtype == torch.int64
    assert bool((kept[:, 1:] > kept[:, :-1]).all())  # ascending, none twice
    assert 0 <= int(kept.min()) <= int(kept.max()) < site.N
    assert 0 <= int(owner.min()) <= int(owner.max()) < site.kept
    assert torch.equal(owner.gather(1, kept), torch.arange(site.kept).expand(2, -1))
    again = decided(name, site, Config(), inputs)
    assert torch.equal(kept, again[0])
    assert torch.equal(owner, again[1])


@every_strategy
def test_numbers_that_are_none_do_not_break_a_decision(name: str) -> None:
    """Validity is a law whatever the values: a bad image must not end in an index out of range."""
    site = Site()
    inputs = site.inputs()
    for key in ("q", "k", "stream", "image"):
        inputs[key] = inputs[key].index_fill(-1, torch.tensor([0]), torch.nan)
    kept, owner = decided(name, site, Config(), inputs)
    assert bool((kept[:, 1:] > kept[:, :-1]).all())
    assert 0 <= int(kept.min()) <= int(kept.max()) < site.N
    assert torch.equal(owner.gather(1, kept), torch.arange(site.kept).expand(2, -1))


@every_strategy
@every_config
def test_an_image_is_decided_alone_as_in_a_batch(name: str, config: Config) -> None:
    module, inputs = Site(mask=True).build(get(name), config), Site(mask=True).inputs(B=3)
    together = module(**inputs)
    for i in range(3):
        alone = module(**{key: value[i : i + 1] for key, value in inputs.items()})
        assert torch.equal(alone[0][0], together[0][i])
        assert torch.equal(alone[1][0], together[1][i])


@pytest.mark.parametrize("name", ["random", "grid"])
def test_fixed_strategies_read_the_places_alone(name: str) -> None:
    site, inputs, others = Site(), Site().inputs(), Site().inputs(seed=50)
    kept, _ = decided(name, site, Config(), inputs)
    assert torch.equal(kept, decided(name, site, Config(), {**others, "position": inputs["position"]})[0])
    assert not torch.equal(kept, decided(name, site, Config(), {**inputs, "position": others["position"]})[0])


def test_fixed_strategies_rank_by_column_and_by_count() -> None:
    """The grid's width must be the grid's; a random ranking is another one at the next site."""
    site, inputs = Site(), Site().inputs()
    kept, _ = decided("grid", site, Config(), inputs)
    spread = torch.ops.lvtp.spread(inputs["position"], site.grid[1])
    assert torch.equal(kept, torch.ops.lvtp.select(spread, site.kept))
    more, fewer = (decided("random", Site(kept=k), Config(), inputs)[0] for k in (10, 9))
    assert not set(fewer[0].tolist()) <= set(more[0].tolist())


READS = {"lvtp": "q k position image mask", "shannon": "q k mask", "edges": "image position", "received": "q k mask",
         "fused": "q k mask", "bipartite": "k", "mutual": "k", "superpixels": "k position"}


@pytest.mark.parametrize(("name", "key"), [(n, key) for n, keys in READS.items() for key in keys.split()])
def test_a_strategy_reads_what_it_says(name: str, key: str) -> None:
    site, inputs = Site(mask=True, kept=14), Site().inputs()
    if name == "fused" and key == "q":
        inputs["q"] = inputs["q"] * 3  # one query alone ranks much alike
    other = {**inputs, key: site.inputs(seed=50)[key]}
    config = Config(importance_in_rank=0.3)
    assert not torch.equal(decided(name, site, config, inputs)[0], decided(name, site, config, other)[0])


@pytest.mark.parametrize(("name", "keys"), READS.items())
def test_a_strategy_reads_nothing_else(name: str, keys: str) -> None:
    """Which tokens live on; owners are similar tokens, so those always read the features."""
    site, inputs = Site(mask=True, kept=14), Site().inputs()
    others = {key: value for key, value in Site().inputs(seed=50).items() if key not in keys.split()}
    others.pop("position", None)
    module = site.build(get(name), Config(feature="keys"))
    assert torch.equal(module(**inputs)[0], module(**{**inputs, **others})[0])


def test_lvtp_keeps_a_representative_of_every_cell() -> None:
    site = Site(N=30, kept=12)
    kept, _ = decided("lvtp", site, Config(), site.inputs())
    cell = fitting_cell((2, 2), site.grid, site.kept)
    for image in torch.ops.lvtp.compose(site.inputs()["position"], kept).tolist():
        alive = {(place // 5 // cell[0], place % 5 // cell[1]) for place in image}
        assert len(alive) == cells(site.grid, cell)


def tokens(kept: int, angles: list[float], strategy: str, **config: Any) -> tuple[list[int], list[int]]:
    """Decision on tokens in a row whose features are directions in the plane: kept, and each token's owner."""
    site = Site(grid=(1, len(angles)), N=len(angles), kept=kept, before=0, after=0, H=1, D=2)
    turn = torch.tensor(angles) * pi / 180
    k = torch.stack([turn.cos(), turn.sin()], dim=-1)[None, None]
    inputs = {**site.inputs(B=1), "k": k, "q": torch.zeros_like(k), "position": torch.arange(len(angles))[None]}
    chosen, owner = decided(strategy, site, Config(**config), inputs)
    return chosen[0].tolist(), chosen[0][owner[0]].tolist()


def test_bipartite_merges_the_most_similar_pairs_across() -> None:
    # 2 is nearest to 3 (5 degrees), 0 to 1 (10), 4 to 5 (40); 0 and 2 are closer still, but in the same set.
    assert tokens(5, [0, 10, 1, 6, 90, 130], "bipartite") == ([0, 1, 3, 4, 5], [0, 1, 3, 3, 4, 5])
    assert tokens(4, [0, 10, 1, 6, 90, 130], "bipartite")[0] == [1, 3, 4, 5]
    assert tokens(1, [0], "bipartite") == ([0], [0])


def test_mutual_merges_pairs_that_choose_each_other() -> None:
    # 0 and 1 choose each other; 2 chooses 1, which has another; 3 and 4 choose each other, less alike.
    angles = [0, 5, 20, 90, 100]
    assert tokens(4, angles, "mutual") == ([0, 2, 3, 4], [0, 0, 2, 3, 4])
    assert tokens(3, angles, "mutual") == ([0, 2, 3], [0, 0, 2, 3, 3])
    assert tokens(2, angles, "mutual") == ([0, 3], [0, 0, 0, 3, 3])  # 2 follows 1 to 0


def test_superpixels_keep_the_middle_of_each_cluster() -> None:
    chosen, owner = tokens(2, [0, 4, 8, 90, 94, 98], "superpixels", neighbour_weight=0.0)
    assert chosen == [1, 4]
    assert owner == [1, 1, 1, 4, 4, 4]


@pytest.mark.parametrize("name", STRATEGIES)
@every_site
def test_tokens_are_restored_from_their_owner_and_others(name: str, site: Site) -> None:
    kept, owner, supports, shares = site.build(get(name), Config(restore_from=3))(**site.inputs())
    assert supports.shape == shares.shape == (2, site.N, 3)
    assert torch.equal(supports[..., 0], owner)
    assert 0 <= int(supports.min()) <= int(supports.max()) < site.kept
    torch.testing.assert_close(shares.sum(-1), torch.ones(2, site.N))
    assert torch.equal(shares.gather(1, kept.unsqueeze(-1).expand(-1, -1, 3)),
                       torch.tensor([1.0, 0, 0]).expand(2, site.kept, 3))
    for ids, weights in zip(supports.flatten(0, 1).tolist(), shares.flatten(0, 1).tolist(), strict=True):
        alive = [i for i, weight in zip(ids, weights, strict=True) if weight > 0]
        assert len(set(alive)) == len(alive)  # none twice


@pytest.mark.parametrize("config", [
    Config(), Config(restore="copy", restore_from=3), Config(restore="frozen", restore_from=3)])
def test_what_needs_no_supports_computes_none(config: Config) -> None:
    for name in STRATEGIES:
        assert len(Site().build(get(name), config)(**Site().inputs())) == 2


def test_fused_tokens_have_one_owner() -> None:
    site = Site()
    kept, owner = decided("fused", site, Config(), site.inputs())
    for alive, owners in zip(kept.tolist(), owner.tolist(), strict=True):
        hosts = {owners[i] for i in range(site.N) if i not in alive}
        assert len(hosts) == 1


def test_attention_received_is_what_softmax_says() -> None:
    site, inputs = Site(mask=True), Site().inputs()
    attention = (inputs["q"] @ inputs["k"].transpose(2, 3) / 2 + inputs["mask"]).softmax(-1)
    grid = slice(site.before, site.before + site.N)
    every = torch.ops.lvtp.received(inputs["q"], inputs["k"], inputs["mask"], None, site.before, site.after, 1)
    torch.testing.assert_close(every, attention.mean((1, 2))[:, grid])
    first = torch.ops.lvtp.received(inputs["q"], inputs["k"], inputs["mask"], None, site.before, site.after, 0)
    torch.testing.assert_close(first, attention[:, :, 0].mean(1)[:, grid])


def represented(config: Config) -> list[int]:
    """Tokens that stand for their cells, of a site with two cells of two tokens and one focused token in each."""
    site = Site(grid=(1, 4), N=4, kept=4, before=0, after=0, H=1)
    q = torch.zeros(1, 1, 4, 4)
    q[0, 0, [1, 2]] = 1000 * torch.eye(4)[[1, 2]]
    inputs = {**site.inputs(B=1), "q": q, "k": torch.eye(4)[None, None], "position": torch.arange(4)[None],
              "image": torch.zeros(1, 3, 4, 16)}
    module = site.build(get("lvtp"), config)
    found = next(n for n in module.graph.nodes if n.target is torch.ops.lvtp.representatives.default)
    tap = Tap(module, {found.name})
    tap.run(*inputs.values())
    return sorted(tap.seen[found.name][0].tolist())


def test_the_direction_of_the_entropy_chooses_who_represents_a_cell() -> None:
    for direction, tokens in (("low", [1, 2]), ("high", [0, 3])):
        config = Config(entropy_keys=4, cell=(1, 2), edge_weight=0.0, entropy_direction=direction)  # type: ignore[arg-type]
        assert represented(config) == tokens


def counted(module: Callable[..., torch.Tensor], inputs: dict[str, torch.Tensor]) -> int:
    with FlopCounterMode(display=False) as counter:
        module(**inputs)
    return counter.get_total_flops()


@every_strategy
@every_site
@every_config
def test_flops_are_what_the_counter_counts(name: str, site: Site, config: Config) -> None:
    strategy = get(name)
    assert strategy.flops(site.shape, config) == counted(site.build(strategy, config), site.inputs(B=1))


@few
@given(grid=st.tuples(st.integers(2, 7), st.integers(2, 7)), data=st.data(), H=st.integers(1, 3),
       keys=st.integers(1, 60))
def test_flops_hold_at_any_size(grid: tuple[int, int], data: st.DataObject, H: int, keys: int) -> None:
    N = data.draw(st.integers(2, prod(grid)))
    site = Site(grid, N, data.draw(st.integers(1, N)), before=data.draw(st.integers(0, 3)), H=H)
    strategy, config = get("lvtp"), Config(entropy_keys=keys)
    flops = strategy.flops(site.shape, config)
    assert 3 * flops == counted(site.build(strategy, config), site.inputs(B=3))
    # While N is a symbol, the expression must mean the same.
    N_ = sympy.Symbol("N", positive=True)
    symbolic = SiteShape(N_, site.kept, site.before, site.after, H, site.D, site.C, grid)
    assert strategy.flops(symbolic, config).subs(N_, N) == flops


def test_flops_of_a_symbolic_count_are_those_of_the_number() -> None:
    """The cell is enlarged where few tokens live on: the symbolic cost has to follow."""
    site, K = Site(), sympy.Symbol("K", positive=True)
    symbolic = get("lvtp").flops(SiteShape(site.N, K, 1, 2, site.H, site.D, site.C, site.grid), Config())
    for kept in range(1, site.N + 1):
        number = SiteShape(site.N, kept, 1, 2, site.H, site.D, site.C, site.grid)
        assert symbolic.subs({K: kept}) == get("lvtp").flops(number, Config())


sides = st.integers(1, 40)


@settings(max_examples=100, deadline=None)
@given(cell=st.tuples(st.integers(1, 9), st.integers(1, 9)), grid=st.tuples(sides, sides), kept=st.integers(1, 400))
def test_fitting_cell_is_the_first_that_fits(cell: tuple[int, int], grid: tuple[int, int], kept: int) -> None:
    rows, columns = fitting_cell(cell, grid, kept)
    room = max(1, kept // 2)
    assert cells(grid, (rows, columns)) <= room
    assert rows >= cell[0]
    assert columns >= cell[1]
    assert (rows, columns) == cell or cells(grid, cell) > room  # not enlarged without need
    if rows > cell[0] and columns > cell[1]:  # nor by more than one step, and square cells stay nearly square
        assert cells(grid, (rows - 1, columns)) > room or cells(grid, (rows, columns - 1)) > room
        assert abs(rows - columns) <= 1


def test_fitting_cell_grows_by_rows_first() -> None:
    assert fitting_cell((2, 2), (6, 5), 18) == (2, 2)
    assert fitting_cell((2, 2), (6, 5), 12) == (3, 2)
    assert fitting_cell((2, 2), (6, 5), 10) == (3, 3)
    assert fitting_cell((1, 4), (6, 5), 10) == (3, 4)


@given(grid=st.tuples(sides, sides), cell=st.tuples(st.integers(1, 9), st.integers(1, 9)))
@few
def test_cells_cover_the_grid(grid: tuple[int, int], cell: tuple[int, int]) -> None:
    places = {(r // cell[0], c // cell[1]) for r in range(grid[0]) for c in range(grid[1])}
    assert cells(grid, cell) == len(places)


@every_strategy
def test_every_name_of_the_config_is_a_strategy(name: str) -> None:
    assert Config(strategy=name).strategy == name
    assert callable(get(name).decide)
    assert callable(get(name).flops)


def test_an_unknown_strategy_is_refused() -> None:
    with pytest.raises(LvtpError, match=r"(?s)LVTP201.*Config.strategy.*one of lvtp, random, grid.*got: 'best'"):
        Config(strategy="best")
    with pytest.raises(KeyError, match="best"):
        get("best")


@pytest.mark.parametrize(("feature", "sources"), [
    ("auto", ["stream", "keys", "keys"]), ("keys", ["keys"] * 3), ("stream", ["stream"] * 3)])
def test_tokens_are_told_apart_by_the_stream_in_the_first_block_and_by_keys_behind_it(
    feature: str, sources: list[str]
) -> None:
    torch.manual_seed(0)
    model = Segmenter(SegmenterConfig(img_size=32, patch_size=8, C=12, depth=4, heads=3, classes=2))
    fast = lvtp_fx.transform(model, (torch.rand(1, 3, 32, 32),), keep_ratio=0.8, sites=(0, 1, 2), feature=feature)
    nodes = [node for node in fast.graph.nodes if node.target is torch.ops.lvtp.features.default]
    read = ["stream" if node.args[0].target is torch.ops.aten.add.Tensor else "keys" for node in nodes]
    assert read == sources
    assert [node.args[3] for node in nodes] == [4] * 3  # as many channels as a key has
