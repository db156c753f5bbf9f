"""One model through the pass: what was found, what was pruned, what was proved."""

from __future__ import annotations

import copy
import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import lvtp_fx
from lvtp_fx.batch_axis import batch_size, is_batched
from lvtp_fx.capture import capture
from lvtp_fx.decisions import decisions
from lvtp_fx.errors import Code, LvtpError
from lvtp_fx.models.random_weights import randomise
from lvtp_fx.passes.label_axes import rule_of

GROUPS = ("timm", "transformers", "other", "not_flat")  # coverage_GROUP.py each
TOLERANCE = 2e-5  # of an image alone against the same image in a batch: other kernels, other orders of sums
IN_DOUBLE = 2e-7  # against the oracle in float64, for models that have float32 parts all the same


@dataclass(frozen=True)
class Model:
    """A model to try.

    Attributes:
        name: unique within its group.
        make: builds it, with random weights.
        inputs: a batch of that many images and whatever else it is called with, as keyword inputs.
        flops_cut: what is asked for; None asks for keep_ratio=0.7 and takes what comes.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int], dict[str, Any]]
    flops_cut: float | None = 0.2


def pictures(
    size: int | tuple[int, int] = 128, name: str = "x", **more: Any
) -> Callable[[int], dict[str, Any]]:
    """Keyword inputs of a batch of different pictures, and `more`: values, or functions of the batch size and a
    generator."""
    rows, columns = (size, size) if isinstance(size, int) else size

    def inputs(batch: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(batch)
        given = {k: v(batch, generator) if callable(v) else v for k, v in more.items()}
        return {name: torch.randn(batch, 3, rows, columns, generator=generator), **given}

    return inputs


@dataclass
class Row:
    """What was measured of one model; None where it was not got that far.

    Attributes:
        attention: attention maps over the tokens that a dense run computes: square, softmax or fused, as the running
            model says, not the graph.
        blocks: attention blocks that the pass found. sites: blocks followed by a reduction.
        cut: share of the FLOPs saved. identity: with nothing to prune, equal bit for bit.
        error: largest relative error against the dense oracle. batch_error: of an image alone against the same
            image in a batch (beside another one, where the batch is fixed), or infinity where other tokens live on.
        graphs: how many graphs torch.compile(fullgraph=True) makes of batches of 2 and 3 (2 alone, where it is fixed).
        refusal: the error, if there was one. missed: attention that was not used, and why.
        rules: the axis rules that the analysis applied.
    """

    model: str
    parameters_m: float = 0.0
    attention: int | None = None
    captured: bool = False
    identity: bool | None = None
    blocks: int | None = None
    sites: int | None = None
    tokens: int | None = None
    cut: float | None = None
    error: float | None = None
    batch_error: float | None = None
    graphs: int | None = None
    seconds: float = 0.0
    refusal: str = ""
    missed: list[str] = field(default_factory=list)
    rules: list[str] = field(default_factory=list)

    @property
    def proved(self) -> bool:
        """Captured, pruned, and every law held."""
        return bool(self.captured and self.cut and self.identity and self.error is not None
                    and self.batch_error is not None and self.batch_error <= TOLERANCE and self.graphs == 1)


def models(group: str) -> list[Model]:
    """The models of a group; its library is imported only now."""
    found: list[Model] = importlib.import_module(f"coverage_{group}").models()
    return found


def check(model: Model) -> Row:
    """All of it. A refusal of ours ends up in the row; any other exception is a defect, and ends up there too."""
    row, start = Row(model.name), time.perf_counter()
    try:
        _check(model, row)
    except LvtpError as refusal:
        row.refusal = str(refusal)
    except Exception as error:
        row.refusal = f"DEFECT {type(error).__name__}: {error}"
    row.seconds = time.perf_counter() - start
    return row


def _check(model: Model, row: Row) -> None:
    module, inputs = randomise(model.make(), 0).eval(), model.inputs(2)
    row.parameters_m = sum(p.numel() for p in module.parameters()) / 1e6
    with torch.no_grad(), CountAttention() as count:
        dense = module(**inputs)
    row.attention = count.maps
    options: dict[str, Any] = {"keep_ratio": 0.7} if model.flops_cut is None else {"flops_cut": model.flops_cut}
    captured = capture(module, (), inputs)
    row.captured = True
    found = (rule_of(node.target) for node in captured.module.graph.nodes)
    row.rules = sorted({rule.__name__ for rule in found if rule is not None})
    same = lvtp_fx.transform(captured, flops_cut=0)
    with torch.no_grad():
        row.identity = error(same(**inputs), dense) == 0
    fast = lvtp_fx.transform(captured, **options)
    report = fast.report
    row.blocks, row.sites, row.cut = len(report.blocks), len(report.sites), report.flops_cut
    row.tokens, row.missed = report.grid[0] * report.grid[1], [u.reason for u in report.unmatched]
    try:
        row.error = lvtp_fx.verify(captured, fast, inputs).max_error
    except LvtpError as mismatch:
        if mismatch.code != Code.VERIFY_MISMATCH.number:
            raise
        row.error = _error_in_double(module, inputs, options)
    row.batch_error = _batch_error(fast, model, not captured.note)
    row.graphs = _graphs(fast, model, not captured.note)


def _error_in_double(module: nn.Module, inputs: dict[str, Any], options: dict[str, Any]) -> float:
    """Against the oracle in float64: what is gone there was rounding, which random weights can amplify; what is left is
    a mismatch."""
    def double(value: Any) -> Any:
        return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    wide, inputs = copy.deepcopy(module).double(), pytree.tree_map(double, inputs)
    captured = capture(wide, (), inputs)
    return lvtp_fx.verify(captured, lvtp_fx.transform(captured, **options), inputs, tolerance=IN_DOUBLE).max_error


def _batch_error(fast: nn.Module, model: Model, free: bool) -> float:
    """Each image of three alone; where the batch is fixed, the first of two beside another second one."""
    if not free:
        return _against(fast, model.inputs(2), _replaced(model.inputs(2)), 0)
    three = model.inputs(3)
    return largest([_against(fast, three, pytree.tree_map(lambda x, i=i: _one(x, i, 3), three), i) for i in range(3)])


def _against(fast: nn.Module, batch: dict[str, Any], other: dict[str, Any], image: int) -> float:
    """Largest error of an image's outputs between two batches, where it is number `image` and number 0; infinity
    where other tokens live on."""
    for a, b in zip(decisions(fast, batch), decisions(fast, other), strict=True):
        for got, want in ((a.kept, b.kept), (a.owner, b.owner)):
            mine = _of_image(got, image, batch_size((), batch)), _of_image(want, 0, batch_size((), other))
            if not any(torch.equal(x, y) for x, y in zip(*mine, strict=True)):
                return float("inf")
    with torch.no_grad():
        want, got = (
            pytree.tree_map(lambda x, at=at, inputs=inputs: _one(x, at, batch_size((), inputs)), fast(**inputs))
            for inputs, at in ((batch, image), (other, 0)))
    return error(got, want)


def _of_image(decided: torch.Tensor, image: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of an image, of which the model may make several: side by side (frames), or batch by batch (mirror
    images)."""
    return (decided.unflatten(0, (batch, -1))[image], decided.unflatten(0, (-1, batch))[:, image])


def _one(value: Any, image: int, batch: int) -> Any:
    """An image of a batch, as a batch of one; what has no batch axis stays."""
    return value[image : image + 1] if is_batched(value, batch) else value


def _replaced(inputs: dict[str, Any]) -> dict[str, Any]:
    """A batch of two pictures with another second picture."""
    def change(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.ndim != 4:
            return value
        return torch.cat([value[:1], value[1:].flip(-1) * 2])

    return pytree.tree_map(change, inputs)


def _graphs(fast: nn.Module, model: Model, free: bool) -> int:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(fast, fullgraph=True, backend=counter)
    with torch.no_grad():
        for batch in (2, 3) if free else (2,):
            inputs = model.inputs(batch)
            for value in pytree.tree_leaves(inputs):
                if free and is_batched(value, batch):
                    torch._dynamo.mark_dynamic(value, 0)
            compiled(**inputs)
    torch._dynamo.reset()
    return int(counter.frame_count)


def error(got: Any, want: Any) -> float:
    """Largest difference over the largest entry, over all tensors of two outputs; NaN where a difference is."""
    pairs = zip(pytree.tree_leaves(got), pytree.tree_leaves(want), strict=True)
    errors = [float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))
              for a, b in pairs if isinstance(b, torch.Tensor) and b.numel()]
    return largest(errors)


def largest(errors: Sequence[float]) -> float:
    """The largest, 0 of none; a NaN among them is not lost, as it is by `max`."""
    return float(torch.tensor([*errors, 0.0], dtype=torch.float64).max())


class CountAttention(TorchDispatchMode):
    """Counts attention maps as they are computed, fused or by a softmax: square, over more than 16 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = str(func)
        if "scaled_dot_product" in name:
            rows, columns = args[0].shape[-2], args[1].shape[-2]
        elif "softmax" in name and out.ndim > 2:
            rows, columns = out.shape[-2:]
        else:
            return out
        self.maps += rows == columns > 16
        return out
