"""What a rule says of one op, and what it may ask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import fx

from lvtp_fx.passes.axes.label import Axis, Factor, Kind, Label, length, plain, unify


@dataclass(frozen=True)
class Flow:
    """How one op moves labels.

    Attributes:
        out: the label of its output, or one a piece for ops with several outputs.
        uses: the label each operand is read with; a table lined up with tokens is read as tokens.
        full: why the op needs the full grid, or "" where it works in every token space.
    """

    out: Label | tuple[Label, ...] | None
    uses: dict[fx.Node, Label] = field(default_factory=dict)
    full: str = ""


class Reader:
    """Reads the labels, sizes and arguments of a node's operands; symbolic sizes come as stand-in integers.

    Attributes:
        batch: the batch size, or what stands for it where it is `free`.
    """

    def __init__(self, labels: dict[fx.Node, Any], size_of: Callable[[Any], int], batch: int, free: bool) -> None:
        self.labels, self.size_of, self.batch, self.free = labels, size_of, batch, free

    def label(self, node: fx.Node) -> Label:
        return self.labels[node]  # type: ignore[no-any-return]

    def sizes(self, value: Any) -> tuple[int, ...]:
        return tuple(self.size_of(s) for s in value.shape)

    def out_sizes(self, node: fx.Node) -> tuple[int, ...]:
        return self.sizes(node.meta["val"])

    def unknown(self, value: Any) -> Any:
        """Label of a value nothing is known of: only the batch axis is seen, by its stand-in size. Where capture had
        to fix the batch, other axes may be as long by chance; then only the first axis is looked at."""
        if isinstance(value, torch.Tensor):
            return tuple(
                (Factor(Kind.BATCH, s),) if s == self.batch and (self.free or i == 0) else plain(s)
                for i, s in enumerate(self.sizes(value))
            )
        if isinstance(value, (tuple, list)):
            return tuple(self.unknown(v) for v in value)
        return None


Rule = Callable[[fx.Node, Reader], Flow]


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument given by position or by name."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def named(node: fx.Node, name: str, default: Any = None) -> Any:
    """An argument by its name in the op's schema, for ops that have it at different places."""
    assert isinstance(node.target, torch._ops.OpOverload)
    position = [a.name for a in node.target._schema.arguments].index(name)
    return argument(node, position, name, default)


def tensors(node: fx.Node) -> list[fx.Node]:
    """Operands that are tensors, in order, lists of tensors included."""
    return [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]


def align(labels: Sequence[Label], rank: int) -> list[Axis | None]:
    """Unify axes lined up from the right; None marks a contradiction."""
    columns: list[Axis | None] = []
    for axis in range(-rank, 0):
        columns.append(unify([label[axis] for label in labels if len(label) >= -axis]))
    return columns


def read_as(label: Label, columns: Sequence[Axis | None]) -> Label:
    """`label` with each axis that is not broadcast replaced by what the op lines it up with."""
    tail = columns[len(columns) - len(label) :] if label else []
    return tuple(
        axis if column is None or length(axis) == 1 else column
        for axis, column in zip(label, tail, strict=True)
    )


def reads(pairs: Iterable[tuple[fx.Node, Label]]) -> dict[fx.Node, Label] | None:
    """The label each operand is read with; None where one operand is read with two labels."""
    uses: dict[fx.Node, Label] = {}
    for node, label in pairs:
        if uses.setdefault(node, label) != label:
            return None
    return uses


def broadcast(reader: Reader, operands: Sequence[fx.Node], rank: int) -> Flow:
    """Operands lined up from the right, as pointwise ops and batch dimensions do."""
    labels = [reader.label(n) for n in operands]
    columns = align(labels, rank)
    out = tuple(plain(_extent(labels, i - rank)) if c is None else c for i, c in enumerate(columns))
    if any(c is None for c in columns):
        return Flow(out, {}, "operands line different axes up with the tokens")
    return Flow(out, {n: read_as(label, columns) for n, label in zip(operands, labels, strict=True)})


def _extent(labels: Sequence[Label], axis: int) -> int:
    return max(prod(f.size for f in label[axis]) for label in labels if len(label) >= -axis)
