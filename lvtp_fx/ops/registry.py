"""Registration of the dialect: `torch.ops.lvtp.*`, composite ops that compilers see through.

The bodies are CompositeImplicitAutograd: a printed graph shows one `lvtp.*` node, re-export keeps or inlines it,
and Inductor fuses what is inside.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib import resources
from importlib.metadata import version
from typing import TypeVar

import torch

from lvtp_fx.digest import digest_of

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


def edition() -> str:
    """A digest of this version and of the sources of the ops. A graph that names it (`lvtp.positions`) is another one
    where a body has changed: compilers keep what they made by the text of a graph, and do not look into its ops."""
    files = sorted(resources.files("lvtp_fx.ops").iterdir(), key=lambda file: file.name)
    sources = (file.read_text(encoding="utf-8") for file in files if file.name.endswith(".py"))
    return digest_of(version("lvtp_fx") + "".join(sources), ())[:16]
