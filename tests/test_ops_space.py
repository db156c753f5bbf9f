"""Moving values between token spaces, against Python loops and the laws: reduce, attend, restore."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import lvtp_fx.ops  # noqa: F401  (registers the dialect)
from tests import op_calls
from tests.draws import Space, integers, normal, seeds, spaces

lvtp = torch.ops.lvtp
few = settings(max_examples=40, deadline=None)


@few
@given(seed=seeds, B=st.integers(1, 3), K=st.integers(1, 6), J=st.integers(1, 6))
def test_compose_is_indexing_an_index(seed: int, B: int, K: int, J: int) -> None:
    outer, inner = integers(seed, 50, B, K), integers(seed + 1, K, B, J)
    expected = [[int(outer[b, inner[b, i]]) for i in range(J)] for b in range(B)]
    assert lvtp.compose(outer, inner).tolist() == expected


def test_compose_takes_values_as_well_as_indices() -> None:
    assert lvtp.compose(torch.tensor([[0.5, 1.5]]), torch.tensor([[1, 0, 1]])).tolist() == [[1.5, 0.5, 1.5]]


@few
@given(seed=seeds, B=st.integers(1, 3), outer=st.integers(1, 3), inner=st.integers(1, 3))
def test_repeat_orders_like_a_merged_axis(seed: int, B: int, outer: int, inner: int) -> None:
    per_image = integers(seed, 50, B, 4)
    expected = [per_image[b].tolist() for _ in range(outer) for b in range(B) for _ in range(inner)]
    assert lvtp.repeat(per_image, outer, inner).tolist() == expected
    merged = per_image[None, :, None].expand(outer, B, inner, 4).flatten(0, 2)  # what a reshape of the batch does
    assert torch.equal(lvtp.repeat(per_image, outer, inner), merged)


def gather_by_loop(
    x: torch.Tensor, index: torch.Tensor, batch_dim: int, token_dim: int, before: int, after: int
) -> torch.Tensor:
    """Image by image: prefix, the indexed tokens, suffix."""
    N = x.shape[token_dim] - before - after
    images = []
    for b in range(index.shape[0]):
        image = x.select(batch_dim, b if x.shape[batch_dim] > 1 else 0)
        axis = token_dim - (batch_dim < token_dim)
        wanted = [*range(before), *(before + int(i) for i in index[b]), *range(before + N, before + N + after)]
        images.append(torch.stack([image.select(axis, i) for i in wanted], axis))
    return torch.stack(images, batch_dim)


@few
@given(space=spaces(), axes=st.permutations(range(4)), table=st.booleans(), up=st.booleans())
def test_gather_matches_a_loop(space: Space, axes: list[int], table: bool, up: bool) -> None:
    """Any order of axes, a batch of 1 (a table) or B, indices of dropped (up) or kept tokens (down)."""
    batch_dim, token_dim = axes[:2]
    shape = [2, 2, 2, 2]
    shape[batch_dim] = 1 if table else space.B
    shape[token_dim] = space.before + (space.K if up else space.N) + space.after
    x, index = normal(space.seed, *shape), space.owner if up else space.kept
    args = (batch_dim, token_dim, space.before, space.after)
    actual = lvtp.gather(x, index, *args)
    assert torch.equal(actual, gather_by_loop(x, index, *args))


@few
@given(space=spaces())
def test_down_after_up_is_the_identity(space: Space) -> None:
    """Kept tokens own themselves: what goes up to the parent comes down unchanged."""
    x = space.stream()[:, : space.before + space.K + space.after]
    up = lvtp.gather(x, space.owner, 0, 1, space.before, space.after)
    assert up.shape[1] == space.L
    assert torch.equal(lvtp.gather(up, space.kept, 0, 1, space.before, space.after), x)


def test_ones_and_sizes_of_the_full_grid() -> None:
    position = lvtp.positions(torch.zeros(2, 3), 5)
    assert lvtp.ones(position).dtype == torch.float32
    assert lvtp.ones(position).tolist() == [[1.0] * 5] * 2


@few
@given(space=spaces())
def test_sizes_add_up_what_a_token_stands_for(space: Space) -> None:
    sizes = lvtp.sizes(space.size, space.owner, space.K)
    assert sizes.shape == (space.B, space.K)
    for b in range(space.B):
        for j in range(space.K):
            assert sizes[b, j] == sum(float(space.size[b, i]) for i in range(space.N) if space.owner[b, i] == j)
    assert torch.equal(sizes.sum(1), space.size.sum(1))  # no token is lost or counted twice


@few
@given(space=spaces(), dtype=st.sampled_from([torch.float64, torch.float32]))
def test_merge_is_the_weighted_mean_of_what_a_token_owns(space: Space, dtype: torch.dtype) -> None:
    x = space.stream(dtype=dtype)
    merged = op_calls.merge(x, space.kept, space.owner, space.size, space.before, space.after)
    assert merged.dtype == dtype
    assert merged.shape == (space.B, space.before + space.K + space.after, 3)
    grid = x[:, space.before : space.before + space.N].double()
    body = merged[:, space.before : space.before + space.K]
    for b in range(space.B):
        for j in range(space.K):
            own = space.owner[b] == j
            mean = (grid[b, own] * space.size[b, own, None].double()).sum(0) / space.size[b, own].double().sum()
            torch.testing.assert_close(body[b, j], mean.to(dtype))
    assert torch.equal(merged[:, : space.before], x[:, : space.before])
    assert torch.equal(merged[:, space.before + space.K :], x[:, space.before + space.N :])


@few
@given(space=spaces())
def test_merge_conserves_mass(space: Space) -> None:
    x = space.stream()
    merged = op_calls.merge(x, space.kept, space.owner, space.size, space.before, space.after)
    sizes = lvtp.sizes(space.size, space.owner, space.K).double()
    mass = (merged[:, space.before : space.before + space.K] * sizes[..., None]).sum(1)
    grid = x[:, space.before : space.before + space.N]
    torch.testing.assert_close(mass, (grid * space.size[..., None].double()).sum(1))
    if space.K < space.N and space.size.unique().numel() > 1:  # a plain mean would not
        plain = op_calls.merge(x, space.kept, space.owner, torch.ones_like(space.size), space.before, space.after)
        unequal = (plain - merged).abs().amax() > 1e-9
        shared = [space.size[b][space.owner[b] == j].unique().numel() > 1
                  for b in range(space.B) for j in range(space.K)]
        assert bool(unequal) == any(shared)


@few
@given(space=spaces())
def test_merging_in_two_steps_is_merging_once(space: Space) -> None:
    """Sizes make the mean of means the mean: the second site merges everything into its first token."""
    x, all_in_one = space.stream(), torch.zeros(space.B, space.K, dtype=torch.int64)
    first_token = torch.zeros(space.B, 1, dtype=torch.int64)
    once = op_calls.merge(x, first_token, torch.zeros_like(space.owner), space.size, space.before, space.after)
    first = op_calls.merge(x, space.kept, space.owner, space.size, space.before, space.after)
    sizes = lvtp.sizes(space.size, space.owner, space.K)
    twice = op_calls.merge(first, first_token, all_in_one, sizes, space.before, space.after)
    torch.testing.assert_close(twice, once)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_merge_of_a_large_cluster_is_rounded_once_in_half_types(dtype: torch.dtype) -> None:
    """In float16 the sum would overflow, in bfloat16 the sum would be rounded before it is divided."""
    x, size = (100 + 50 * normal(0, 1, 512, 64)).to(dtype), 1 + integers(1, 4, 1, 512).float()
    merged = op_calls.merge(x, torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 512, dtype=torch.int64), size, 0, 0)
    mean = (x.double() * size[..., None]).sum(1, keepdim=True) / size.sum()
    assert torch.equal(merged, mean.to(dtype))


def test_key_bias_has_one_axis_of_keys_wherever_the_batch_is() -> None:
    size = torch.tensor([[1.0, 4.0], [2.0, 1.0]])
    logs = torch.tensor([[0.0, 0, 4.0], [0.0, 2.0, 0]]).clamp(min=1).log()
    bias = lvtp.key_bias(None, size, 1, 0, 0, torch.zeros(2, 5, 3, 7))
    assert bias.shape == (2, 1, 1, 3)
    torch.testing.assert_close(bias[:, 0, 0], logs)
    bias = lvtp.key_bias(None, size, 1, 0, 1, torch.zeros(5, 2, 3, 7, dtype=torch.float16))
    assert bias.shape == (1, 2, 1, 3)
    assert bias.dtype == torch.float16
    assert lvtp.key_bias(None, size, 0, 2, 0, torch.zeros(2, 3, 7)).shape == (2, 1, 4)


def mask_of(kind: str, seed: int, B: int, L: int) -> torch.Tensor | None:
    """A mask over 3 heads and L keys; the first key is always visible."""
    if kind == "none":
        return None
    if kind == "additive":
        return normal(seed, B, 3, L, L)
    visible = integers(seed, 3, *((L, L) if kind == "bool [L, L]" else (B, 1, 1, L))) > 0
    visible[..., 0] = True
    return visible


@few
@given(space=spaces(), kind=st.sampled_from(["none", "additive", "bool [L, L]", "bool [B, 1, 1, L]"]))
def test_biased_keys_weigh_as_much_as_the_duplicates_they_stand_for(space: Space, kind: str) -> None:
    """Attention over merged identical keys, with the bias, is dense attention over each key `size` times."""
    B, L, size = space.B, space.L, space.size
    q, k, v = (normal(space.seed + i, B, 3, L, 4) for i in range(3))
    mask = mask_of(kind, space.seed, B, L)
    biased = lvtp.key_bias(mask, size, space.before, space.after, 0, q)
    actual = F.scaled_dot_product_attention(q, k, v, attn_mask=biased)
    times = F.pad(size, (space.before, space.after), value=1.0).long()
    for b in range(B):
        keys, values = (x[b].repeat_interleave(times[b], 1) for x in (k, v))
        seen = None if mask is None else mask.expand(B, 3, L, L)[b].repeat_interleave(times[b], -1)
        dense = F.scaled_dot_product_attention(q[b], keys, values, attn_mask=seen)
        # The op takes the log of float32 sizes: 2 ** -24 of it.
        torch.testing.assert_close(actual[b], dense, atol=2e-6, rtol=0)


def test_without_the_bias_a_large_cluster_weighs_too_little() -> None:
    q, k, v = (normal(i, 1, 1, 4, 4) for i in range(3))
    dense = F.scaled_dot_product_attention(q, k.repeat_interleave(torch.tensor([9, 1, 1, 1]), 2),
                                           v.repeat_interleave(torch.tensor([9, 1, 1, 1]), 2))
    biased = lvtp.key_bias(None, torch.tensor([[9.0, 1, 1, 1]]), 0, 0, 0, q)
    torch.testing.assert_close(F.scaled_dot_product_attention(q, k, v, attn_mask=biased), dense, atol=2e-6, rtol=0)
    assert (F.scaled_dot_product_attention(q, k, v) - dense).abs().max() > 0.1


def reductions(space: Space) -> dict[str, torch.Tensor]:
    """The stream after each kind of reduction."""
    x = space.stream()
    return {"merge": op_calls.merge(x, space.kept, space.owner, space.size, space.before, space.after),
            "select": lvtp.gather(x, space.kept, 0, 1, space.before, space.after)}


@few
@given(space=spaces(), reduce=st.sampled_from(["merge", "select"]))
def test_restore_right_after_reduce_gives_back_the_entry(space: Space, reduce: str) -> None:
    """The law: same shape, same order, and the same bits, merged or not."""
    x, left = space.stream(), reductions(space)[reduce]
    assert torch.equal(lvtp.restore(left, x, left, space.owner, space.before, space.after), x)
    frozen = lvtp.restore_frozen(left, x, space.kept, space.before, space.after)
    assert frozen.shape == x.shape
    dropped = torch.ones(space.B, space.N).scatter(1, space.kept, 0.0).bool()
    grid = slice(space.before, space.before + space.N)
    assert torch.equal(frozen[:, grid][dropped], x[:, grid][dropped])
    if reduce == "select":
        assert torch.equal(frozen, x)


@few
@given(space=spaces(), reduce=st.sampled_from(["merge", "select"]))
def test_restores_match_a_loop(space: Space, reduce: str) -> None:
    x, left, before, K, N = space.stream(), reductions(space)[reduce], space.before, space.K, space.N
    now = left + normal(space.seed + 9, *left.shape)  # what later blocks added
    delta = lvtp.restore(now, x, left, space.owner, before, space.after)
    frozen = lvtp.restore_frozen(now, x, space.kept, before, space.after)
    for actual in (delta, frozen):
        assert torch.equal(actual[:, :before], now[:, :before])
        assert torch.equal(actual[:, before + N :], now[:, before + K :])
    for b in range(space.B):
        kept = space.kept[b].tolist()
        for i in range(N):
            o = before + int(space.owner[b, i])
            torch.testing.assert_close(delta[b, before + i], x[b, before + i] + now[b, o] - left[b, o])
            expected = now[b, before + kept.index(i)] if i in kept else x[b, before + i]
            assert torch.equal(frozen[b, before + i], expected)


@few
@given(space=spaces(), count=st.integers(1, 3))
def test_restore_from_several_is_a_mean_of_their_changes(space: Space, count: int) -> None:
    x, left, before, K, N = space.stream(), reductions(space)["merge"], space.before, space.K, space.N
    now = left + normal(space.seed + 9, *left.shape)
    supports = (normal(space.seed + 10, space.B, N, count).abs() * K).long() % K
    shares = normal(space.seed + 11, space.B, N, count).softmax(-1)
    ends = (before, space.after)
    found = lvtp.restore_between(now, x, left, supports, shares, *ends)
    parts = [lvtp.restore(now, x, left, supports[..., i], *ends)[:, before : before + N] * shares[..., [i]].to(x.dtype)
             for i in range(count)]
    torch.testing.assert_close(found[:, before : before + N], torch.stack(parts).sum(0))
    assert torch.equal(found[:, :before], now[:, :before])
    assert torch.equal(found[:, before + N :], now[:, before + K :])
    assert torch.equal(lvtp.restore_between(left, x, left, supports, shares, *ends), x)  # right after the reduction


@few
@given(space=spaces())
def test_delta_restore_moves_a_cluster_as_one(space: Space) -> None:
    """Whatever later blocks add to an owner, each of its tokens gets; differences in a cluster stay as they were."""
    x, left = space.stream(), reductions(space)["merge"]
    shift = normal(space.seed + 9, *left.shape)
    moved = lvtp.restore(left + shift, x, left, space.owner, space.before, space.after) - x
    grid = moved[:, space.before : space.before + space.N]
    wanted = lvtp.gather(shift[:, space.before : space.before + space.K], space.owner, 0, 1, 0, 0)
    torch.testing.assert_close(grid, wanted)
