"""Whether two functions compute the same, without computing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
Name = tuple[Any, ...]
_RESHAPES = frozenset({aten.view.default, aten._unsafe_view.default, aten._reshape_alias.default})
_MAY_CHANGE_NOTHING = frozenset({*_RESHAPES, aten.slice.Tensor, aten.alias.default, aten.detach.default})


class CannotTell(Exception):
    """An op that writes, or may."""


def same_values(one: Callable[..., Any], other: Callable[..., Any], args: Any, kwargs: Any) -> bool:
    """Whether two functions return the same on inputs of these shapes, whatever the values, as far as it shows in the
    ops that they call: each tensor is numbered by the op that made it, what that was given, and the numbers of the
    tensors among it, and the numbers of what is returned agree. Both are run on fake tensors.

    False says nothing: other ops may compute the same. Neither may draw random numbers, and what calls no op
    (`x.data = y`) is not seen.

    Raises:
        CannotTell: before an op that writes in place, or keeps statistics. Exception: whatever a function raises, as
            one that looks at values does.
    """
    numbers: dict[Name, int] = {}
    first, second = _Numbering(numbers), _Numbering(numbers)  # both live on, and the tensors that they hold
    return bool(first.returned(one, args, kwargs) == second.returned(other, args, kwargs))


class _Numbering(TorchDispatchMode):
    """Numbers the results of ops; `numbers`: those that were given so far, by the names of what they stand for."""

    def __init__(self, numbers: dict[Name, int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers = numbers
        self._of: dict[int, tuple[int, torch.Tensor]] = {}  # by id; a tensor that is held keeps its own

    def returned(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The name of what a function returns."""
        fakes = FakeTensorMode(allow_non_fake_inputs=True)
        args, kwargs = pytree.tree_map_only(torch.Tensor, fakes.from_tensor, (args, kwargs))
        self.give((args, kwargs), "input")
        with fakes, self, torch.no_grad():
            result = function(*args, **kwargs)
        return self.name(pytree.tree_leaves(result))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func._schema.is_mutable or "batch_norm" in func._opname:  # before it writes into what is no fake
            raise CannotTell(str(func))
        result = func(*args, **(kwargs or {}))
        if _changes_nothing(func, args, result):
            self._of[id(result)] = self._number(args[0]), result
        elif func in _RESHAPES:
            self.give(result, "reshape", self.name(args[0]), *result.shape)
        else:
            self.give(result, func, self.name(args), self.name(kwargs))
        return result

    def give(self, made: Any, *name: Any) -> None:
        """Number the tensors in `made` by its name."""
        for i, leaf in enumerate(pytree.tree_leaves(made)):
            if isinstance(leaf, torch.Tensor):
                self._of[id(leaf)] = self.numbers.setdefault((*name, i, leaf.dtype), len(self.numbers)), leaf

    def name(self, given: Any) -> Any:
        """Of arguments: tensors by their numbers, all else as it is; 1 and 1.0 are not the same, nor 0.0 and -0.0."""
        if isinstance(given, torch.Tensor):
            return "tensor", self._number(given)
        if isinstance(given, (list, tuple)):
            return tuple(map(self.name, given))
        if isinstance(given, dict):
            return tuple((key, self.name(value)) for key, value in given.items())
        return repr(given) if isinstance(given, (float, complex)) else given

    def _number(self, tensor: torch.Tensor) -> int:
        if id(tensor) not in self._of:  # a weight, which both functions read
            self._of[id(tensor)] = self.numbers.setdefault(("weight", id(tensor)), len(self.numbers)), tensor
        return self._of[id(tensor)][0]


def _changes_nothing(func: Any, args: tuple[Any, ...], result: Any) -> bool:
    if func is aten.add.Tensor and not isinstance(args[1], torch.Tensor) and args[1] == 0:
        return bool(result.dtype == args[0].dtype)
    return func in _MAY_CHANGE_NOTHING and result.shape == args[0].shape
