"""A program that writes into nothing needs no second trace: what that would give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.export import Dim, ExportedProgram, export

from lvtp_fx.batch_axis import BATCH_STAND_IN
from lvtp_fx.capture import capture, exported, plain_modes
from lvtp_fx.clean_graph import clean, quiet_copies
from lvtp_fx.functional import functional
from tests.zoo import HEADS, ZOO

aten = torch.ops.aten
Function = Callable[[torch.Tensor], Any]
LEFT_OUT = ("clone", "_unsafe_view")  # how torch says that a reshape copies


class Calls(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


def program_of(model: nn.Module, x: torch.Tensor) -> ExportedProgram:
    with plain_modes((x,), {}):
        return exported(model, (x,), {}, dynamic=True)


def traced_again(program: ExportedProgram) -> fx.GraphModule:
    with quiet_copies():
        module = program.run_decompositions({}).module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    return module


def images(batch: int) -> torch.Tensor:
    return torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(batch))


def results(module: fx.GraphModule) -> list[tuple[str, Any, torch.dtype]]:
    """Op, shape and type of each tensor, but for copies, of the graph that the pass works on."""
    graph = clean(module, BATCH_STAND_IN).graph
    values = [(str(node.target), node.meta["val"]) for node in graph.nodes if node.op == "call_function"]
    return [(op, tuple(map(str, value.shape)), value.dtype) for op, value in values
            if isinstance(value, torch.Tensor) and not any(copy in op for copy in LEFT_OUT)]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ZOO)
def test_it_is_the_graph_of_the_second_trace(name: str, head: str) -> None:
    entry = ZOO[name]
    program = program_of(entry.build(head), entry.image())
    once, twice = functional(program), traced_again(program)
    assert once is not None
    assert results(once) == results(twice)
    x = entry.image(3)
    with torch.no_grad():
        assert torch.equal(clean(once, BATCH_STAND_IN)(x), clean(twice, BATCH_STAND_IN)(x))


WRITTEN_OUT: dict[str, Function] = {
    "reshape": lambda x: x.reshape(x.shape[0], 2, -1),
    "reshape of the batch": lambda x: x.reshape(-1, 8),
    "flatten": lambda x: x.flatten(2),
    "flatten of the batch": lambda x: x.flatten(0, 1),
    "unflatten": lambda x: x.unflatten(1, (2, -1)),
    "view_as": lambda x: x.flatten(2).view_as(x),
    "expand_as": lambda x: x[:, :1].expand_as(x),
    "dropout": lambda x: F.dropout(x, 0.5, False) + 1,
    "contiguous": lambda x: (x + 1).contiguous(),
    "contiguous, copied": lambda x: x.transpose(1, 2).contiguous(),
    "to the same type": lambda x: x.to(torch.float32) + 1,
    "to another type": lambda x: x.to(torch.float64),
    "double": lambda x: x.double(),
    "to the type of another": lambda x: x.to(x.double()),
    "to the same device": lambda x: x.to("cpu", torch.bfloat16),
    "chunk": lambda x: x.chunk(2, 1)[1],
    "chunk, uneven": lambda x: x.chunk(3, -1),
    "chunk, more than there are": lambda x: x.chunk(9, dim=1),
    "chunk of the batch": lambda x: torch.cat([x, 2 * x]).chunk(2)[1],
    "mT": lambda x: x.mT,
    "batch norm": lambda x: F.batch_norm(x, torch.arange(4.0), torch.arange(1.0, 5.0)),
    "ReLU in place": lambda x: F.relu(2 * x, inplace=True),
    "ReLU in place behind a batch norm": lambda x: F.relu_(F.batch_norm(x, torch.ones(4), torch.ones(4))),
    "sum in place": lambda x: (2 * x).add_(x, alpha=3),
    "product in place": lambda x: (2 * x).mul_(0.5),
    "integers in place": lambda x: (2 * x.long()).add_(1),
    "by a free size in place": lambda x: (2 * x).mul_(x.shape[0]),
    "twice in place": lambda x: F.relu_((2 * x).add_(x)),
}


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_an_op_that_stands_for_others_is_written_out(name: str) -> None:
    function = WRITTEN_OUT[name]
    program = program_of(Calls(function), images(2))
    once = functional(program)
    assert once is not None
    assert results(once) == results(traced_again(program))
    for batch in (2, 3):
        got, want = once(images(batch)), function(images(batch))
        for one, other in zip(*((r,) if isinstance(r, torch.Tensor) else r for r in (got, want)), strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)


def _view_written(x: torch.Tensor) -> torch.Tensor:
    y = 2 * x
    y[:, :1].relu_()
    return y


def _view_read(x: torch.Tensor) -> torch.Tensor:
    y = 2 * x
    before = y[:, 0]
    y.relu_()
    return before


def _unrecorded(x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        y = 2 * x
    return y + 1


def _often(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    for _ in range(1100):
        y.mul_(1.001)
    return y


LEFT_TO_TORCH: dict[str, Function] = {
    "into the input": lambda x: x.mul_(2),
    "into a view": _view_written,
    "into what a view reads": _view_read,
    "into another type": lambda x: (2 * x).add_(x.double()),
    "into what may be the input": lambda x: x.contiguous().relu_(),
    "into a view that says nothing": lambda x: torch.einsum("bchw->cbhw", x).relu_(),
    "of another type than the result": lambda x: (2 * x).gt_(0),
    "by a copy": lambda x: torch.empty_like(x).copy_(x),
    "without gradients": _unrecorded,
    "another memory format": lambda x: x.contiguous(memory_format=torch.channels_last),
    "a type in another memory format": lambda x: x.to(torch.double, memory_format=torch.channels_last),
    "pieces of nothing": lambda x: torch.cat([x, *x[:, :0].chunk(3, 1)], 1),
    "a copy": lambda x: x.to(torch.float32, copy=True),
    "statistics of the batch": lambda x: F.batch_norm(x, None, None, training=True),
    "an op that may return its input": lambda x: F.alpha_dropout(x, 0.5, False),
    "an op it does not know": lambda x: x.movedim(1, -1),
}


@pytest.mark.parametrize("name", LEFT_TO_TORCH)
def test_others_are_left_to_torch(name: str) -> None:
    function = LEFT_TO_TORCH[name]
    assert functional(program_of(Calls(function), images(2))) is None
    assert torch.equal(capture(Calls(function), (images(2),), {}).module(images(2)), function(images(2)))


def test_dropout_that_drops_is_left_to_torch() -> None:
    assert functional(program_of(Calls(lambda x: F.dropout(x, 0.5, True)), images(2))) is None


def test_a_thousand_writes_after_each_other() -> None:
    once = functional(program_of(Calls(_often), images(2)))
    assert once is not None
    assert torch.equal(once(images(3)), _often(images(3)))


def test_free_sizes_that_no_input_has_are_left_to_torch() -> None:
    x, free = images(2), Dim.DYNAMIC
    shapes = {"x": {0: free, 2: free, 3: free}}
    program = export(Calls(lambda x: x.flatten(2)), (x,), dynamic_shapes=shapes, strict=False)
    assert functional(program) is None


def test_sizes_are_read_off_any_input() -> None:
    class Two(nn.Module):
        def forward(self, scale: float, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return scale * torch.cat([a.flatten(1), b.flatten(1)])

    free = Dim("free", min=2)
    shapes = {"scale": None, "a": {0: free}, "b": {0: 2 * free}}
    program = export(Two(), (2.0, images(2), images(4)), dynamic_shapes=shapes, strict=False)
    once = functional(program)
    assert once is not None
    assert torch.equal(once(2.0, images(3), images(6)), Two()(2.0, images(3), images(6)))


def test_a_program_without_inputs() -> None:
    class Constant(nn.Module):
        def forward(self) -> torch.Tensor:
            return torch.ones(4).reshape(2, 2)

    once = functional(export(Constant(), (), strict=False))
    assert once is not None
    assert torch.equal(once(), torch.ones(2, 2))


class Steps(nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: torch.Tensor
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps.add_(1)
        return x.flatten(1).relu()


@pytest.mark.parametrize("model", [Steps(), Calls(lambda x: F.relu_(x.flatten(2) * 2).chunk(2)[0])])
def test_programs_that_come_from_elsewhere(model: nn.Module, tmp_path: Path) -> None:
    """Decomposed, saved and loaded: the writes are then in the signature."""
    path = tmp_path / "program.pt2"
    torch.export.save(program_of(model, images(2)).run_decompositions({}), path)
    module = capture(torch.export.load(path), (images(2),), {}).module
    assert torch.equal(module(images(2)), model(images(2)))
    if isinstance(model, Steps):
        assert module.steps == 1
