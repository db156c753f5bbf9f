"""Functions of a copied model that still lead to the original: `copy.deepcopy` takes functions as they are."""

from __future__ import annotations

import copy
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn


def rebind_functions(module: nn.Module, memo: dict[int, Any]) -> None:
    """Let hooks and wrapped methods of a copy close over the copy: `old = m.forward; m.forward = lambda x: old(x) * 2`.

    Args:
        module: of the copy. memo: what `copy.deepcopy` filled: ids of originals to their copies.
    """
    for name, value in list(vars(module).items()):
        if isinstance(value, (FunctionType, partial)):
            vars(module)[name] = _rebound(value, memo)
        elif isinstance(value, dict) and name.endswith("hooks"):
            value.update({key: _rebound(hook, memo) for key, hook in value.items()})


def _rebound(value: Any, memo: dict[int, Any]) -> Any:
    """The value, with the copy in the place of what was copied."""
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, MethodType):
        return MethodType(value.__func__, _rebound(value.__self__, memo))
    if isinstance(value, partial):
        return partial(_rebound(value.func, memo), *(_rebound(arg, memo) for arg in value.args),
                       **{key: _rebound(arg, memo) for key, arg in value.keywords.items()})
    if isinstance(value, FunctionType):
        return _function(value, memo)
    if isinstance(value, (type, ModuleType, nn.Module, torch.Tensor)) or not hasattr(value, "__dict__"):
        return value
    try:  # an object that a hook writes into
        return copy.deepcopy(value, memo)
    except Exception:  # what cannot be copied (a lock, a file) is shared
        return value


def _function(function: FunctionType, memo: dict[int, Any]) -> FunctionType:
    cells = tuple(CellType() for _ in function.__closure__ or ())
    defaults = function.__defaults__ and tuple(_rebound(value, memo) for value in function.__defaults__)
    if not cells and all(a is b for a, b in zip(defaults or (), function.__defaults__ or (), strict=True)):
        return function  # it leads nowhere, and may be told by its identity (`self.act is F.relu`)
    made = FunctionType(function.__code__, function.__globals__, function.__name__, defaults, cells)
    made.__kwdefaults__ = function.__kwdefaults__
    vars(made).update(vars(function))
    memo[id(function)] = made  # before its cells are filled: a function may close over itself
    for cell, old in zip(cells, function.__closure__ or (), strict=True):
        try:
            content = old.cell_contents
        except ValueError:  # not filled yet
            continue
        cell.cell_contents = _rebound(content, memo)
    return made
