"""A twin of the user's model to be traced, and what tracing must leave as it was."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import _lru_cache_wrapper, partial
from itertools import chain
from typing import Any

import torch
from torch import nn

from lvtp_fx.rebind import rebind_functions

_CONTAINERS = (dict, list, set)


def twin(model: nn.Module) -> nn.Module:
    """A structural copy in eval mode: tracing may set attributes on it.

    It shares every tensor with the model, also those in plain lists and dicts, and what hooks write into. Eval mode is
    set as a flag: a `train()` of the user's own may merge weights or freeze parameters, and those are the model's.
    """
    memo: dict[int, Any] = {id(t): t for t in chain(model.parameters(), model.buffers(), _loose_tensors(model))}
    memo |= {id(held): held for held in _held_by_hooks(model)}
    copied = copy.deepcopy(model, memo)
    for module in copied.modules():
        module.training = False
        rebind_functions(module, memo)
    return copied


@contextmanager
def left_alone(model: nn.Module) -> Iterator[None]:
    """Put back what hooks of the model, or of its twin, write into, and tables in and beside its classes, and empty the
    caches of functions there that were filled meanwhile: tracing leaves fake tensors in all of them."""
    held = [(container, copy.copy(container)) for container in (*_held_by_hooks(model), *_tables(model))]
    caches = [(cache, cache.cache_info().misses) for cache in _caches(model)]
    try:
        yield
    finally:
        for container, before in held:
            if [*map(id, _content(container))] != [*map(id, _content(before))]:
                container.clear()
                container.extend(before) if isinstance(container, list) else container.update(before)
        for cache, misses in caches:
            if cache.cache_info().misses > misses:
                cache.cache_clear()


def _loose_tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """Tensors that modules hold as plain attributes, or in lists, tuples and dicts of them."""
    own = ("_parameters", "_buffers", "_modules")
    waiting = [value for module in model.modules() for name, value in vars(module).items() if name not in own]
    seen = set[int]()
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple, dict)) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, dict) else value)


def _held_by_hooks(model: nn.Module) -> list[Any]:
    """Dicts, lists and sets that the functions of forward hooks close over, are given, or name as globals; not those of
    modules, of which the twin has its own."""
    found: dict[int, Any] = {}
    for module in model.modules():
        for hook in chain(module._forward_hooks.values(), module._forward_pre_hooks.values()):
            for value in _reach(hook):
                if isinstance(value, _CONTAINERS) and not any(isinstance(v, nn.Module) for v in _content(value)):
                    found[id(value)] = value
    return list(found.values())


def _content(container: Any) -> list[Any]:
    return [*container.keys(), *container.values()] if isinstance(container, dict) else [*container]


def _reach(function: Callable[..., Any]) -> Iterator[Any]:
    if isinstance(function, partial):
        yield from (*function.args, *function.keywords.values())
        function = function.func
    code = getattr(function, "__code__", None)
    if code is None or hasattr(function, "__self__"):  # a method's object is copied with the model
        return
    for cell in function.__closure__ or ():  # type: ignore[attr-defined]
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
    yield from (function.__globals__[name] for name in code.co_names if name in function.__globals__)  # type: ignore[attr-defined]


def _caches(model: nn.Module) -> list[_lru_cache_wrapper[Any]]:
    """Functions under `functools.cache` and `lru_cache` in the modules of the model's classes, and in these."""
    return [value for value in _beside(model) if isinstance(value, _lru_cache_wrapper)]


def _tables(model: nn.Module) -> list[Any]:
    """Dicts, lists and sets there."""
    return [value for value in _beside(model) if type(value) in _CONTAINERS]


def _beside(model: nn.Module) -> list[Any]:
    """What stands in the model's classes and in the modules of these, under names that are not Python's own."""
    classes = {kind for module in model.modules() for kind in type(module).__mro__
               if kind.__module__.partition(".")[0] not in ("torch", "builtins")}
    spaces = [*map(vars, classes), *(vars(sys.modules[name]) for name in {kind.__module__ for kind in classes}
                                     if name in sys.modules)]
    found = {id(value): value for space in spaces for name, value in list(space.items()) if not name.startswith("__")}
    return list(found.values())
