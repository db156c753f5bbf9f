"""Selection, owners, representatives and the ranking, each against its definition in a Python loop."""

from __future__ import annotations

from math import hypot, inf, nan

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lvtp_fx.ops  # noqa: F401  (registers the dialect)
from tests import op_calls
from tests.draws import integers, normal, seeds, subsets

lvtp = torch.ops.lvtp
few = settings(max_examples=40, deadline=None)
CLOSE = 1e-5  # float32 sums of products of unit vectors against float64 ones


def test_positions_count_up_in_every_image() -> None:
    assert lvtp.positions(torch.zeros(3, 7, 2), 4).tolist() == [[0, 1, 2, 3]] * 3
    assert lvtp.positions(torch.zeros(3, 7, 2), 4).dtype == torch.int64


@given(before=st.integers(0, 2), after=st.integers(0, 2), C=st.integers(1, 9), width=st.integers(1, 9))
@few
def test_features_are_mean_keys_or_a_folded_stream(before: int, after: int, C: int, width: int) -> None:
    L = before + 5 + after
    stream, keys = normal(0, 2, L, C), normal(1, 2, 4, L, width)
    mean = sum(keys[:, h, before : before + 5] for h in range(4)) / 4
    torch.testing.assert_close(lvtp.features(keys, before, after, width), mean)
    assert torch.equal(lvtp.features(stream, before, after, C), stream[:, before : before + 5])  # nothing to fold
    folded = torch.zeros(2, 5, width, dtype=stream.dtype)
    for channel in range(C):
        folded[:, :, channel % width] += stream[:, before : before + 5, channel]
    torch.testing.assert_close(lvtp.features(stream, before, after, width), folded)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_folded_stream_of_a_half_type_neither_overflows_nor_rounds(dtype: torch.dtype) -> None:
    stream = torch.full((1, 2, 64), 6e4).to(dtype)
    folded = lvtp.features(stream, 0, 0, 4)
    assert folded.dtype == torch.float32
    assert torch.equal(folded, 16 * stream[..., :4].float())


def select_by_sort(row: list[float], kept: int) -> list[int]:
    """Highest first, ties to the earlier; what is not a number comes last."""
    order = sorted(range(len(row)), key=lambda i: (row[i] != row[i], -row[i] if row[i] == row[i] else 0, i))
    return sorted(order[:kept])


@few
@given(
    row=st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.5, -3.0, inf, -inf, nan]), min_size=1, max_size=14),
    data=st.data(), dtype=st.sampled_from([torch.float32, torch.float16]),
)
def test_select_is_a_stable_sort(row: list[float], data: st.DataObject, dtype: torch.dtype) -> None:
    kept = data.draw(st.integers(1, len(row)))
    priority = torch.tensor([row, row[::-1]], dtype=dtype)
    actual = lvtp.select(priority, kept)
    assert actual.dtype == torch.int64
    assert actual.tolist() == [select_by_sort(row, kept), select_by_sort(row[::-1], kept)]


@few
@given(seed=seeds, N=st.integers(1, 300), share=st.floats(0.01, 1))
def test_select_keeps_exactly_k_ascending(seed: int, N: int, share: float) -> None:
    kept = max(1, int(share * N))
    priority = integers(seed, 10, 2, N).float()  # ties everywhere
    actual = lvtp.select(priority, kept)
    assert actual.shape == (2, kept)
    assert (actual.diff(dim=1) > 0).all()
    assert actual.tolist() == [select_by_sort(row, kept) for row in priority.tolist()]


def closeness(
    a: torch.Tensor, b: torch.Tensor, place_a: int, place_b: int, columns: int, reach: int, weight: float
) -> float:
    """Cosine similarity, less the weighted square of the distance on the grid."""
    cosine = float(a.double() @ b.double() / (a.double().norm() * b.double().norm()))
    apart = hypot(place_a // columns - place_b // columns, place_a % columns - place_b % columns)
    return cosine - weight * (apart / reach) ** 2


@few
@given(
    seed=seeds, B=st.integers(1, 2), rows=st.integers(1, 4), columns=st.integers(1, 4), weight=st.floats(0, 3),
    reach=st.integers(1, 9), data=st.data(),
)
def test_owners_are_the_most_similar_kept_tokens(
    seed: int, B: int, rows: int, columns: int, weight: float, reach: int, data: st.DataObject
) -> None:
    N = data.draw(st.integers(1, rows * columns))
    K = data.draw(st.integers(1, N))
    position = subsets(seed, B, rows * columns, N)  # a site after another one: not all places live
    kept, feature = subsets(seed + 1, B, N, K), normal(seed, B, N, 4)
    owner = op_calls.owners(feature, kept, position, columns, reach, weight)
    assert owner.shape == (B, N)
    assert owner.dtype == torch.int64
    assert owner.min() >= 0
    assert owner.max() < K
    for b in range(B):
        assert owner[b, kept[b]].tolist() == list(range(K))  # kept tokens own themselves
        for i in set(range(N)) - set(kept[b].tolist()):
            all_kept = [closeness(feature[b, i], feature[b, j], int(position[b, i]), int(position[b, j]), columns,
                                  reach, weight) for j in kept[b].tolist()]
            assert all_kept[owner[b, i]] >= max(all_kept) - CLOSE


@few
@given(
    seed=seeds, rows=st.integers(1, 4), columns=st.integers(1, 4), weight=st.floats(0, 3), count=st.integers(2, 4),
    softness=st.floats(0.01, 1), given_owner=st.booleans(), data=st.data(),
)
def test_supports_are_the_owner_and_the_most_similar_others(
    seed: int, rows: int, columns: int, weight: float, count: int, softness: float, given_owner: bool,
    data: st.DataObject,
) -> None:
    B, N = 2, data.draw(st.integers(1, rows * columns))
    K = data.draw(st.integers(1, N))
    position, kept = subsets(seed, B, rows * columns, N), subsets(seed + 1, B, N, K)
    feature = normal(seed, B, N, 4)
    owner = op_calls.owners(feature, kept, position, columns, 5, weight)
    if given_owner:  # any owners, but kept tokens are their own
        owner = ((owner + normal(seed, B, N).abs() * K).long() % K).scatter(1, kept, torch.arange(K).expand(B, K))
    supports, shares = op_calls.supports(feature, kept, owner if given_owner else None, position, columns, 5, weight,
                                         count, softness)
    assert torch.equal(lvtp.owners_among(supports), owner)
    for b in range(B):
        alive = kept[b].tolist()
        for i in range(N):
            who, share = supports[b, i].tolist(), shares[b, i].tolist()
            if i in alive:
                assert share == [1.0] + [0.0] * (count - 1)
                continue
            here = position[b].tolist()
            near = [closeness(feature[b, i], feature[b, j], here[i], here[j], columns, 5, weight) for j in alive]
            first = int(owner[b, i])
            wanted = [near[first], *sorted(near[:first] + near[first + 1 :], reverse=True)][:count]
            there = len(wanted)
            assert [near[j] for j in who[:there]] == pytest.approx(wanted, abs=CLOSE)
            assert len(set(who[:there])) == there
            softmax = torch.tensor(wanted).div(softness).softmax(0).tolist()
            assert share == pytest.approx(softmax + [0.0] * (count - there), abs=1e-2 * CLOSE / softness + 1e-3)


@pytest.mark.parametrize("bad", [nan, inf])
def test_supports_of_bad_features_are_still_kept_tokens(bad: float) -> None:
    feature = normal(0, 1, 6, 3)
    feature[0, [1, 2]] = bad  # a kept one and a dropped one
    kept = torch.tensor([[0, 1, 4]])
    supports, shares = op_calls.supports(feature, kept, None, torch.arange(6)[None], 3, 3, 0.1, 3, 0.1)
    assert 0 <= int(supports.min()) <= int(supports.max()) < 3
    assert not shares[0, [0, 1, 3, 4, 5]].isnan().any()
    assert (shares[0, [3, 5]] * (supports[0, [3, 5]] == 1)).sum() == 0  # nothing is restored from what is not a number


def test_owners_trade_similarity_against_distance() -> None:
    """Token 3 is alike token 0, three columns away, and half alike its neighbour 2."""
    feature = torch.tensor([[[1.0, 0], [0, 1], [0.6, 0.8], [1.0, 0]]])
    kept, position = torch.tensor([[0, 2]]), torch.arange(4)[None]
    assert op_calls.owners(feature, kept, position, 4, 4, 0.0)[0, 3] == 0
    assert op_calls.owners(feature, kept, position, 4, 4, 1.0)[0, 3] == 1  # 1 - 9/16 < 0.6 - 1/16
    assert op_calls.owners(feature, kept, position, 4, 8, 1.0)[0, 3] == 0  # 1 - 9/64 > 0.6 - 1/64
    assert op_calls.owners(feature, kept, position, 2, 8, 1.0)[0, 3] == 0  # 2 columns: 0 and 3 touch at a corner


def test_kept_twins_own_themselves_and_ties_go_to_the_earlier() -> None:
    feature = torch.ones(1, 5, 3)
    owner = op_calls.owners(feature, torch.tensor([[1, 3]]), torch.arange(5)[None], 5, 5, 0.0)
    assert owner.tolist() == [[0, 0, 0, 1, 0]]


@pytest.mark.parametrize("bad", [nan, inf, 0.0])
def test_owners_of_bad_features_are_still_owners(bad: float) -> None:
    feature = normal(0, 1, 6, 3)
    feature[0, [1, 2]] = bad  # a kept one and a dropped one
    kept = torch.tensor([[0, 1, 4]])
    owner = op_calls.owners(feature, kept, torch.arange(6)[None], 3, 3, 0.1)[0]
    assert owner[kept[0]].tolist() == [0, 1, 2]
    assert 0 <= int(owner.min()) <= int(owner.max()) < 3
    good = op_calls.owners(feature[:, [0, 3, 4, 5]], torch.tensor([[0, 2]]), torch.tensor([[0, 3, 4, 5]]), 3, 3, 0.1)[0]
    if bad != 0:  # zeros are alike to nothing, but no worse than an opposite
        assert torch.tensor([0, 2])[good].tolist() == owner[[0, 3, 4, 5]].tolist()


@few
@given(
    seed=seeds, rows=st.integers(1, 6), columns=st.integers(1, 6), cell_rows=st.integers(1, 4),
    cell_columns=st.integers(1, 4), data=st.data(), levels=st.sampled_from([3, 1000]),
)
def test_each_cell_is_represented_by_its_most_important_token(
    seed: int, rows: int, columns: int, cell_rows: int, cell_columns: int, data: st.DataObject, levels: int
) -> None:
    N = data.draw(st.integers(1, rows * columns))
    position = subsets(seed, 2, rows * columns, N)
    importance = integers(seed + 1, levels, 2, N).float() - 1  # three levels: ties go to the earlier token
    actual = lvtp.representatives(importance, position, rows, columns, cell_rows, cell_columns)
    for b in range(2):
        expected = []
        for top in range(0, rows, cell_rows):
            for left in range(0, columns, cell_columns):
                inside = [i for i in range(N) if top <= int(position[b, i]) // columns < top + cell_rows
                          and left <= int(position[b, i]) % columns < left + cell_columns]
                expected.append(max(inside, key=lambda i: float(importance[b, i]), default=0))
        assert actual[b].tolist() == expected


def test_importance_that_is_not_a_number_represents_its_cell_only_where_nothing_else_lives() -> None:
    importance = torch.tensor([[nan, -1e9, nan, nan, -inf, inf]])
    actual = lvtp.representatives(importance, torch.arange(6)[None], 1, 6, 1, 2)
    assert actual.tolist() == [[1, 2, 5]]
    assert lvtp.representatives(importance[:, 4:5], torch.tensor([[4]]), 1, 6, 1, 2).tolist() == [[0, 0, 0]]
    behind = lvtp.representatives(importance[:, 3:5], torch.tensor([[0, 3]]), 1, 4, 1, 2)
    assert behind.tolist() == [[0, 1]]  # -inf behind a place where no token lives


def rank_by_loop(
    feature: torch.Tensor, anchors: list[int], position: list[int], importance: torch.Tensor, edges: torch.Tensor,
    columns: int, reach: int, neighbour: float, importance_weight: float, edge_weight: float, kept: int, rounds: int,
) -> list[float]:
    """One image: clusters around the anchors, then the mean edge of each cluster, then what holds a token back; then
    the same with what has been chosen beside the anchors; the last round chooses what is left."""
    N = len(position)
    nearest = [[closeness(feature[i], feature[a], position[i], position[a], columns, reach, neighbour)
                for a in anchors] for i in range(N)]
    cluster = [row.index(max(row)) for row in nearest]
    worth = []
    for i in range(N):
        members = [float(edges[j]) for j in range(N) if cluster[j] == cluster[i]]
        excess = max(float(edges[i]) - sum(members) / len(members), 0)
        worth.append(edge_weight * excess + importance_weight * float(importance[i]))
    chosen, compared, M = set(anchors), list(anchors), len(anchors)
    more = (kept - M) // rounds
    for part in range(rounds if more else 1):
        priority = [inf if i in chosen else worth[i] - max(
            closeness(feature[i], feature[a], position[i], position[a], columns, reach, neighbour) for a in compared)
            for i in range(N)]
        if more and part < rounds - 1:
            order = sorted(range(N), key=lambda i: (-priority[i], i))
            chosen |= set(order[: M + (part + 1) * more])
            compared += order[M + part * more : M + (part + 1) * more]
    return priority


weights = st.sampled_from([0.0, 0.05, 0.4])


@few
@given(seed=seeds, N=st.integers(1, 14), M=st.integers(1, 4), columns=st.integers(1, 5), neighbour=weights,
       importance_weight=weights, edge_weight=weights, repeat=st.booleans(), more=st.integers(0, 12),
       rounds=st.integers(1, 4))
def test_rank_is_its_definition(
    seed: int, N: int, M: int, columns: int, neighbour: float, importance_weight: float, edge_weight: float,
    repeat: bool, more: int, rounds: int,
) -> None:
    position = subsets(seed, 2, 16, N)
    anchors = subsets(seed + 1, 2, N, min(M, N))
    if repeat:  # as `representatives` does for an empty cell
        anchors = torch.cat([anchors, torch.zeros(2, 2, dtype=torch.int64)], 1)
    feature, importance, edges = normal(seed, 2, N, 4), normal(seed + 2, 2, N), normal(seed + 3, 2, N)
    kept = max(anchors.shape[1], min(N, anchors.shape[1] + more))
    actual = op_calls.rank(feature, anchors, position, importance.float(), edges.float(), columns, 4, neighbour,
                           importance_weight, edge_weight, kept, rounds)
    for b in range(2):
        expected = rank_by_loop(feature[b], anchors[b].tolist(), position[b].tolist(), importance[b], edges[b],
                                columns, 4, neighbour, importance_weight, edge_weight, kept, rounds)
        torch.testing.assert_close(actual[b], torch.tensor(expected), atol=CLOSE, rtol=0)


def ranked(edges: list[float], edge_weight: float) -> list[int]:
    """Tokens by priority, the first to live on first: token 0 is the anchor, 1 to 3 less and less alike it."""
    angle = torch.tensor([0.0, 0.3, 0.6, 0.9])
    feature = torch.stack([angle.cos(), angle.sin()], -1)[None]
    priority = op_calls.rank(feature, torch.tensor([[0]]), torch.arange(4)[None], torch.zeros(1, 4),
                             torch.tensor([edges], dtype=torch.float32), 4, 4, 0.0, 0.0, edge_weight, 3, 1)
    return [int(i) for i in priority[0].argsort(descending=True)]


def test_anchors_come_first_then_what_is_unlike_its_anchor() -> None:
    assert ranked([0, 0, 0, 0], 0.4) == [0, 3, 2, 1]


def test_of_tokens_alike_one_is_enough_where_they_are_chosen_in_rounds() -> None:
    """2 and 3 are both far from the anchor, and next to each other: with one round both go before 1."""
    angle = torch.tensor([0.0, 0.8, 1.5, 1.52])
    feature, none = torch.stack([angle.cos(), angle.sin()], -1)[None], torch.zeros(1, 4)
    first, renewed = (
        op_calls.rank(feature, torch.tensor([[0]]), torch.arange(4)[None], none, none, 4, 4, 0.0, 0.0, 0.0, 3, rounds)
        for rounds in (1, 2))
    assert lvtp.select(first, 3).tolist() == [[0, 2, 3]]
    assert lvtp.select(renewed, 3).tolist() == [[0, 1, 3]]


def test_repeated_anchors_do_not_cost_the_best_tokens_their_place() -> None:
    """`representatives` repeats token 0 for an empty cell; who lives on must not depend on it."""
    feature, position = normal(1, 1, 8, 4, dtype=torch.float32), torch.arange(8)[None]
    none = torch.zeros(1, 8)
    once, thrice = (
        lvtp.select(op_calls.rank(feature, torch.tensor([anchors]), position, none, none, 8, 8, 0.0, 0.0, 0.0, 5, 2), 5)
        for anchors in ([0], [0, 0, 0]))
    alone = op_calls.rank(feature, torch.tensor([[0]]), position, none, none, 8, 8, 0.0, 0.0, 0.0, 5, 1)
    best = alone[0].argsort(descending=True)[1]
    assert int(best) in once[0]
    assert int(best) in thrice[0]


def test_edge_tokens_go_last_and_smoothness_is_no_demerit() -> None:
    assert ranked([0, 4, 0, 0], 0.4) == [0, 1, 3, 2]
    assert ranked([0, 4, 0, 0], 0.0) == [0, 3, 2, 1]
    assert ranked([0, 0, 0, -9], 0.4)[1:] != [1, 2, 3]  # far below the mean of its cluster, yet not the first to go
    assert ranked([7, 7, 7, 7], 0.4) == [0, 3, 2, 1]  # as every other of its cluster


def test_a_bad_token_does_not_undo_the_others() -> None:
    """A token of NaN features that is no anchor ranks lowest; the others keep their ranks."""
    feature, position = normal(0, 1, 8, 4, dtype=torch.float32), torch.arange(8)[None]
    feature[0, 5] = nan
    zeros = torch.zeros(1, 8)
    priority = op_calls.rank(feature, torch.tensor([[0, 3]]), position, zeros, zeros, 4, 4, 0.1, 0.0, 0.05, 6, 2)
    others = [i for i in range(8) if i != 5]
    alone = op_calls.rank(feature[:, others], torch.tensor([[0, 3]]), position[:, others], zeros[:, others],
                          zeros[:, others], 4, 4, 0.1, 0.0, 0.05, 6, 2)
    torch.testing.assert_close(priority[:, others], alone)
    assert 5 not in lvtp.select(priority, 7)[0]
