"""The nearest of many tokens: each with each, in bands, and what that costs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from lvtp_fx.config import Config
from lvtp_fx.ops import nearest as ops
from lvtp_fx.strategies import get
from tests import op_calls
from tests.draws import normal, seeds, subsets
from tests.test_strategies import Site, counted

lvtp = torch.ops.lvtp
CLOSE = 1e-5


@pytest.fixture
def banded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small sizes go the way of large ones."""
    monkeypatch.setattr(ops, "BAND", 6)
    monkeypatch.setattr(ops, "BLOCK", 3)


def by_loop(similarity: torch.Tensor, tokens: list[int], others: list[int]) -> list[tuple[float, list[int]]]:
    """One image: the highest similarity of each token to the others of its block's band, and which have it."""
    N, M = similarity.shape[0], len(others)
    blocks, width = -(-N // ops.BLOCK), -(-M * ops.BAND // N)
    banded = 2 * blocks * ops.BLOCK * width <= len(tokens) * M
    found = []
    for token in tokens:
        middle = min(token // ops.BLOCK * ops.BLOCK + ops.BLOCK // 2, N - 1)
        first = max(0, min(sum(other <= middle for other in others) - width // 2, M - width))
        band = sorted(others)[first : first + width] if banded else others
        best = max(float(similarity[token, other]) for other in band)
        found.append((best, [j for j, other in enumerate(others)
                             if other in band and float(similarity[token, other]) >= best - CLOSE]))
    return found


@pytest.mark.usefixtures("banded")
@settings(max_examples=60, deadline=None)
@given(seed=seeds, N=st.integers(1, 40), data=st.data(), weight=st.floats(0, 3), all_tokens=st.booleans())
def test_it_is_the_best_of_the_band(seed: int, N: int, data: st.DataObject, weight: float, all_tokens: bool) -> None:
    J, M = (data.draw(st.integers(1, N)) for _ in range(2))
    tokens = torch.arange(N).expand(2, N) if all_tokens else subsets(seed, 2, N, J)
    others = subsets(seed + 1, 2, N, M)[:, torch.randperm(M, generator=torch.Generator().manual_seed(seed))]
    left, right = lvtp.comparable(normal(seed, 2, N, 4).float(), torch.arange(N).expand(2, N), 7, 7, weight)
    best, index = ops.nearest(left, right, None if all_tokens else tokens, others)
    similarity = left @ right.mT
    for b in range(2):
        wanted = by_loop(similarity[b], tokens[b].tolist(), others[b].tolist())
        torch.testing.assert_close(best[b], torch.tensor([value for value, _ in wanted]), rtol=0, atol=CLOSE)
        assert all(at in places for at, (_, places) in zip(index[b].tolist(), wanted, strict=True))


def test_a_band_is_left_only_by_what_is_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 x 64 tokens: what is nearest among all, and within half of the band, is found in the band."""
    N, columns = 64 * 64, 64
    position = torch.arange(N)[None]
    pair, others = lvtp.comparable(normal(0, 1, N, 16), position, columns, columns, 8.0), subsets(1, 1, N, N // 3)
    best, index = ops.nearest(*pair, None, others)
    monkeypatch.setattr(ops, "BAND", N)
    best_of_all, index_of_all = ops.nearest(*pair, None, others)
    apart = (torch.gather(others, 1, index_of_all) - position).abs()
    near = apart < 1024 // 2 - ops.BLOCK
    assert 0.5 < near.float().mean() < 1
    assert torch.equal(index[near], index_of_all[near])
    assert (best <= best_of_all + CLOSE).all()


@pytest.mark.usefixtures("banded")
@pytest.mark.parametrize("kept", [2, 9, 30, 39])
def test_flops_of_bands_are_what_the_counter_counts(kept: int) -> None:
    site = Site(grid=(5, 8), N=40, kept=kept)
    strategy, config = get("lvtp"), Config()
    assert strategy.flops(site.shape, config) == counted(site.build(strategy, config), site.inputs(B=1))


def test_they_are_linear_in_the_tokens() -> None:
    def flops(N: int) -> int:
        feature, position = torch.empty(1, N, 64, device="meta"), torch.empty(1, N, dtype=torch.int64, device="meta")
        kept, edges = position[:, : N // 2], torch.empty(1, N, device="meta")
        with FlopCounterMode(display=False) as counter:
            op_calls.rank(feature, position[:, : N // 4], position, edges, edges, 128, 128, 8.0, 0.0, 0.05, N // 2, 6)
            op_calls.owners(feature, kept, position, 128, 128, 8.0)
        return counter.get_total_flops()

    assert flops(16_384) == pytest.approx(4 * flops(4096), rel=0.01)
    assert flops(2048) > flops(4096) / 4 * 1.5  # each is compared with each
