"""What happens to the scores between `q @ k^T` and the softmax: scales, masks, views."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import fx

from lvtp_fx.passes.attention_forms import Operand, product_of
from lvtp_fx.passes.axes.flow import argument

aten = torch.ops.aten

# They change no value in eval mode.
TRANSPARENT = (aten.to.dtype, aten._to_copy.default, aten.clone.default,
               aten.contiguous.default, aten.dropout.default, aten.alias.default, aten.detach.default)
VIEWS = (aten.reshape.default, aten.view.default, aten._unsafe_view.default)
_SCALES = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar)
_DIVISIONS = (aten.div.Tensor, aten.div.Scalar)
_SUMS = (aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar)
_WHERES = (aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf)
_FILLS = (aten.masked_fill.Scalar, aten.masked_fill.Tensor, *_WHERES)


@dataclass(frozen=True)
class Step:
    """One op on the scores, as it acts on the mask: `node` is the op, `operand` its other operand.

    Attributes:
        number: factor of `operand` (add), the factor itself (scale), or what is filled in (fill).
        keeps: fill: whether the entries where `operand` is true are those that stay.
    """

    kind: Literal["add", "scale", "divide", "fill", "view"]
    node: fx.Node
    operand: fx.Node | None = None
    number: float = 1.0
    keeps: bool = False


@dataclass(frozen=True)
class Scores:
    """What the input of a softmax is made of.

    Attributes:
        q: [..., M, K]. k_t: [..., K, N]. shape: of their product.
        scale: product of the numbers the scores are scaled with; factors by tensors are among the steps.
        steps: in order, the first one next to the product. viewed: whether a reshape is among them.
        floor: the highest score that a fill leaves.
    """

    q: Operand
    k_t: Operand
    shape: tuple[Any, ...]
    scale: float = 1.0
    steps: tuple[Step, ...] = ()
    floor: float = -inf

    @property
    def viewed(self) -> bool:
        return any(s.kind == "view" for s in self.steps)


def find_scores(node: fx.Node) -> Scores | str:
    """Walk up from the softmax to `q @ k^T`, collecting what happens on the way; a string says why that failed."""
    product = product_of(node)
    if product is not None:
        if product.order:
            return "the rows of the scores are not their axis before the last"
        steps: tuple[Step, ...] = ()
        if product.added is not None and product.beta:
            steps = (Step("add", node, product.added, product.beta),)
        return Scores(product.left, product.right, tuple(node.meta["val"].shape), product.alpha, steps)
    first = node.args[0] if node.args else None
    if is_transparent(node) and isinstance(first, fx.Node):
        return _same_shape(find_scores(first), first, node)
    if node.target in VIEWS and isinstance(first, fx.Node):
        found = find_scores(first)
        return found if isinstance(found, str) else replace(found, steps=(*found.steps, Step("view", node)))
    if node.target in _SCALES:
        return _scaled(node)
    if node.target in _SUMS:
        return _added(node)
    if node.target in _FILLS:
        return _filled(node)
    source = {"get_attr": "a parameter", "placeholder": "an input"}.get(node.op, str(node.target))
    return f"the scores come from {source}, not from a product of queries and keys"


def is_transparent(node: fx.Node) -> bool:
    """Whether a node hands its first operand's entries on as they are, but for rounding."""
    if node.target is aten.dropout.default:
        return argument(node, 2, "train") is False
    return node.target in TRANSPARENT and bool(node.meta["val"].is_floating_point())


def _same_shape(found: Scores | str, inner: fx.Node, node: fx.Node) -> Scores | str:
    if isinstance(found, str) or same(inner.meta["val"].shape, node.meta["val"].shape):
        return found
    return f"{node.target} broadcasts the scores"


def same(a: Any, b: Any) -> bool:
    """Whether two shapes or sizes are known to be equal (symbolic ones by their expression, without a guard)."""
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return str(a) == str(b)


def _added(node: fx.Node) -> Scores | str:
    a, b = node.args[:2]
    alpha: Any = argument(node, 2, "alpha", 1)
    minus = node.target in (aten.sub.Tensor, aten.sub.Scalar)
    reasons = []
    for inner, other, allowed in ((a, b, True), (b, a, not minus and alpha == 1)):
        if not allowed or not isinstance(inner, fx.Node):
            continue
        found = _same_shape(find_scores(inner), inner, node)
        if isinstance(found, str):
            reasons.append(found)
        elif not isinstance(other, fx.Node) or _constant_along_rows(other, found):
            return found  # softmax(s + c) = softmax(s)
        else:
            step = Step("add", node, other, float(-alpha if minus else alpha))
            return replace(found, steps=(*found.steps, step))
    return reasons[0]


def _constant_along_rows(other: fx.Node, scores: Scores) -> bool:
    value = other.meta["val"]
    if not isinstance(value, torch.Tensor):
        return True
    return not scores.viewed and (value.ndim == 0 or same(value.shape[-1], 1))


def _scaled(node: fx.Node) -> Scores | str:
    inner, factor = node.args[:2]
    divide = node.target in _DIVISIONS
    assert isinstance(inner, fx.Node)
    found = find_scores(inner)
    if isinstance(found, str) and isinstance(factor, fx.Node) and not divide:
        reason, found = found, find_scores(factor)
        inner, factor = factor, inner
        if isinstance(found, str):
            return reason
    found = _same_shape(found, inner, node)
    if isinstance(found, str):
        return found
    if isinstance(factor, fx.Node):
        return _scaled_by_tensor(node, factor, found, divide)
    number = 1 / float(factor) if divide else float(factor)  # type: ignore[arg-type]
    if not number > 0:
        return "the scores are scaled with a number that is not positive"
    step = Step("scale", node, None, number)
    return replace(found, scale=found.scale * number, steps=(*found.steps, step), floor=found.floor * number)


def _scaled_by_tensor(node: fx.Node, factor: fx.Node, found: Scores, divide: bool) -> Scores | str:
    value = factor.meta["val"]
    if not isinstance(value, torch.Tensor):
        return "the scores are scaled with a number that depends on the input's shape"
    if any(not same(size, 1) for size in value.shape[-2:]):
        return "the scores are scaled token by token"
    if found.viewed and value.ndim > 0:
        return "the scores are scaled head by head after a reshape"
    if any(s.kind == "fill" for s in found.steps):
        return "the scores are scaled with a tensor after masked ones were filled in"
    return replace(found, steps=(*found.steps, Step("divide" if divide else "scale", node, factor)))


def _filled(node: fx.Node) -> Scores | str:
    """`masked_fill(scores, mask, v)`, `where(mask, scores, v)`, `where(mask, v, scores)`."""
    a, b, c = node.args[:3]
    options: tuple[tuple[Any, Any, Any, bool], ...] = ((a, b, c, False),)
    if node.target in _WHERES:
        options = ((b, a, c, True), (c, a, b, False))
    reasons = []
    for inner, mask, value, keeps in options:
        number = constant(value)
        if number is None or not isinstance(inner, fx.Node) or not isinstance(mask, fx.Node):
            continue
        found = _same_shape(find_scores(inner), inner, node)
        if isinstance(found, str):
            reasons.append(found)
            continue
        step = Step("fill", node, mask, number, keeps)
        return replace(found, steps=(*found.steps, step), floor=max(found.floor, number))
    return reasons[0] if reasons else "the scores are mixed with values that are no constant"


def constant(value: Any) -> float | None:
    """The number that an argument stands for: a number, or a tensor of one constant entry; None if it is neither."""
    if isinstance(value, (int, float)):
        return float(value)
    if not isinstance(value, fx.Node):
        return None
    if is_transparent(value):
        return constant(value.args[0])
    if value.target in (aten.full.default, aten.full_like.default):
        return constant(value.args[1])
    if value.target is aten.scalar_tensor.default:
        return constant(value.args[0])
    if value.op == "get_attr":
        tensor = attrgetter(str(value.target))(value.graph.owning_module)
        # A parameter may be trained on after this.
        fixed = isinstance(tensor, torch.Tensor) and not tensor.requires_grad and tensor.numel() == 1
        return float(tensor) if fixed and tensor.device.type != "meta" else None
    return None
