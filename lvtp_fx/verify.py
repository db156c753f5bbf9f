"""`verify`: does the pruned graph compute what the dense model computes when told the same decisions?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from lvtp_fx import example_inputs as examples
from lvtp_fx.api import captured_of
from lvtp_fx.capture import Capture, plain_modes
from lvtp_fx.decisions import Decision, observe, original
from lvtp_fx.errors import Code, LvtpError
from lvtp_fx.oracle import Oracle, rows
from lvtp_fx.oracle_padding import Shown
from lvtp_fx.provenance import describe
from lvtp_fx.randomness import random_nodes
from lvtp_fx.record import StateRecord
from lvtp_fx.run_graph import run_flat

# Largest error relative to the largest entry. Gathered tensors go through other kernels and other orders of sums.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 3e-2, torch.bfloat16: 2e-1}


@dataclass(frozen=True)
class Verification:
    """Figures of a successful check.

    Attributes:
        max_error: largest absolute difference of the outputs, over their largest absolute entry.
        state_errors: the same for each state of the residual stream on its living tokens, by node.
        tolerance: what was allowed.
    """

    max_error: float
    state_errors: dict[str, float]
    tolerance: float


def verify(
    model: nn.Module | ExportedProgram | Capture, module: nn.Module, example_inputs: Any, *,
    tolerance: float | None = None,
) -> Verification:
    """Compare a transformed module with the dense oracle on the same decisions, state by state and at the outputs.

    Args:
        model: the model that was transformed. module: what `transform` made of it (or its compiled form: then the
            graph before compilation is checked).
        example_inputs: as in `transform`; any batch size.
        tolerance: largest relative error; by default that of the coarsest dtype that the model computes in (float32:
            2e-5).

    Raises:
        LvtpError: LVTP301 with the first place where they differ, or where the model draws random numbers; LVTP302
            where `module` is not from `model`, or has other weights by now; LVTP105 for inputs on which the dense model
            gives NaN.
    """
    graph_module, record = original(module)
    args, kwargs = examples.resolve(graph_module, example_inputs)
    captured = captured_of(model, (args, kwargs)).module
    _refuse_random(captured.graph)
    coarsest = _coarsest(captured.graph)

    def compare(where: str, got: torch.Tensor, want: torch.Tensor) -> float:
        by_dtype = coarsest if want.is_floating_point() else 0.0
        return _compare(where, got, want, by_dtype if tolerance is None else tolerance)

    with plain_modes(args, kwargs):  # the graphs hold the autocast of the model itself
        output, decided, values = observe(graph_module, example_inputs, [s.pruned_name for s in record.states])
        known = {node.name for node in captured.graph.nodes}
        if any(state.name not in known for state in record.states):
            raise LvtpError(
                Code.NOT_TRANSFORMED, where=type(model).__name__, expected="the model that was transformed",
                got="another graph", why="the oracle runs the original graph",
                hint="pass the same model and image size",
            )
        _refuse_other_weights(captured, graph_module)
        shown = None
        if record.hides:
            looking = Shown(captured, record.hides)
            run_flat(looking, captured, args, kwargs)
            shown = looking.shown
        oracle = Oracle(captured, record, decided, shown)
        expected = run_flat(oracle, captured, args, kwargs)
    _refuse_nan(expected)
    errors: dict[str, float] = {}
    for state in record.states:
        got = _living(values[state.pruned_name], state, None)
        want = _living(oracle.seen[state.name], state, decided)
        where = f"{state.path or 'the residual stream'} (node {state.name})"
        errors[state.name] = compare(where, got, want)
    worst = 0.0
    pairs = zip(pytree.tree_leaves(output), pytree.tree_leaves(expected), strict=True)
    for i, (got, want) in enumerate(pairs):
        if isinstance(want, torch.Tensor):
            worst = max(worst, compare(f"output {i}", got, want))
    return Verification(worst, errors, coarsest if tolerance is None else tolerance)


def _living(x: torch.Tensor, state: StateRecord, decided: list[Decision] | None) -> torch.Tensor:
    """A state as [B, L, C]; of the oracle's, only the tokens that live in the state's space."""
    moved = x.movedim((state.batch_dim, state.token_dim), (0, 1))
    if decided is None or not state.space:
        return moved
    kept = decided[state.space - 1].kept + state.before
    stop = moved.shape[1] - state.after
    body = rows(moved, kept)
    return torch.cat([moved[:, : state.before], body, moved[:, stop:]], dim=1)


def _compare(where: str, got: torch.Tensor, want: torch.Tensor, limit: float) -> float:
    if got.shape != want.shape:
        raise _mismatch(where, f"shape {tuple(want.shape)}", f"shape {tuple(got.shape)}")
    if got.dtype != want.dtype:
        raise _mismatch(where, str(want.dtype), str(got.dtype))
    if want.numel() == 0:
        return 0.0
    wide = torch.float64 if want.dtype == torch.float64 else torch.float32
    got, want = got.to(wide), want.to(wide)
    scale = float(want.masked_fill(want.isinf(), 0.0).abs().max()) or 1.0
    error = float((got - want).masked_fill(got == want, 0.0).abs().max()) / scale  # infinities that both have are equal
    if not error <= limit:  # a NaN is a mismatch too
        raise _mismatch(where, f"a relative error of at most {limit:g}", f"{error:g} (largest entry {scale:g})")
    return error


def _coarsest(graph: fx.Graph) -> float:
    """What is allowed of the coarsest dtype that something is computed in; part of a model may be under autocast."""
    found = [node.meta["val"].dtype for node in graph.nodes
             if node.op == "call_function" and isinstance(node.meta.get("val"), torch.Tensor)]
    return max((_TOLERANCE.get(dtype, 0.0) for dtype in found), default=0.0)


def _refuse_random(graph: fx.Graph) -> None:
    node = next(random_nodes(graph), None)
    if node is not None:
        raise LvtpError(
            Code.VERIFY_MISMATCH, where=describe(node), expected="a model that computes the same from the same inputs",
            got=f"{node.target}, which draws random numbers in eval mode, too",
            why="no two runs give the same, so there is nothing to compare",
            hint="F.dropout(x, p, self.training) in the model, then transform and verify again",
        )


def _refuse_other_weights(captured: fx.GraphModule, module: fx.GraphModule) -> None:
    """They are shared, unless one of the two was copied, or another model is given."""
    own = dict(module.named_parameters())
    for name, want in captured.named_parameters():
        got = own.get(name, want)
        if got is not want and got.dtype == want.dtype and got.device == want.device and not torch.equal(got, want):
            raise LvtpError(
                Code.NOT_TRANSFORMED, where=name, expected="a module with the weights of the model", got="other ones",
                why="the two would differ wherever they are used",
                hint="pass the model that was transformed; or load one state dict into both",
            )


def _refuse_nan(expected: Any) -> None:
    found = (x for x in pytree.tree_leaves(expected) if isinstance(x, torch.Tensor))
    if any(bool(x.isnan().any()) for x in found):
        raise LvtpError(
            Code.BAD_EXAMPLE, where="example_inputs", expected="inputs of which the model makes numbers",
            got="NaN in the dense model's output", why="NaN equals nothing, so there is nothing to compare",
            hint="look for NaN and infinities in the inputs and in the model's weights",
        )


def _mismatch(where: str, expected: str, got: str) -> LvtpError:
    return LvtpError(
        Code.VERIFY_MISMATCH, where=where, expected=expected, got=got,
        why="the pruned graph computes something else than the model does without the dropped tokens",
        hint="the same in float64 (model.double()): what is left there is no rounding. Then report it with "
        "lvtp_fx.explain(model, example_inputs); transform with sites further on, or flops_cut=0, "
        "to go on meanwhile",
    )
