"""The state dict of a transformed module is the model's, also where its graph does not read all of it."""

from __future__ import annotations

from collections.abc import Container
from functools import partial
from typing import Any

import torch
from torch import fx, nn


class Saved:
    """Adds what the graph does not read to a state dict: a hook behind `state_dict`.

    Attributes:
        tensors: parameters and buffers of the model, by name: a mask token, say, or a head of training. They are no
            parameters of the graph's module: an optimizer has nothing to do with them, and `DistributedDataParallel`
            would wait for their gradients. But a checkpoint of the model has them, and one of the module has to.
    """

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors

    def __call__(self, module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        state.update({prefix + name: tensor.detach() for name, tensor in self.tensors.items()})


class Loaded:
    """Takes the same tensors from a state dict: a hook before `load_state_dict`.

    Attributes:
        tensors: as of `Saved`; their values are replaced.
    """

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors

    def __call__(
        self, state: dict[str, Any], prefix: str, metadata: Any, strict: bool, missing: list[str],
        unexpected: list[str], errors: list[str],
    ) -> None:
        for name, tensor in list(self.tensors.items()):
            value = state.pop(prefix + name, None)
            if value is None:
                missing.append(prefix + name)
            elif value.shape != tensor.shape:
                errors.append(f"size mismatch for {prefix + name}: the state dict has {tuple(value.shape)}, the model "
                              f"{tuple(tensor.shape)}.")
            elif metadata.get("assign_to_params_buffers"):
                self.tensors[name] = value
            else:
                with torch.no_grad():
                    tensor.copy_(value)


def unread(module: nn.Module, read: fx.GraphModule, names: Container[str]) -> dict[str, torch.Tensor]:
    """Those of `names`, in the module's state dict, that are no state of the graph module `read`, by name."""
    state: dict[str, torch.Tensor] = module.state_dict(keep_vars=True)
    known = read.state_dict().keys()
    return {name: tensor for name, tensor in state.items() if name in names and name not in known}


def leave_out_constants(module: fx.GraphModule, names: Container[str]) -> None:
    """Keep buffers of other names out of the state dict: tensors that a model holds as plain attributes, or makes on
    the way, are buffers of its graph."""
    for path, part in module.named_modules():
        for name in part._buffers:
            if (f"{path}.{name}" if path else name) not in names:
                part._non_persistent_buffers_set.add(name)


def carry(module: fx.GraphModule, tensors: dict[str, torch.Tensor], captured: fx.GraphModule) -> None:
    """Let the state dict of a module that was made of the captured one be that one's and `tensors`, when it is written
    and when it is read."""
    leave_out = partial(leave_out_constants, names=frozenset(captured.state_dict()))
    leave_out(module)
    module._register_deepcopy_hook(leave_out)  # under torch 2.11 all buffers of a deep copy are state
    if tensors:
        module.register_state_dict_post_hook(Saved(tensors))
        # Not the public name for it: that hook would hold the module, and a deep copy of one would copy the other.
        module._register_load_state_dict_pre_hook(Loaded(tensors))
