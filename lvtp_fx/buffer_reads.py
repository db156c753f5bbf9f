"""Buffers whose values Python asks for while a model is traced: `if self.mask_probs[i] > 0:`.

A traced tensor has no values, and torch.export refuses such a line. What is computed of buffers alone is known, though.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

MOST_ELEMENTS = 4096  # of a buffer that is followed: switches and schedules are small, tables are not asked for values
PASSIVE = frozenset(("__get__", "size", "dim", "ndimension", "numel", "nelement", "stride", "__len__", "element_size",
                     "is_floating_point", "is_complex", "is_contiguous", "get_device", "__hash__"))
READS = frozenset(("__bool__", "__int__", "__float__", "__index__", "__contains__", "item", "tolist"))
FOLLOWED = frozenset((
    "__getitem__", "select", "unbind", "squeeze", "flatten", "reshape", "view", "clone", "detach", "to", "cpu",
    "float", "double", "int", "long", "bool", "__eq__", "eq", "ne", "lt", "le", "gt", "ge", "__invert__", "__and__",
    "__or__", "logical_not", "logical_and", "logical_or", "any", "all", "sum", "mean", "prod", "max", "min", "amax",
    "amin", "argmax", "argmin", "add", "sub", "__rsub__", "mul", "div", "__rdiv__", "__floordiv__", "remainder", "pow",
    "neg", "abs", "round", "sqrt", "exp", "log",
))


@dataclass(frozen=True)
class _Known:
    traced: torch.Tensor  # held, so that no other tensor gets its identity
    value: torch.Tensor
    buffers: frozenset[str]


class BufferReads(TorchFunctionMode):
    """Follows small buffers, and what is computed of them alone, with their values; gives these where Python asks.

    Attributes:
        read: names of the buffers that were asked for.
    """

    def __init__(self, model: nn.Module, untraced: Executor) -> None:
        super().__init__()
        self.read: set[str] = set()
        self._buffers = {name: buffer for name, buffer in model.named_buffers()
                         if buffer.numel() <= MOST_ELEMENTS and not buffer.is_meta}
        self._known: dict[int, _Known] = {}
        self._untraced = untraced

    def enter(self, model: nn.Module, *_: Any) -> None:
        """A forward pre-hook: while a model is traced, its buffers are others than those that hold the values."""
        self._known = {id(traced): _Known(traced, self._buffers[name], frozenset([name]))
                       for name, traced in model.named_buffers() if name in self._buffers}

    def leave(self, *_: Any) -> None:
        """A forward hook."""
        self._known = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if not self._known or name in PASSIVE:
            return func(*args, **kwargs)
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        buffers = frozenset[str]().union(*(self._known[id(x)].buffers for x in tensors if id(x) in self._known))
        if "out" in kwargs or (name not in READS and name not in FOLLOWED):
            # It may write: a buffer that is written into has other values from then on, and so have its views.
            if buffers:
                self._known = {i: known for i, known in self._known.items() if not known.buffers & buffers}
            return func(*args, **kwargs)
        if not tensors or not all(id(x) in self._known for x in tensors):
            return func(*args, **kwargs)
        value = self._untraced.submit(self._computed, func, args, kwargs).result()
        if name in READS:
            self.read |= buffers
            return value
        result = func(*args, **kwargs)
        for traced, found in zip(pytree.tree_leaves(result), pytree.tree_leaves(value), strict=True):
            if isinstance(traced, torch.Tensor):
                self._known[id(traced)] = _Known(traced, found, buffers)
        return result

    def _computed(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        args, kwargs = pytree.tree_map(
            lambda x: self._known[id(x)].value if isinstance(x, torch.Tensor) else x, (args, kwargs))
        with torch.no_grad():
            return func(*args, **kwargs)


@contextmanager
def reading_buffers(model: nn.Module) -> Iterator[BufferReads]:
    """While `model` runs, Python is told the values of its buffers."""
    untraced = ThreadPoolExecutor(1)  # modes are a thread's own: in another one tensors are computed, not traced
    reads = BufferReads(model, untraced)
    hooks = [model.register_forward_pre_hook(reads.enter, prepend=True), model.register_forward_hook(reads.leave)]
    try:
        with reads:
            yield reads
    finally:
        for hook in hooks:
            hook.remove()
        untraced.shutdown()
