"""What a result depends on, as a digest: a run that was stopped goes on only where nothing of it has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib.metadata import version
from operator import attrgetter
from typing import Any

import torch
from torch import fx


def digest(module: fx.GraphModule, device: torch.device | str, about: Any, tensors: Iterable[torch.Tensor] = ()) -> str:
    """Of a graph, its weights, the device's type, the number of threads, versions, and what else is given.

    Args:
        about: its `repr` counts.
    """
    weights = [value for node in module.graph.find_nodes(op="get_attr")
               if isinstance(value := attrgetter(str(node.target))(module), torch.Tensor)]
    text = repr((version("lvtp_fx"), torch.__version__, torch.device(device).type, torch.get_num_threads(), about))
    return digest_of(text + module.code, [*tensors, *weights])


def digest_of(text: str, tensors: Iterable[torch.Tensor]) -> str:
    """Of a text, and the types, shapes and bytes of tensors."""
    made = hashlib.sha256(text.encode())
    for tensor in tensors:
        made.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        made.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return made.hexdigest()
