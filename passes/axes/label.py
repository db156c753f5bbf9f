"""Labels of axes.

An axis is a product of *factors*, outermost first, so that merging and splitting axes (`flatten`, `view`) only
regroups factors: the axis B*H of a `bmm` attention is (BATCH, PLAIN), a flattened grid is one TOKEN factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from math import prod


class Kind(Enum):
    PLAIN = "plain"  # channels, heads, classes: anything the token spaces do not touch
    BATCH = "batch"
    HEIGHT = "height"  # rows of an image or of the token grid
    WIDTH = "width"
    TOKEN = "token"  # prefix tokens, then the grid row by row, then suffix tokens


@dataclass(frozen=True)
class Factor:
    """One factor of an axis: `size` on the full grid; a TOKEN factor has before + rows * columns + after entries."""

    kind: Kind
    size: int
    before: int = 0
    after: int = 0
    grid: tuple[int, int] = (0, 0)


Axis = tuple[Factor, ...]
Label = tuple[Axis, ...]


def plain(size: int) -> Axis:
    return (Factor(Kind.PLAIN, size),)


def token(grid: tuple[int, int], before: int = 0, after: int = 0) -> Factor:
    return Factor(Kind.TOKEN, before + grid[0] * grid[1] + after, before, after, grid)


def length(axis: Axis) -> int:
    return prod(f.size for f in axis)


def sizes(label: Label) -> tuple[int, ...]:
    return tuple(length(axis) for axis in label)


def token_factor(axis: Axis) -> Factor | None:
    return next((f for f in axis if f.kind is Kind.TOKEN), None)


def has_kind(axis: Axis, kind: Kind) -> bool:
    return any(f.kind is kind for f in axis)


def token_axes(label: Label) -> tuple[int, ...]:
    return tuple(i for i, axis in enumerate(label) if has_kind(axis, Kind.TOKEN))


def mixed(axes: Label) -> str:
    """What an op over these axes mixes, so that it needs the full grid: "the tokens" of an image, or "the batch",
    tokens of several images at one index, which is one place on the full grid and another one of each image elsewhere.
    """
    kinds = {f.kind for axis in axes for f in axis if f.size != 1}
    return "the tokens" if Kind.TOKEN in kinds else "the batch" if Kind.BATCH in kinds else ""


def grids(label: Label | tuple[Label, ...]) -> set[tuple[int, int]]:
    """The grids of the token axes of a label, or of those of several outputs."""
    if label and label[0] and isinstance(label[0][0], tuple):
        return {grid for piece in label for grid in grids(piece)}  # type: ignore[arg-type]
    return {f.grid for axis in label for f in axis if f.kind is Kind.TOKEN}  # type: ignore[union-attr]


def images(axis: Axis) -> Axis:
    """Axis 0 as an op over pictures reads it: one batch of images, also where the model made it of several axes (views,
    frames) or batches (an image and its mirror image)."""
    return (Factor(Kind.BATCH, length(axis)),) if has_kind(axis, Kind.BATCH) else axis


def is_plain(axis: Axis) -> bool:
    return all(f.kind is Kind.PLAIN for f in axis)


def normal(factors: Sequence[Factor]) -> Axis:
    """Canonical form: no factors of 1 beside others, plain neighbours merged, HEIGHT x WIDTH made a token axis."""
    out: list[Factor] = []
    for factor in factors:
        if factor.size == 1 and factor.kind is Kind.PLAIN:
            continue
        if out and out[-1].kind is Kind.PLAIN and factor.kind is Kind.PLAIN:
            out[-1] = Factor(Kind.PLAIN, out[-1].size * factor.size)
        elif out and out[-1].kind is Kind.HEIGHT and factor.kind is Kind.WIDTH:
            out[-1] = token((out[-1].size, factor.size))
        else:
            out.append(factor)
    return tuple(out) or plain(1)


def unify(axes: Sequence[Axis]) -> Axis | None:
    """The one label of axes that one op lines up, or None where two labels contradict each other.

    A plain axis of the same length takes the other's label: the op itself lines its entries up with the tokens
    (a position embedding, a RoPE table, a mask). So does one of parts (windows put together again) beside the whole:
    of an image beside the tokens, of rows beside the rows, of a batch beside the batch that a model made of them.
    """
    result: Axis | None = None
    one = plain(1)
    for axis in axes:
        if length(axis) == 1:  # broadcast
            one = axis if has_kind(axis, Kind.BATCH) else one  # a batch that capture fixed at one image
            continue
        if result is None or is_plain(result):
            result = axis
        elif not is_plain(axis) and axis != result:
            if _is_made_of(result, axis):
                result = axis
            elif not _is_made_of(axis, result):
                return None
    return one if result is None else result


def _is_made_of(axis: Axis, whole: Axis) -> bool:
    """Whether an axis holds the parts of what another one is."""
    kinds = {f.kind for f in axis} - {Kind.PLAIN}
    if len(whole) == 1 and whole[0].kind is Kind.BATCH:
        return kinds == {Kind.BATCH} and length(axis) == whole[0].size
    if has_kind(whole, Kind.TOKEN):
        return kinds == {Kind.HEIGHT, Kind.WIDTH}
    return len(whole) == 1 and whole[0].kind in (Kind.HEIGHT, Kind.WIDTH) and kinds == {whole[0].kind}


def regroup(label: Label, shape: Sequence[int]) -> tuple[Label | None, bool]:
    """Label of a reshape to `shape`, and whether a token axis was split (which needs the full grid).

    Returns (None, True) where the factors cannot be regrouped, e.g. when the batch axis is cut.
    """
    queue = [f for axis in label for f in axis if f.size != 1 or f.kind is Kind.BATCH]
    split = False
    out: list[Axis] = []
    for size in shape:
        factors: list[Factor] = []
        have = 1
        if size == 1 and queue and queue[0].size == 1:
            factors.append(queue.pop(0))  # a batch that capture fixed at one image
        while have < size:
            if not queue or size % have:
                return None, True
            factor, need = queue.pop(0), size // have
            if need % factor.size == 0:
                factors.append(factor)
                have *= factor.size
                continue
            pieces = _split(factor, need)
            if pieces is None:
                return None, True
            split = split or factor.kind is Kind.TOKEN
            queue[:0] = pieces
        out.append(normal(factors))
    return (tuple(out), split) if not queue else (None, True)


def _split(factor: Factor, need: int) -> list[Factor] | None:
    if factor.kind is Kind.TOKEN and not factor.before and not factor.after:
        return [Factor(Kind.HEIGHT, factor.grid[0]), Factor(Kind.WIDTH, factor.grid[1])]
    if factor.kind is Kind.BATCH or factor.size % need:
        return None
    # A cut image axis: the outer part counts patches, the inner part is the offset in the patch.
    outer = factor.kind if factor.kind in (Kind.HEIGHT, Kind.WIDTH) else Kind.PLAIN
    return [Factor(outer, need), Factor(Kind.PLAIN, factor.size // need)]
