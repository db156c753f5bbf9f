"""Python that reads a buffer's values while a model is traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lvtp_fx
from lvtp_fx.capture import capture
from tests.tiny import fused, picture, vit


class Reads(nn.Module):
    """A module that asks Python something of its buffer, and doubles its input where the answer is yes."""

    def __init__(self, question: Callable[[torch.Tensor], Any], values: Any) -> None:
        super().__init__()
        self.question = question
        self.register_buffer("switch", torch.as_tensor(values))
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 * self.weight if self.question(self.switch) else x * self.weight


def captured(model: nn.Module) -> Any:
    return capture(model.eval(), (torch.rand(2, 3),), {})


QUESTIONS: dict[str, tuple[Callable[[torch.Tensor], Any], Any, Any]] = {  # what is asked, for a yes, for a no
    "element": (lambda b: b[1] > 0, [0.0, 1.0], [1.0, 0.0]),
    "0-dim": (lambda b: b, True, False),
    "item": (lambda b: b.item() == 3, 3, 4),
    "float": (lambda b: float(b.mean()) < 1, [0.5, 1.0], [0.5, 2.0]),
    "int": (lambda b: int((b * 2 + 1).sum()) == 8, [1.0, 2.0], [1.0, 1.0]),
    "list": (lambda b: b.tolist() == [1, 2], [1, 2], [2, 1]),
    "index": (lambda b: [False, True][b], 1, 0),
    "any": (lambda b: torch.any(b == 2), [1, 2], [1, 1]),
    "unbind": (lambda b: [bool(x) for x in b.unbind()][1], [0, 1], [1, 0]),
    "named pair": (lambda b: b.max(0).indices == 1, [0.0, 1.0], [1.0, 0.0]),
    "contains": (lambda b: 2 in b, [1, 2], [1, 1]),
    "written otherwise": (lambda b: ~(1 - b < 0)[0] & (b**2 // 2 == 0).all(), [1.0, 1.0], [2.0, 1.0]),
    "both operands": (lambda b: (b[0] - b[1]).abs() < 0.1, [1.0, 1.0], [1.0, 2.0]),
    "rewritten": (lambda b: b.clone().add_(1).add(0).numel() == 2, [1.0, 1.0], [1.0]),  # no value is asked for
}


@pytest.mark.parametrize("answer", [True, False])
@pytest.mark.parametrize("question", QUESTIONS)
def test_branch_is_the_one_that_the_values_choose(question: str, answer: bool) -> None:
    ask, yes, no = QUESTIONS[question]
    model = Reads(ask, yes if answer else no)
    x = torch.rand(5, 3)
    found = captured(model)
    assert torch.equal(found.module(x), model(x))
    assert torch.equal(found.module(x), x * 2 if answer else x)
    assert found.read == (() if question == "rewritten" else ("switch",))


class Counts(nn.Module):
    """A buffer that is written into before it is read: its value at capture is none to rely on."""

    def __init__(self, write: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
        super().__init__()
        self.write = write
        self.register_buffer("steps", torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.steps[0]
        self.write(self.steps, x)
        return x * 2 if first > 0 else x


@pytest.mark.parametrize("write", [
    lambda b, x: b.add_(1), lambda b, x: b.copy_(x[0, :2]), lambda b, x: b.__iadd__(1),
    lambda b, x: b.__setitem__(0, 1.0), lambda b, x: torch.add(b, 1, out=b), lambda b, x: F.elu(b, inplace=True),
], ids=["add_", "copy_", "+=", "b[0] =", "out", "inplace"])
def test_buffer_that_was_written_into_is_not_read(write: Any) -> None:
    model = Counts(write)
    with pytest.raises(lvtp_fx.LvtpError, match=r"LVTP101(.|\n)*data-dependent"):
        captured(model)
    assert model.get_buffer("steps").tolist() == [0, 0]


def test_a_model_that_fails_is_left_as_it_was() -> None:
    def write(steps: torch.Tensor, x: torch.Tensor) -> None:
        steps.add_(1)
        x.mul_(0)
        raise ValueError("too large")

    model, x, drawn = Counts(write), torch.ones(2, 3), torch.get_rng_state()
    with pytest.raises(lvtp_fx.LvtpError, match=r"LVTP105(.|\n)*stops with ValueError: too large"):
        lvtp_fx.transform(model, (x,))
    assert model.get_buffer("steps").tolist() == [0, 0]
    assert torch.equal(x, torch.ones(2, 3))
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize("question", [
    lambda b: torch.rand_like(b).sum() > 0.5, lambda b: b.bernoulli() > 0, lambda b: b.sinh() > 0,
], ids=["rand_like", "bernoulli", "sinh"])
def test_what_is_drawn_or_not_followed_is_refused(question: Any) -> None:
    with pytest.raises(lvtp_fx.LvtpError, match=r"LVTP101(.|\n)*asks for a tensor's value"):
        captured(Reads(question, 0.5))


def test_question_about_the_input_and_about_parameters_is_refused() -> None:
    class Mixed(nn.Module):
        def __init__(self, of_input: bool) -> None:
            super().__init__()
            self.of_input, self.gain = of_input, nn.Parameter(torch.ones(()))
            self.register_buffer("limit", torch.ones(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if (x.sum() if self.of_input else self.gain) > self.limit else x

    for of_input in (True, False):
        with pytest.raises(lvtp_fx.LvtpError, match="LVTP101"):
            captured(Mixed(of_input))


def test_model_is_left_as_it_was_and_its_hooks_run() -> None:
    model, x = Reads(*QUESTIONS["element"][:2]).eval(), torch.rand(2, 3)
    model.register_forward_hook(lambda module, inputs, output: -output)
    assert torch.equal(captured(model).module(x), -2 * x)
    assert len(model._forward_hooks) == 1
    assert not model._forward_pre_hooks
    with pytest.raises(ZeroDivisionError):  # an error in forward leaves nothing switched on
        Reads(lambda b: 1 / 0, 1.0)(torch.rand(2, 3))
    with pytest.raises(lvtp_fx.LvtpError, match="ZeroDivisionError"):
        captured(Reads(lambda b: b > 0 and 1 / 0, 1.0))
    assert not torch.overrides._get_current_function_mode_stack()


class Gated(nn.Module):
    """A ViT with switches among its buffers, as EoMT has them."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = vit(fused)
        self.register_buffer("gates", torch.tensor([0.0, 1.0]))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.vit(image)
        return logits * 2 if self.gates[1] > 0 else logits


def test_transform_says_what_it_fixed_and_prunes() -> None:
    model = Gated().eval()
    fast = lvtp_fx.transform(model, (picture(),), keep_ratio=0.5)
    assert fast.report.notes == (
        "Python reads the values of gates in forward: what it does with them is fixed in the graph",)
    plain = lvtp_fx.transform(vit(fused), (picture(),), keep_ratio=0.5)
    assert torch.allclose(fast(picture()), plain(picture()) * 2, atol=1e-5)
    assert lvtp_fx.verify(model, fast, (picture(),)).max_error < 2e-5
