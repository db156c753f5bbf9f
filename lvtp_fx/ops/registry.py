"""Registration of the dialect: `torch.ops.lvtp.*`, composite ops that compilers see through.

The bodies are CompositeImplicitAutograd: a printed graph shows one `lvtp.*` node, re-export keeps or inlines it,
and Inductor fuses what is inside.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

import torch

_LIBRARY = torch.library.Library("lvtp", "DEF")
_KEYS = torch._C.DispatchKey
_AUTOCAST = torch._C.DispatchKeySet(_KEYS.AutocastCPU) | torch._C.DispatchKeySet(_KEYS.AutocastCUDA)
_Body = TypeVar("_Body", bound=Callable[..., object])


def op(schema: str) -> Callable[[_Body], _Body]:
    """Register a function as the composite body of `lvtp::<schema>`.

    The body runs without autocast: what is compared is in float32 there, and decisions would be rounded.
    """

    def register(body: _Body) -> _Body:
        @wraps(body)
        def uncast(*args: object, **kwargs: object) -> object:
            with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
                return body(*args, **kwargs)

        _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(schema.split("(")[0], uncast, "CompositeImplicitAutograd")
        return body

    return register
