"""`torch.compile(model, backend="lvtp_fx", options={"flops_cut": 0.35})`: the pass on what Dynamo traced."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch._dynamo import lookup_backend
from torch._guards import tracing

from lvtp_fx.api import transform
from lvtp_fx.capture import capture
from lvtp_fx.config import Config, resolve
from lvtp_fx.dynamo_graph import DynamoGraph
from lvtp_fx.dynamo_refusals import refuse_side_effects
from lvtp_fx.errors import Code, LvtpError

Compiled = Callable[..., Any]
_OWN = ("inner", "inner_options")


class NotPruned(UserWarning):
    """A graph was compiled as it is; the message has the code, the place and the reason."""


def lvtp_fx(
    graph: fx.GraphModule, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Compiled:
    """The Dynamo backend of that name: prune the graph as `transform` does, then hand it to another backend.

    A graph that cannot be pruned is handed on as it is, with one `NotPruned` warning.

    Args:
        graph: from Dynamo, parameters and buffers among its inputs. It is changed.
        example_inputs: as Dynamo gives them, real tensors and sizes.
        options: fields of `Config`; and `inner`, the backend that compiles the result, by name or as a function
            ("inductor"), with `inner_options` for it (of Inductor, as torch.compile's options are).
        mode: as of torch.compile, for Inductor.

    Raises:
        LvtpError: LVTP201 for an option or a mode that is none, or out of range. Dynamo reports it as the cause of its
            own BackendCompilerFailed.
    """
    logger = logging.getLogger(__name__)
    choice = _choose(dict(options or {}), mode)
    dynamo = DynamoGraph(graph, example_inputs)
    try:
        # Export would take Dynamo's context for its own, and tie the graph's sizes to what it finds.
        with tracing(None), torch.inference_mode(False):
            examples = dynamo.examples()
            captured = capture(dynamo.module(), examples, {})
            refuse_side_effects(captured.module)
            fast = transform(captured, config=choice.config)
    except Exception as error:  # nor is a defect of this package a reason to stop the user's program
        reason = str(error) if isinstance(error, LvtpError) else (
            f"{type(error).__name__}: {error}\n  this is a defect of lvtp_fx: report it with the traceback, which the "
            "logger lvtp_fx.backend shows at level DEBUG")
        logger.debug("not pruned", exc_info=error)
        text = f"lvtp_fx compiles a graph as it is, nothing is pruned:\n{reason}{_broken_off(graph)}"
        warnings.warn(text, NotPruned, stacklevel=2)
    else:
        dynamo.replace_by(fast, captured)
        logger.info("pruned\n%s", getattr(fast, "report", ""))
    compiled: Compiled = choice.compiler(graph, list(example_inputs), **choice.arguments)
    return compiled


def _broken_off(graph: fx.GraphModule) -> str:
    """A line on why the graph ends where it does, where it is only a piece of the model, or ""."""
    reason = getattr(graph, "compile_subgraph_reason", None)
    if reason is None or not reason.graph_break:
        return ""
    frame = reason.user_stack[-1] if reason.user_stack else None
    place = f" at {Path(frame.filename).name}:{frame.lineno}" if frame else ""
    cause = reason.reason.splitlines()[0]
    return (f"\n  note: this graph is a piece of the model, which Dynamo breaks{place}: {cause}; "
            "torch.compile(..., fullgraph=True) says more")


@dataclass(frozen=True)
class _Choice:
    """Options, taken apart: for the pass, and the backend that goes on with its arguments."""

    config: Config
    compiler: Compiled
    arguments: dict[str, Any]


def _choose(options: dict[str, Any], mode: str | None) -> _Choice:
    inner = options.pop("inner", "inductor")
    extra = options.pop("inner_options", None) or {}
    for name, value in options.items():
        if name not in {f.name for f in fields(Config)}:
            known = ", ".join((*_OWN, *sorted(f.name for f in fields(Config))))
            raise _bad(f"options[{name!r}]", f"one of {known}", value, "check the spelling")
    config = resolve(None, options)
    if not callable(inner) and (inner == "lvtp_fx" or not isinstance(inner, str)):
        raise _bad("options['inner']", "another backend, by name or as a function", inner, "inner='inductor'")
    if inner == "inductor":
        patches = {**_inductor_mode(mode), **extra}
        return _Choice(config, lookup_backend(inner), {"config_patches": patches} if patches else {})
    if mode is not None:
        raise _bad("mode", "no mode, since the inner backend is not Inductor", mode, "leave it out")
    return _Choice(config, lookup_backend(inner), {"options": extra} if extra else {})


def _inductor_mode(mode: str | None) -> dict[str, Any]:
    if mode is None:
        return {}
    modes = torch._inductor.list_mode_options()
    if mode not in modes:
        raise _bad("mode", f"one of {', '.join(modes)}", mode, "leave it out")
    return dict(modes[mode])


def _bad(where: str, expected: str, got: object, hint: str) -> LvtpError:
    return LvtpError(
        Code.CONFIG_OUT_OF_RANGE, where=where, expected=expected, got=repr(got),
        why="the graph would not be compiled as was asked for", hint=hint,
    )
