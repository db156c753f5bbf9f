"""Entropy against the full attention map in float64, edges against a convolution, and the fixed rankings."""

from __future__ import annotations

from math import log

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

import lvtp_fx.ops  # noqa: F401  (registers the dialect)
from tests.draws import integers, normal, seeds, subsets

lvtp = torch.ops.lvtp
few = settings(max_examples=25, deadline=None)


def tsallis(p: torch.Tensor, order: float) -> torch.Tensor:
    """The literal definition over the last axis; Shannon at order 1."""
    if order == 1:
        return -torch.special.xlogy(p, p).sum(-1)
    return (1 - (p**order).sum(-1)) / (order - 1)


def standard(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True, correction=0)


def scores_by_loop(
    q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None, scale: float | None, before: int, after: int,
    orders: list[float], every: int,
) -> torch.Tensor:
    """Entropy of each token from the attention map [L, L] of each image and head, in float64: [B, N]."""
    B, H, L, D = q.shape
    images = []
    for b in range(B):
        scales = []
        for order in orders:
            for h in range(H):
                scores = q[b, h].double() @ k[b, h].double().T * (D**-0.5 if scale is None else scale)
                if mask is not None:
                    scores = scores + mask.double().expand(B, H, L, L)[b, h]
                p = scores[:, ::every].softmax(-1)
                uniform = torch.full(p.shape[-1:], 1 / p.shape[-1], dtype=torch.float64)
                scales.append((tsallis(p, order) / tsallis(uniform, order))[before : L - after])
        spreads = [float(values.std(correction=0)) for values in scales]
        mixed = sum(values * s / sum(spreads) for values, s in zip(scales, spreads, strict=True))
        assert isinstance(mixed, torch.Tensor)
        images.append(standard(mixed))
    return torch.stack(images)


def check_entropy(*args: object) -> None:
    actual = lvtp.entropy(*args)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), scores_by_loop(*args), atol=2e-4, rtol=0)  # type: ignore[arg-type]


def heads(seed: int, B: int = 2, H: int = 2, L: int = 17, D: int = 4, width: float = 1.5) -> list[torch.Tensor]:
    """q and k whose scores have a standard deviation of width ** 2: from flat rows to all but one-hot ones."""
    return [width * normal(seed + i, B, H, L, D) for i in range(2)]


orders_ = st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0, 0.3, 1.7]), min_size=1, max_size=3, unique=True)


@few
@given(
    seed=seeds, orders=orders_, every=st.integers(1, 5), before=st.integers(0, 2), after=st.integers(0, 2),
    width=st.sampled_from([1.2, 1.5, 3.0]), scale=st.sampled_from([None, 0.7]), heads_=st.integers(1, 3),
)
def test_entropy_is_its_definition(
    seed: int, orders: list[float], every: int, before: int, after: int, width: float, scale: float | None,
    heads_: int,
) -> None:
    q, k = heads(seed, H=heads_, width=width)
    check_entropy(q, k, None, scale, before, after, orders, every)


MASKS = {"[L, L]": (17, 17), "[1, 1, 1, L]": (1, 1, 1, 17), "[B, 1, L, L]": (2, 1, 17, 17), "[L]": (17,),
         "[1, H, L, L]": (1, 2, 17, 17), "[B, H, L, 1]": (2, 2, 17, 1)}


@pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("every", [1, 3])
def test_entropy_looks_through_the_mask(shape: tuple[int, ...], every: int) -> None:
    q, k = heads(3)
    mask = 2 * normal(5, *shape)
    check_entropy(q, k, mask, None, 1, 1, [0.5, 1.0, 2.0], every)
    if shape[-1] > 1:  # the same amount on every key of a row changes no attention
        plain = lvtp.entropy(q, k, None, None, 1, 1, [0.5, 1.0, 2.0], every)
        assert not torch.allclose(lvtp.entropy(q, k, mask, None, 1, 1, [0.5, 1.0, 2.0], every), plain, atol=1e-2)


@few
@given(seed=seeds, every=st.integers(1, 3), orders=orders_)
def test_masked_keys_add_nothing(seed: int, every: int, orders: list[float]) -> None:
    q, k = heads(seed)
    hidden = integers(seed, 3, 17, 17) == 0
    hidden[:, :4:every] = False  # so that each row sees two keys
    mask = torch.zeros(17, 17).masked_fill(hidden, -torch.inf)
    check_entropy(q, k, mask, None, 1, 0, orders, every)
    actual = lvtp.entropy(q, k, ~hidden, None, 1, 0, orders, every)
    assert torch.equal(actual, lvtp.entropy(q, k, mask, None, 1, 0, orders, every))


def test_a_row_of_which_no_sampled_key_is_visible_counts_as_focused() -> None:
    """A narrow window: one row sees only key 1, which `every` = 2 leaves out. The others must keep their scores."""
    q, k = torch.zeros(1, 1, 6, 4), torch.zeros(1, 1, 6, 4)
    mask = torch.zeros(6, 6)
    mask[2, [0, 2, 3, 4, 5]] = -torch.inf
    row = lvtp.entropy(q, k, mask, None, 0, 0, [0.5, 1.0, 2.0], 2)[0]
    assert row.argmin() == 2
    torch.testing.assert_close(row, standard(torch.tensor([1.0, 1, 0, 1, 1, 1])), atol=1e-4, rtol=0)


@pytest.mark.parametrize("order", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("width", [1e2, 1e6])
def test_focused_rows_score_low_and_spread_rows_high(order: float, width: float) -> None:
    """One-hot rows have entropy 0 and uniform rows 1, whatever the order: -1 and 1 when standardised."""
    q = torch.cat([torch.eye(8)[:4] * width, torch.zeros(4, 8)])[None, None]
    k = torch.eye(8)[None, None]
    expected = torch.tensor([[-1.0] * 4 + [1.0] * 4])
    torch.testing.assert_close(lvtp.entropy(q, k, None, 1.0, 0, 0, [order], 1), expected, atol=1e-4, rtol=0)


def test_a_scale_that_separates_nothing_has_no_weight() -> None:
    q, k = heads(0, H=1)
    dead = torch.cat([q, torch.zeros_like(q)], 1), torch.cat([k, k], 1)  # head 1: uniform rows for every token
    alone = lvtp.entropy(q, k, None, None, 0, 0, [1.0, 2.0], 1)
    torch.testing.assert_close(lvtp.entropy(*dead, None, None, 0, 0, [1.0, 2.0], 1), alone, atol=1e-4, rtol=0)


def test_equal_rows_score_zero() -> None:
    q, k = torch.ones(2, 2, 9, 4), normal(0, 2, 2, 9, 4, dtype=torch.float32)
    assert lvtp.entropy(q, k, None, None, 0, 0, [0.5, 1.0, 2.0], 1).abs().max() < 0.2  # rounding, divided by 1e-6
    assert lvtp.entropy(q, k[:, :, :1], None, None, 0, 0, [0.5, 1.0, 2.0], 1).abs().max() == 0  # one key


def test_saturated_rows_are_finite() -> None:
    """All rows are one-hot to the last digit of float32: nothing to tell apart, and nothing undefined either."""
    q, k = heads(2, width=30.0)
    actual = lvtp.entropy(q, k, None, None, 0, 0, [0.5, 1.0, 2.0], 1)
    assert actual.isfinite().all()
    assert actual.abs().max() <= 17**0.5  # the most that one of 17 standardised values can be


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_entropy_of_half_types_is_float32(dtype: torch.dtype) -> None:
    q, k = (x.to(dtype) for x in heads(1))
    actual = lvtp.entropy(q, k, None, None, 0, 0, [1.0], 1)
    assert actual.dtype == torch.float32
    # Half types round the scores, not the sums: 2 ** -8 of a score of about 2.
    torch.testing.assert_close(actual.double(), scores_by_loop(q, k, None, None, 0, 0, [1.0], 1), atol=0.1, rtol=0)


def edges_by_convolution(image: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Sobel kernels over the mean of the channels, magnitudes averaged patch by patch, in float64."""
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float64)
    padded = F.pad(image.double().mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    gradient = F.conv2d(padded, torch.stack([sobel, sobel.T])[:, None])
    magnitude = gradient.square().sum(1).sqrt()
    height, width = magnitude.shape[1] // rows, magnitude.shape[2] // columns
    patches = [magnitude[:, r * height : (r + 1) * height, c * width : (c + 1) * width].mean((1, 2))
               for r in range(rows) for c in range(columns)]
    return standard(torch.stack(patches, 1))


@few
@given(seed=seeds, rows=st.integers(1, 4), columns=st.integers(3, 5), patch=st.integers(1, 4),
       channels=st.integers(1, 4), level=st.sampled_from([1.0, 255.0]))
def test_edges_are_a_sobel_convolution(
    seed: int, rows: int, columns: int, patch: int, channels: int, level: float
) -> None:
    image = level * normal(seed, 2, channels, rows * patch, columns * (patch + 1))
    actual = lvtp.edges(image, rows, columns)
    assert actual.shape == (2, rows * columns)
    # The op adds 1e-6 under the root; where all patches are alike, standardising makes that large.
    torch.testing.assert_close(actual.double(), edges_by_convolution(image, rows, columns), atol=1e-3, rtol=1e-3)


def test_edges_of_a_flat_image_are_zero_and_of_a_step_are_where_it_is() -> None:
    image = torch.full((1, 3, 12, 16), 0.7)
    assert lvtp.edges(image, 3, 4).abs().max() < 1e-3
    image[..., 8:] = -1.0
    step = lvtp.edges(image, 3, 4).reshape(3, 4)
    assert (step[:, 1:3] > 0).all()
    assert (step[:, [0, 3]] < 0).all()


def test_blend_is_a_weighted_sum() -> None:
    a, b = normal(0, 2, 5), normal(1, 2, 5)
    assert torch.equal(lvtp.blend(a, b, -2.0, 0.5), -2.0 * a + 0.5 * b)


@few
@given(seed=st.integers(0, 5000), N=st.integers(1, 4096))
@example(seed=0, N=4096)
def test_hashed_is_in_range_and_fixed(seed: int, N: int) -> None:
    value = lvtp.hashed(torch.arange(N)[None], seed)
    assert value.dtype == torch.float32
    assert value.min() >= 0
    assert value.max() < 1
    assert torch.equal(value, lvtp.hashed(torch.arange(N)[None], seed))


def test_hashed_belongs_to_the_place_and_the_seed() -> None:
    position = subsets(0, 2, 100, 30)
    everywhere = lvtp.hashed(torch.arange(100).expand(2, 100), 7)
    assert torch.equal(lvtp.hashed(position, 7), everywhere.gather(1, position))
    assert (lvtp.hashed(position, 7) != lvtp.hashed(position, 8)).float().mean() > 0.9


@pytest.mark.parametrize("seed", [0, 1, 98, 400])
def test_hashed_is_uniform_and_no_line_of_the_grid_is_alike(seed: int) -> None:
    value = lvtp.hashed(torch.arange(4096)[None], seed)[0].double()
    counts = torch.histc(value, bins=16, min=0, max=1)
    chi_squared = float(((counts - 256) ** 2 / 256).sum())
    assert chi_squared < 50  # 15 degrees of freedom: exceeded by chance once in 100,000
    for shift in (1, 64):  # the next column and the next row
        correlation = torch.corrcoef(torch.stack([value[:-shift], value[shift:]]))[0, 1]
        assert abs(float(correlation)) < 0.08  # 5 standard deviations


@few
@given(rows=st.integers(1, 40), columns=st.integers(1, 40), seed=seeds)
def test_spread_is_in_range_and_belongs_to_the_place(rows: int, columns: int, seed: int) -> None:
    everywhere = lvtp.spread(torch.arange(rows * columns)[None], columns)
    assert everywhere.dtype == torch.float32
    assert everywhere.min() >= 0
    assert everywhere.max() < 1
    position = subsets(seed, 1, rows * columns, (rows * columns + 1) // 2)
    assert torch.equal(lvtp.spread(position, columns), everywhere.gather(1, position))


def worst_window(value: torch.Tensor, share: float, side: int = 8) -> float:
    """Keep the best `share` of a square grid; how far the share kept in any side x side window is from it."""
    grid = round(value.numel() ** 0.5)
    kept = torch.zeros(grid * grid).index_fill(0, value.argsort(descending=True)[: round(share * grid * grid)], 1.0)
    windows = F.avg_pool2d(kept.reshape(1, 1, grid, grid), side, stride=1)
    return float((windows - share).abs().max())


@pytest.mark.parametrize("share", [0.2, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("grid", [16, 30])
def test_spread_is_even_at_every_share_and_hashed_is_not(share: float, grid: int) -> None:
    position = torch.arange(grid * grid)[None]
    even, random = (worst_window(value[0], share) for value in (lvtp.spread(position, grid), lvtp.hashed(position, 0)))
    assert even < 0.05  # 3 of the 64 tokens of a window
    assert random > 1.5 * even


def test_uniform_value_is_what_the_literal_formula_gives() -> None:
    """The reference itself, on a value known by hand."""
    row = torch.full((4,), 0.25, dtype=torch.float64)
    assert float(tsallis(row, 1)) == pytest.approx(log(4))
    assert float(tsallis(row, 2)) == pytest.approx(0.75)
    assert float(tsallis(row, 0.5)) == pytest.approx(2.0)
