"""Write a transformed model to a file that runs without this package, at any batch size. Where that fails, what the
file held before stays.

An exported program (`torch.export.load`), an AOTInductor package (`aoti_load_package` and its C++ twin), or ONNX.
"""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram, default_decompositions
from torch.utils import _pytree as pytree

from lvtp_fx import example_inputs as examples
from lvtp_fx.batch_axis import at_least_two, fixed_size
from lvtp_fx.capture import TRACING, exported
from lvtp_fx.capture_refusals import first_line
from lvtp_fx.errors import Code, LvtpError, missing_library
from lvtp_fx.record import mark_inserted
from lvtp_fx.replacing import replacing

_NUMBERS = (int, float, bool, type(None))  # outputs that the files of torch.export hold beside tensors


def save_exported(fast: fx.GraphModule, inputs: Any, path: Path) -> None:
    """Write what `torch.export.load(path).module()` runs; the inserted ops are taken apart into core ops.

    Args:
        fast: what `lvtp_fx.transform` returned. inputs: as example_inputs of `lvtp_fx.transform`, at its image size and
            any batch size.

    Raises:
        LvtpError: LVTP401 for inputs that do not fit, LVTP501 where torch.export refuses the model.
    """
    _check_outputs(fast, path, "torch.export.load", _NUMBERS)
    program = _program(fast, inputs)
    mark_inserted(program.graph)
    # Export keeps composite ops whole, and a reader without this package has none of them.
    table = {op: body for op, body in default_decompositions().items() if str(op).startswith("lvtp.")}
    try:
        made = io.BytesIO()  # PyTorch's own writer ends the process where the disk is full
        torch.export.save(program.run_decompositions(table), made)
        with replacing(path) as draft:
            draft.write_bytes(made.getbuffer())
    except Exception as error:
        raise _cannot(path, "torch.export", error, "the model without what the message names") from error


def save_aoti(fast: fx.GraphModule, inputs: Any, path: Path) -> None:
    """Write what `torch._inductor.aoti_load_package(path)` runs: code compiled for the inputs' device, and weights.

    The package does not check its inputs' sizes, unless AOTI_RUNTIME_CHECK_INPUTS=1 is set where it runs.

    Args:
        fast, inputs: as of `save_exported`. path: ends with .pt2.

    Raises:
        LvtpError: LVTP401 for inputs that do not fit, LVTP501 where Inductor refuses the model or the path, or has no
            C++ compiler.
    """
    _check_outputs(fast, path, "AOTInductor", _NUMBERS)
    program = _program(fast, inputs)
    try:
        with replacing(path) as draft:
            torch._inductor.aoti_compile_and_package(program, package_path=str(draft))
    except Exception as error:
        hint = "save_exported; for a CPU, AOTInductor needs a C++ compiler" if path.suffix == ".pt2" else \
            "a path that ends with .pt2"
        raise _cannot(path, "AOTInductor", error, hint) from error


def save_onnx(fast: fx.GraphModule, inputs: Any, path: Path) -> None:
    """Write an ONNX model; weights beyond 2 GB go to a file beside it.

    Its inputs are called as in the model's forward, its output `output` (`output_0`, `output_1`, ... where
    there are several), its free axis `batch`.

    Args:
        fast, inputs: as of `save_exported`.

    Raises:
        LvtpError: LVTP401 for inputs that do not fit, LVTP501 where the exporter refuses the model, LVTP504 where it is
            not installed.
    """
    try:
        ops = importlib.import_module("onnxscript").opset18
    except ImportError as error:
        raise missing_library(ImportError("ONNX needs more libraries: pip install 'lvtp_fx[onnx]'")) from error
    _check_outputs(fast, path, "ONNX", (type(None),))
    program = _program(fast, inputs)
    table: dict[Any, Any] = {torch.ops.aten.sort.stable: _stable_sort(ops)}
    count = len(program.graph_signature.user_outputs)
    names = ["output"] if count == 1 else [f"output_{i}" for i in range(count)]
    try:
        # The exporter takes reshapes apart without gradients, then looks at the graph again with them: a mask that is
        # trained gets another attention kernel there, other strides, and what had become a view is none.
        with torch.no_grad():
            made = torch.onnx.export(
                program, dynamo=True, verbose=False, custom_translation_table=table, output_names=names)
        assert made is not None  # it is None for another exporter only
        first = [value.shape[0] for value in made.model.graph.inputs if value.shape]
        made.rename_axes({size: "batch" for size in first if not isinstance(size, int)})
        with replacing(path) as draft:
            made.save(str(draft))
    except Exception as error:
        cause = error.__cause__  # what happened: the exporter's own error is a list of the steps that it took
        raise _cannot(path, "torch.onnx", cause if isinstance(cause, Exception) else error,
                      "save_exported or save_aoti, which take every op") from error


def _check_outputs(fast: fx.GraphModule, path: Path, expected: str, takes: tuple[type, ...]) -> None:
    """Of what a format has no place for, torch writes files that it cannot read, or gives up without saying why."""
    for leaf in pytree.tree_leaves(fast.graph.output_node().args):
        if not isinstance(leaf, (fx.Node, *takes)):
            raise LvtpError(
                Code.CANNOT_SHIP, where=str(path), expected=f"a model whose outputs {expected} takes",
                got=f"{leaf!r} among the outputs", why="the file has no place for it",
                hint="a module around the model that returns tensors alone" + (
                    "; or save_exported" if isinstance(leaf, _NUMBERS) else ""),
            )


def _program(fast: fx.GraphModule, inputs: Any) -> ExportedProgram:
    args, kwargs = examples.resolve(fast, inputs)
    try:
        with TRACING, torch.inference_mode(False):
            return exported(fast, *_wide(fast, args, kwargs), dynamic=True)
    except LvtpError:
        raise  # an input that does not fit, by the graph's own check
    except Exception as error:
        hint = "check that fast(*inputs) runs"
        raise _cannot("the transformed module", "torch.export", error, hint) from error


def _wide(
    fast: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs with two images where there is one and the graph takes more: export makes a size of 1 a constant."""
    known = [n.meta["val"] for n in fast.graph.find_nodes(op="placeholder") if "val" in n.meta]
    free = not known or any(fixed_size(v.shape[0]) is None for v in known if isinstance(v, torch.Tensor) and v.ndim)
    return at_least_two(args, kwargs) if free else (args, kwargs)


def _stable_sort(ops: Any) -> Any:
    """aten.sort.stable, which torch.onnx does not know, as TopK: of equal entries the earlier one comes first there
    too, by ONNX's specification."""

    def sort_stable(self: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
        size = ops.Gather(ops.Shape(self), ops.Constant(value_ints=[dim]), axis=0)
        return ops.TopK(self, size, axis=dim, largest=int(descending), sorted=1)

    return sort_stable


def _cannot(where: object, expected: str, error: Exception, hint: str) -> LvtpError:
    return LvtpError(
        Code.CANNOT_SHIP, where=str(where), expected=f"a model that {expected} takes",
        got=f"{type(error).__name__}: {first_line(error)}", why="the file has to run without this package",
        hint="check that the folder exists and can be written to" if isinstance(error, OSError) else hint,
    )
