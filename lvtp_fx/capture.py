"""Capture: from a module to one functional graph of core ops, batch size left free.

Sources: `torch.export` (non-strict), `run_decompositions({})`, which makes in-place ops functional and keeps
`linear`, `layer_norm`, `softmax` and `scaled_dot_product_attention` as single nodes, or what is known to give the same
(`functional`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from threading import RLock
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram, ShapesCollection, export
from torch.utils import _pytree as pytree

from lvtp_fx.assigned import noting_assigned
from lvtp_fx.batch_axis import (
    BATCH_STAND_IN,
    at_least_two,
    batch_size,
    first_image,
    fixed_size,
    is_batched,
    normal,
)
from lvtp_fx.buffer_reads import reading_buffers
from lvtp_fx.capture_refusals import (
    cannot_capture,
    cannot_copy,
    check_devices,
    first_line,
    quiet_failure,
    refuse_failing,
    refuse_free_sizes,
)
from lvtp_fx.clean_graph import clean, quiet_copies
from lvtp_fx.functional import functional
from lvtp_fx.inlined_places import give_places, wrapped_places
from lvtp_fx.one_image import compared_alone
from lvtp_fx.twin import left_alone, twin
from lvtp_fx.unread import leave_out_constants, unread

aten = torch.ops.aten
TRACING = RLock()  # export and fake tensors change things of the whole process meanwhile: one thread at a time
_SPECIALISED = "tracing made it a number, as len(x) in forward does (x.shape[0] leaves it free)"
_UNBOUNDED = 1 << 31  # export writes no upper bound as a larger number than this, or as infinity


@dataclass(frozen=True)
class Capture:
    """The captured graph.

    Attributes:
        module: parameters are those of the user's model, shared.
        batch: what stands for the batch size in sizes (`BATCH_STAND_IN`, or the batch where it had to stay fixed).
        args, kwargs: the example inputs, at the batch size that was captured.
        note: why the batch size is fixed, or "".
        thawed: parameters that `torch.no_grad()` keeps from training in the model, and nothing does in the graph.
        read: buffers whose values Python asked for; what it then did is fixed in the graph.
        assigned: attributes of the model that forward assigns tensors to, which the graph does not, `self.last_map`.
        unread: the model's parameters and buffers that the graph does not read, by name.
        repeated: the example was one image, which was repeated.
        restless: forward computes something else from one call to the next, which the graph does not.
    """

    module: fx.GraphModule
    batch: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    note: str = ""
    thawed: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    assigned: tuple[str, ...] = ()
    unread: dict[str, torch.Tensor] = field(default_factory=dict)
    repeated: bool = False
    restless: bool = False

    @property
    def given(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The example inputs at the batch size that they were given in."""
        return first_image(self.args, self.kwargs) if self.repeated else (self.args, self.kwargs)


class Exported(NamedTuple):
    """A program, and `read` and `assigned` of `Capture`."""

    program: ExportedProgram
    read: tuple[str, ...] = ()
    assigned: tuple[str, ...] = ()


def capture(model: nn.Module | ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Capture:
    """Capture `model` in eval mode. The model itself is not touched: a twin that shares its parameters is traced.

    Raises:
        LvtpError: LVTP101 where the model cannot be copied or torch.export cannot capture it, LVTP104 for parameters
            on several devices, LVTP105 for inputs on which the model itself fails.
    """
    if isinstance(model, ExportedProgram):
        refuse_free_sizes(model)
        return _finish(Exported(model), args, kwargs, "", "the program was exported for it alone")
    check_devices(model)
    args, kwargs = normal(args, kwargs)
    batch = batch_size(args, kwargs)
    with TRACING, plain_modes(args, kwargs):
        wide = at_least_two(args, kwargs)
        copied = _twin(model)
        try:
            found = _exported(copied, *wide, dynamic=True)
            free = _finish(found, *wide, "")
        except Exception as error:
            note = f"the batch size is fixed, the model does not allow another: {first_line(error)}"
        else:
            note = _why_fixed(found.program, free, args, kwargs)
            alone = "" if note or free.note else compared_alone(
                partial(_twin, model), free.module, *first_image(args, kwargs))
            if alone == "other":
                note = _does_otherwise(batch, "several images" if batch == 1 else "one image alone")
            if not note:
                return replace(free, repeated=batch == 1, restless=alone == "restless")
        try:
            found = _exported(_twin(model), args, kwargs, dynamic=False)
        except Exception as error:
            refuse_failing(_twin(model), args, kwargs)
            raise cannot_capture(model, error) from error
        return _finish(found, args, kwargs, note)


def _twin(model: nn.Module) -> nn.Module:
    """For one run alone: export puts other dicts and lists in the place of those that its hooks write into."""
    try:
        return twin(model)
    except Exception as error:
        raise cannot_copy(model, error) from error


def _why_fixed(program: ExportedProgram, free: Capture, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Why the graph that was captured with a free batch is not for the user's own, or ""."""
    batch = batch_size(args, kwargs)
    if any(bounds.upper < _UNBOUNDED for bounds in program.range_constraints.values()):
        return _does_otherwise(batch, "more images")
    if free.note:  # where one image was captured as two, two is what the graph is for
        wanted = batch_size(free.args, free.kwargs) == batch
        return "" if wanted else f"the batch size is fixed at {batch}: {_SPECIALISED}"
    return ""


def _does_otherwise(batch: int, than: str) -> str:
    return f"the batch size is fixed at {batch}: the model does something else with {than}"


def exported(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, dynamic: bool) -> ExportedProgram:
    """Non-strict export; `dynamic`: the batch axis of every input that has one is free."""
    shapes = None
    if dynamic:
        batch, collection = batch_size(args, kwargs), ShapesCollection()
        for leaf in pytree.tree_leaves((args, kwargs)):
            if is_batched(leaf, batch):
                collection[leaf] = {0: Dim.AUTO}
        shapes = collection.dynamic_shapes(model, args, kwargs)
    return export(model, args, kwargs, strict=False, dynamic_shapes=shapes)


def _exported(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, dynamic: bool) -> Exported:
    """Of a twin."""
    with quiet_failure(), left_alone(model), reading_buffers(model) as reads, noting_assigned() as assigned:
        program = exported(model, args, kwargs, dynamic=dynamic)
    return Exported(program, tuple(sorted(reads.read)), tuple(assigned))


def _finish(
    found: Exported, args: tuple[Any, ...], kwargs: dict[str, Any], note: str, specialised: str = _SPECIALISED
) -> Capture:
    program = found.program
    places = wrapped_places(program)
    with quiet_copies():
        module = functional(program) or program.run_decompositions({}).module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    give_places(module.graph, places)
    values = [n.meta["val"] for n in module.graph.nodes if n.op == "placeholder" and "val" in n.meta]
    sizes = [value.shape[0] for value in values if isinstance(value, torch.Tensor) and value.ndim]
    known = [fixed_size(s) for s in sizes]
    symbolic = None in known
    fixed = next((s for s in known if s is not None), 1)
    if not symbolic and not note:
        note = f"the batch size is fixed at {fixed}: {specialised}"
    batch = BATCH_STAND_IN if symbolic else fixed
    cleaned, names = clean(module, batch), program.state_dict.keys()
    leave_out_constants(cleaned, names)
    return Capture(cleaned, batch, args, kwargs, note, _thawed(program),
                   found.read, found.assigned, unread(module, cleaned, names))


def _thawed(program: ExportedProgram) -> tuple[str, ...]:
    """Names of the parameters that are read under `torch.no_grad()` alone, and are to be trained for all else."""
    names = {n: program.graph_signature.inputs_to_parameters.get(n.name) for n in program.graph.nodes}
    return tuple(
        name for node, name in names.items()
        if name is not None and program.state_dict[name].requires_grad and node.users
        and all(user.target is torch.ops.higher_order.wrap_with_set_grad_enabled and user.args[0] is False
                for user in node.users)
    )


@contextmanager
def plain_modes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[None]:
    """Trace without autocast and without the fused encoder ops of nn.MultiheadAttention, which hide the attention."""
    devices = {t.device.type for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
    device = next((d for d in devices if torch.amp.is_autocast_available(d)), "cpu")  # "meta" has none
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
