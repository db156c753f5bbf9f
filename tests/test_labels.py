"""The arithmetic of axis labels."""

from __future__ import annotations

from math import prod

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from lvtp_fx.passes.axes.label import (
    Axis,
    Factor,
    Kind,
    Label,
    grids,
    is_plain,
    length,
    normal,
    plain,
    regroup,
    sizes,
    token,
    token_axes,
    token_factor,
    unify,
)

BATCH = Factor(Kind.BATCH, 1_000_003)
GRID = (3, 5)

plain_factors = st.integers(1, 6).map(lambda n: Factor(Kind.PLAIN, n))
tokens = st.builds(token, st.tuples(st.integers(2, 5), st.integers(2, 5)), st.integers(0, 2), st.integers(0, 2))
image_factors = st.sampled_from([Factor(Kind.HEIGHT, 4), Factor(Kind.WIDTH, 6)])
factors = st.one_of(plain_factors, tokens, image_factors, st.just(BATCH))
axes = st.lists(factors, max_size=4).map(normal)
labels = st.lists(axes, min_size=1, max_size=4).map(tuple)


def height(n: int) -> Axis:
    return (Factor(Kind.HEIGHT, n),)


def width(n: int) -> Axis:
    return (Factor(Kind.WIDTH, n),)


# normal


@given(st.lists(factors, max_size=6))
def test_normal_keeps_the_length_and_is_idempotent(given_factors: list[Factor]) -> None:
    axis = normal(given_factors)
    assert length(axis) == prod(f.size for f in given_factors)
    assert normal(axis) == axis
    assert len(axis) == 1 or all(f.size > 1 for f in axis)


def test_normal_makes_rows_and_columns_a_token_axis_in_this_order_only() -> None:
    h, w = Factor(Kind.HEIGHT, 3), Factor(Kind.WIDTH, 5)
    assert normal([h, w]) == (token(GRID),)
    assert normal([w, h]) == (w, h)
    assert normal([h, Factor(Kind.PLAIN, 1), w]) == (token(GRID),)
    assert normal([h, Factor(Kind.PLAIN, 2), w]) == (h, Factor(Kind.PLAIN, 2), w)


def test_normal_merges_plain_neighbours_and_nothing_else() -> None:
    two, three = Factor(Kind.PLAIN, 2), Factor(Kind.PLAIN, 3)
    assert normal([two, three]) == plain(6)
    assert normal([two, BATCH, three]) == (two, BATCH, three)
    assert normal([]) == plain(1)


# unify


@given(axes, axes)
def test_unify_does_not_depend_on_the_order(a: Axis, b: Axis) -> None:
    assume(1 in (length(a), length(b)) or length(a) == length(b))  # what an op accepts
    one, other = unify([a, b]), unify([b, a])
    assert one == other or (one is not None and other is not None and is_plain(one) and is_plain(other))


@given(axes)
def test_unify_with_itself_a_broadcast_axis_or_a_table_is_the_axis(axis: Axis) -> None:
    assume(length(axis) > 1)
    assert unify([axis, axis]) == axis
    assert unify([axis, plain(1)]) == axis
    assert unify([plain(1), axis]) == axis
    assert unify([plain(length(axis)), axis]) == axis
    assert unify([axis, plain(length(axis))]) == axis


@pytest.mark.parametrize(
    "other",
    [(token((5, 3)),), (token((2, 7), before=1),), (token((7, 2), after=1),), (BATCH,), height(15)],
    ids=["another grid", "a prefix", "a suffix", "the batch", "rows"],
)
def test_unify_refuses_tokens_beside_anything_but_the_same_tokens(other: Axis) -> None:
    assert unify([(token(GRID),), other]) is None
    assert unify([other, plain(15), (token(GRID),)]) is None


def test_unify_lines_windows_up_with_the_tokens_they_are_put_together_to() -> None:
    """Parts of rows and of columns, as many as tokens: what they are parts of was computed on the full grid."""
    windows = (Factor(Kind.HEIGHT, 3), *plain(2), Factor(Kind.WIDTH, 3), *plain(4))
    whole = (token((6, 12)),)
    assert unify([windows, whole]) == unify([whole, windows]) == unify([windows, plain(72), whole]) == whole
    assert unify([windows, windows]) == windows
    assert unify([(BATCH, *windows), whole]) is None


def test_unify_lines_batches_up_with_the_one_that_a_model_made_of_them() -> None:
    whole = (Factor(Kind.BATCH, 3 * BATCH.size),)
    for parts in ((BATCH, *plain(3)), (*plain(3), BATCH)):
        assert unify([parts, whole]) == unify([whole, parts]) == whole
    assert unify([(BATCH, *plain(2)), whole]) is None
    assert unify([(BATCH, *plain(3)), (*plain(3), BATCH)]) is None


def test_unify_of_broadcast_axes_alone_is_one() -> None:
    assert unify([plain(1), plain(1)]) == plain(1)
    assert unify([]) == plain(1)


# regroup


@given(labels)
def test_regroup_to_the_same_shape_changes_nothing(label: Label) -> None:
    kept, split = regroup(label, sizes(label))
    assert kept is not None
    assert not split
    assert [normal([f for f in a if f.size > 1]) for a in label] == list(kept)


@given(labels)
def test_regroup_merges_into_one_axis_without_a_split(label: Label) -> None:
    merged, split = regroup(label, [prod(sizes(label))])
    assert merged is not None
    assert not split
    assert sizes(merged) == (prod(sizes(label)),)


@given(labels, st.data())
def test_regroup_gives_the_shape_it_was_asked_for_or_nothing(label: Label, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.sampled_from([2, 3, 4, 5, 6, 15]), max_size=3))
    rest = prod(sizes(label))
    for cut in cuts:
        rest, left = divmod(rest, cut)
        assume(left == 0 and rest)
    out, split = regroup(label, [*cuts, rest])
    if out is None:
        assert split  # whoever reads only the second value must stay safe
    else:
        assert sizes(out) == (*cuts, rest)
        kinds = [f.kind for axis in label for f in axis]
        assert kinds.count(Kind.BATCH) == sum(f.kind is Kind.BATCH for axis in out for f in axis)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), tokens)
def test_regroup_undoes_itself(heads: int, d: int, e: int, factor: Factor) -> None:
    label: Label = ((BATCH,), plain(heads), (factor,), plain(d * e))
    shape = (BATCH.size * heads, factor.size, d, e)
    there, split = regroup(label, shape)
    assert there is not None
    assert not split
    assert token_axes(there) == (1,)
    back, split = regroup(there, sizes(label))
    assert (back, split) == (label, False)


def test_regroup_splits_tokens_without_prefix_into_rows_and_columns() -> None:
    label: Label = ((BATCH,), (token(GRID),), plain(4))
    out, split = regroup(label, (BATCH.size, 3, 5, 4))
    assert out == ((BATCH,), height(3), width(5), plain(4))
    assert split
    assert regroup(out, sizes(label)) == (label, False)


@pytest.mark.parametrize("shape", [(4, 4, 4), (2, 8, 4), (16, 2, 2)])
def test_regroup_that_cuts_tokens_with_a_prefix_says_so(shape: tuple[int, ...]) -> None:
    label: Label = ((token(GRID, before=1),), plain(4))
    out, split = regroup(label, shape)
    if shape[0] == 16:
        assert out == ((token(GRID, before=1),), plain(2), plain(2))
        assert not split
    else:
        assert out == tuple(plain(n) for n in shape)
        assert split


def test_regroup_refuses_to_cut_the_batch() -> None:
    assert regroup(((BATCH,), plain(4)), (BATCH.size * 2, 2)) == (((BATCH, Factor(Kind.PLAIN, 2)), plain(2)), False)
    assert regroup((plain(4), (BATCH,)), (2, 2 * BATCH.size)) == ((plain(2), (Factor(Kind.PLAIN, 2), BATCH)), False)
    fixed: Label = ((Factor(Kind.BATCH, 6),), plain(4))  # a batch that capture had to fix
    assert regroup(fixed, (2, 3, 4)) == (None, True)


def test_regroup_cuts_an_image_axis_into_patches_and_offsets() -> None:
    label: Label = (plain(3), height(8), width(12))
    out, split = regroup(label, (3, 2, 4, 3, 4))
    assert out == (plain(3), height(2), plain(4), width(3), plain(4))
    assert not split
    assert out is not None
    patches: Label = tuple(out[i] for i in (1, 3, 2, 4, 0))
    assert regroup(patches, (6, 48)) == (((token((2, 3)),), plain(48)), False)


@given(tokens, st.integers(1, 3), st.integers(1, 4))
def test_regroup_agrees_with_reshape(factor: Factor, heads: int, d: int) -> None:
    """Entries that hold their token's number: after the reshape they vary along the axis that regroup names, alone."""
    label: Label = (plain(heads), (factor,), plain(d))
    numbers = torch.arange(factor.size).reshape(1, -1, 1).expand(sizes(label))
    for shape in ((heads, factor.size * d), (heads * factor.size, d), (heads, factor.size, 1, d)):
        out, split = regroup(label, shape)
        assert out is not None
        assert not split
        (axis,) = token_axes(out)
        at = out[axis].index(factor)
        outer, inner = length(out[axis][:at]), length(out[axis][at + 1 :])
        along = numbers.reshape(shape).movedim(axis, 0).reshape(outer, factor.size, inner, -1)
        assert (along == torch.arange(factor.size).reshape(1, -1, 1, 1)).all()


# readers


def test_readers_of_labels() -> None:
    mixed: Axis = (BATCH, token(GRID, 1, 2))
    label: Label = (mixed, plain(4), height(3))
    assert token_axes(label) == (0,)
    assert token_factor(mixed) == token(GRID, 1, 2)
    assert token_factor(plain(4)) is None
    assert token(GRID, 1, 2).size == 18
    assert grids(label) == {GRID}
    assert sizes(label) == (BATCH.size * 18, 4, 3)
    assert is_plain(plain(4))
    assert not is_plain(mixed)
