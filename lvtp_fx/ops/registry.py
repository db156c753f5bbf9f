"""Registration of the dialect: `torch.ops.lvtp.*`, composite ops that compilers see through.

The bodies are CompositeImplicitAutograd: a printed graph shows one `lvtp.*` node, re-export keeps or inlines it,
and Inductor fuses what is inside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

_LIBRARY = torch.library.Library("lvtp", "DEF")
_Body = TypeVar("_Body", bound=Callable[..., object])


def op(schema: str) -> Callable[[_Body], _Body]:
    """Register a function as the composite body of `lvtp::<schema>`."""

    def register(body: _Body) -> _Body:
        _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(schema.split("(")[0], body, "CompositeImplicitAutograd")
        return body

    return register
