"""Refusals of capture: where in the user's code it stopped, and how to go on."""

from __future__ import annotations

import copy
import io
import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from lvtp_fx.batch_axis import fixed_size
from lvtp_fx.errors import Code, LvtpError
from lvtp_fx.run_graph import cloned
from lvtp_fx.twin import left_alone

WITHOUT_FLEX = "write flex_attention as F.scaled_dot_product_attention with a mask, or pass the encoder alone"


def check_devices(model: nn.Module) -> None:
    places: dict[str, str] = {}
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        places.setdefault(str(tensor.device), name)
    if len(places) > 1:
        raise LvtpError(
            Code.MIXED_DEVICES, where=", ".join(places.values()), expected="all parameters and buffers on one device",
            got=", ".join(f"{name} on {device}" for device, name in places.items()),
            why="one graph runs on one device", hint="model.to(device) before lvtp_fx.transform",
        )


def refuse_free_sizes(program: ExportedProgram) -> None:
    """Refuse a program that was exported for images of any size.

    Raises:
        LvtpError: LVTP105, with the input and its axis.
    """
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op != "placeholder" or not isinstance(value, torch.Tensor):
            continue
        for axis, size in enumerate(value.shape):
            if axis and fixed_size(size) is None:
                raise LvtpError(
                    Code.BAD_EXAMPLE, where=f"input {node.name!r} of the exported program",
                    expected="a program of one image size, free in its batch alone", got=f"axis {axis} of size {size}",
                    why="how many tokens a site keeps is a number in the graph",
                    hint="torch.export.export(model, example_inputs) with a dynamic batch axis only; "
                    "lvtp_fx.BySize(model) for several sizes",
                )


def refuse_failing(copied: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Where capture failed: refuse inputs on which the model fails without it, too.

    Args:
        copied: a twin of the model.

    Raises:
        LvtpError: LVTP105, with the line of the model and the shapes.
    """
    try:
        own = copy.deepcopy(copied)  # it may write into its buffers, which are the user's
    except Exception:
        return
    try:
        with left_alone(copied), torch.no_grad(), torch.random.fork_rng(devices=[]):
            own(*cloned(args), **cloned(kwargs))
    except Exception as error:
        shapes = [f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
                  for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        raise LvtpError(
            Code.BAD_EXAMPLE, where=f"{type(copied).__name__}{user_line(error)}",
            expected="inputs that the model itself takes",
            got=f"{', '.join(shapes)}; it stops with {type(error).__name__}: {first_line(error)}",
            why="the graph is captured from a call of the model, which fails without lvtp_fx, too",
            hint="model(*example_inputs) has to run: look at shapes, dtypes and names of the inputs",
        ) from error


def cannot_copy(model: nn.Module, error: Exception) -> LvtpError:
    return LvtpError(
        Code.CAPTURE_FAILED, where=type(model).__name__, expected="a module that copy.deepcopy can copy",
        got=f"{type(error).__name__}: {first_line(error)}",
        why="a copy that shares the parameters is traced, so that the model itself is never changed",
        hint="remove hooks, locks, open files and tensors with a gradient history from the module's attributes, or "
        "pass torch.export.export(model.eval(), example_inputs)",
    )


def cannot_capture(model: nn.Module, error: Exception) -> LvtpError:
    why, hint = ("the pass rewrites a graph of the whole model",
                 "check that model(*example_inputs) runs; or pass the encoder alone")
    if "data-dependent" in str(error):
        why = "Python at that line asks for a tensor's value, which a graph does not have"
        hint = "put a Python number in the place of a buffer that the line reads (del model.x; model.x = 0.0), take " \
            "the branch out of forward, or pass the encoder alone"
    elif "PackedParams" in str(error):
        why, hint = "torch.export has no ops for packed quantised layers", "transform the float model, then quantise it"
    elif any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        why, hint = "a part of it is TorchScript's, which torch.export does not take", "the module that was scripted"
    elif "FlexAttention" in str(error):
        why, hint = "torch.export traces it as in training, which it does not support here", WITHOUT_FLEX
    elif "register a pytree" in str(error) or _met_unknown_class(error):
        why = "a graph returns tensors in tuples, lists, dicts and registered classes only"
        hint = "torch.export.register_dataclass(TheClass) for a dataclass, before lvtp_fx.transform"
    return LvtpError(
        Code.CAPTURE_FAILED, where=f"{type(model).__name__}{user_line(error)}",
        expected="a model that torch.export.export(model, example, strict=False) captures",
        got=f"{type(error).__name__}: {first_line(error)}", why=why, hint=hint,
    )


@contextmanager
def quiet_failure() -> Iterator[None]:
    """Where export fails it prints the graph so far and a remark, once an attempt: the refusal says what matters."""
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)  # with a buffer, as stderr has
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")

    def other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Unable to find user code")

    logger.addFilter(other)
    try:
        with redirect_stderr(printed):
            yield
    finally:
        logger.removeFilter(other)
    printed.seek(0)
    sys.stderr.write(printed.read())


def _met_unknown_class(error: BaseException) -> bool:
    """How torch 2.11 fails on an output of a class without a hash, such as a dataclass."""
    return any(frame.name == "is_opaque_type" for frame in traceback.extract_tb(error.__traceback__))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, which may be empty (a bare `assert`)."""
    return next(iter(str(error).strip().splitlines()), "no message").strip()


def user_line(error: BaseException) -> str:
    """The last line of code outside torch, this package and Python's own that an error came through, or ""."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_a_librarys(f.filename)]
    if not frames:
        return ""
    last = frames[-1]
    return f" ({Path(last.filename).name}:{last.lineno} in {last.name}: {last.line})"


def _is_a_librarys(file: str) -> bool:
    torchs, ours, pythons = (str(Path(module).parent) for module in (torch.__file__, __file__, traceback.__file__))
    return file.startswith((torchs, ours, "<")) or (file.startswith(pythons) and "-packages" not in file)
