"""Matrix products in the forms people write them in: matmul, bmm, baddbmm, einsum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher

from lvtp_fx.passes.axes.contract import spell
from lvtp_fx.passes.axes.flow import argument
from lvtp_fx.passes.axes.shape import PERMUTATIONS, axis_order

aten = torch.ops.aten
_PLAIN = (aten.matmul.default, aten.bmm.default)


@dataclass(frozen=True)
class Operand:
    """A value, its axes taken in `order` (empty: as they are)."""

    node: fx.Node
    order: tuple[int, ...] = ()

    @property
    def value(self) -> torch.Tensor:
        value: torch.Tensor = self.node.meta["val"]
        return value.permute(self.order) if self.order else value

    def swapped(self) -> Operand:
        """With the last two axes swapped."""
        order = self.order or tuple(range(self.value.ndim))
        return Operand(self.node, (*order[:-2], order[-1], order[-2]))

    def emit(self, graph: fx.Graph) -> fx.Node:
        rank = len(self.order)
        if self.order == tuple(range(rank)):
            return self.node
        if self.order == _swapped(rank):
            return call(graph, aten.transpose.int, self.node, -2, -1)
        return call(graph, aten.permute.default, self.node, list(self.order))


@dataclass(frozen=True)
class Product:
    """`beta * added + alpha * left @ right`, its axes then taken in `order` (empty: as they are).

    Attributes:
        left: [..., M, K]. right: [..., K, N]. added: what baddbmm adds, or None.
    """

    left: Operand
    right: Operand
    order: tuple[int, ...] = ()
    added: fx.Node | None = None
    beta: float = 1.0
    alpha: float = 1.0


def product_of(node: fx.Node, left: fx.Node | None = None) -> Product | None:
    """The matrix product that a node computes, with `left` as its left factor if given; None where it is no
    product of two matrices (or two batches of them)."""
    product = None
    if node.target in _PLAIN:
        a, b = node.args[:2]
        assert isinstance(a, fx.Node) and isinstance(b, fx.Node)
        product = Product(Operand(a), Operand(b))
    elif node.target is aten.baddbmm.default:
        added, a, b = node.args[:3]
        assert isinstance(added, fx.Node) and isinstance(a, fx.Node) and isinstance(b, fx.Node)
        beta, alpha = node.kwargs.get("beta", 1), node.kwargs.get("alpha", 1)
        product = Product(Operand(a), Operand(b), (), added, float(beta), float(alpha))  # type: ignore[arg-type]
    elif node.target is aten.einsum.default:
        product = _einsum(node, left)
    if product is None or (left is not None and product.left != Operand(left)):
        return None
    return product if product.left.value.ndim > 1 and product.right.value.ndim > 1 else None


def turned_product(node: fx.Node, map_t: fx.Node) -> Product | None:
    """`v^T @ map^T`, as `map @ v` with the rows and columns of the result swapped."""
    product = product_of(node)
    if product is None or product.order or product.right != Operand(map_t):
        return None
    swap = _swapped(product.right.value.ndim)
    return Product(Operand(map_t).swapped(), product.left.swapped(), swap, product.added)


def swaps_last(node: fx.Node) -> bool:
    """Whether a node swaps the last two axes."""
    if node.target not in PERMUTATIONS:
        return False
    rank = node.meta["val"].ndim
    return tuple(axis_order(node, rank)) == _swapped(rank)


def _swapped(rank: int) -> tuple[int, ...]:
    return (*range(rank - 2), rank - 1, rank - 2)


def _einsum(node: fx.Node, left: fx.Node | None) -> Product | None:
    """Letters of both operands and of the result are a batch, one of the left alone the rows, one of the right alone
    the columns, and one is summed. Without `left`, the rows come before the columns in the result."""
    operands = list(argument(node, 1, "tensors"))
    spelt = spell(argument(node, 0, "equation"), [n.meta["val"].ndim for n in operands])
    if spelt is None or len(operands) != 2 or any(len(set(s)) < len(s) for s in spelt):
        return None
    (a, b, out), (x, y) = spelt, operands
    if left is y if left is not None else out[-1:] in a and out[-1:] not in b:
        a, b, x, y = b, a, y, x
    summed = [c for c in a if c not in out]
    batch = [c for c in out if c in a and c in b]
    rows, columns = [c for c in out if c not in b], [c for c in out if c not in a]
    if not len(rows) == len(columns) == len(summed) == 1 or {*summed} != {*b} - {*out}:
        return None
    canonical = [*batch, *rows, *columns]
    return Product(
        _operand(x, a, [*batch, *rows, *summed]), _operand(y, b, [*batch, *summed, *columns]),
        _order([canonical.index(c) for c in out]),
    )


def _operand(node: fx.Node, letters: str, wanted: list[str]) -> Operand:
    return Operand(node, _order([letters.index(c) for c in wanted]))


def _order(order: list[int]) -> tuple[int, ...]:
    return () if order == sorted(order) else tuple(order)


def call(graph: fx.Graph, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """Insert a call and infer its value from its operands' fake values."""
    node = graph.call_function(target, args, kwargs)
    node.meta["val"] = fake_value(target, args, kwargs)
    return node


def fake_value(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a call gives on the fake values of its operands."""
    fake_args, fake_kwargs = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
    # Else torch 2.11 reads the free batch size as a number, in the C++ of an op that is made of others, and fixes it.
    with enable_python_dispatcher():
        return target(*fake_args, **fake_kwargs)
