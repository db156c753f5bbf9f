"""Whether two functions compute the same is told from the ops that they call."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from lvtp_fx import one_image
from lvtp_fx.capture import capture
from lvtp_fx.models.random_weights import randomise
from lvtp_fx.run_graph import cloned
from lvtp_fx.same_values import CannotTell, same_values
from tests.test_batches import Branching
from tests.tiny import Attention, PreNorm, TinyViT, fused, picture
from tests.zoo import HEADS, ZOO

Function = Callable[[torch.Tensor], torch.Tensor]
WEIGHT, EQUAL = torch.ones(3, 4), torch.ones(3, 4)


def of_three(x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, WEIGHT).relu() * 2


SAME: dict[str, Function] = {
    "itself": of_three,
    "with dead code": lambda x: (x.sum(), 2 * x, F.linear(x, WEIGHT).relu() * 2)[2],
    "views": lambda x: F.linear(x[:].view(2, 4).detach() + 0, WEIGHT).relu() * 2,
}
OTHERS: dict[str, Function] = {
    "another op": lambda x: F.linear(x, WEIGHT).exp() * 2,
    "another number": lambda x: F.linear(x, WEIGHT).relu() * 3,
    "a number of another type": lambda x: F.linear(x, WEIGHT).relu() * 2.0,
    "another input": lambda x: F.linear(x * 1, WEIGHT).relu() * 2,
    "another weight": lambda x: F.linear(x, EQUAL).relu() * 2,
    "a zero of another sign": lambda x: F.linear(x, WEIGHT).clamp(min=-0.0) * 2,
    "a sum of another type": lambda x: of_three(x) + torch.tensor(0),
    "another shape": lambda x: of_three(x).reshape(3, 2),
    "a part": lambda x: of_three(x)[:1],
    "more": lambda x: (of_three(x), x),  # type: ignore[dict-item,return-value]
}


@pytest.mark.parametrize("name", SAME)
def test_the_same(name: str) -> None:
    assert same_values(of_three, SAME[name], (torch.rand(2, 4),), {})


@pytest.mark.parametrize("name", OTHERS)
def test_not_surely_the_same(name: str) -> None:
    assert not same_values(of_three, OTHERS[name], (torch.rand(2, 4),), {})


def test_shapes_the_sign_of_zero_and_the_type_count() -> None:
    pair = torch.rand(2, 4)
    assert not same_values(lambda x: x.reshape(4, 2), lambda x: x.reshape(8, 1), (pair,), {})
    x = torch.arange(4)
    assert not same_values(lambda x: x / 0.0, lambda x: x / -0.0, (x,), {})
    assert not same_values(lambda x: x + 0.0, lambda x: x, (x,), {})
    assert same_values(lambda x: x + 0, lambda x: x, (x,), {})


WRITES: dict[str, Function] = {
    "in place": lambda x: F.linear(x, WEIGHT).relu_() * 2,
    "into a weight": lambda x: WEIGHT.add_(1) + x[0, 0],
    "into a given tensor": lambda x: torch.add(WEIGHT, 1, out=WEIGHT) + x[0, 0],
    "statistics": lambda x: F.batch_norm(x, WEIGHT[0], EQUAL[0], training=True),
}


@pytest.mark.parametrize("name", WRITES)
def test_what_writes_is_not_followed_and_does_not_write(name: str) -> None:
    with pytest.raises(CannotTell):
        same_values(WRITES[name], WRITES[name], (torch.rand(2, 4),), {})
    assert torch.equal(WEIGHT, torch.ones(3, 4))
    assert torch.equal(EQUAL, torch.ones(3, 4))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ZOO)
def test_a_graph_and_its_model(name: str, head: str) -> None:
    entry = ZOO[name]
    model, image = entry.build(head), entry.image(1)
    assert same_values(model, capture(model, (image,), {}).module, (image,), {})


@pytest.mark.parametrize(("apart", "notes"), [(lambda n: n == 1, 1), (lambda n: n < 0, 0)])
def test_a_large_model_is_not_run_where_its_ops_tell(
    apart: Callable[[int], bool], notes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_image, "_LARGE", 0)
    given: list[object] = []
    monkeypatch.setattr(one_image, "cloned", lambda inputs: given.append(inputs) or cloned(inputs))
    captured = capture(randomise(Branching(apart), seed=0).eval(), (picture(1),), {})
    assert bool(captured.note) == bool(given) == bool(notes)


class Counting(TinyViT):
    """Counts its calls in a buffer, if it is to."""

    def __init__(self, writes: bool) -> None:
        super().__init__([PreNorm(Attention(fused)) for _ in range(2)])
        self.writes = writes
        self.calls: torch.Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if self.writes:
            self.calls.add_(1)
        return super().forward(image)


@pytest.mark.parametrize("writes", [True, False])
def test_a_large_model_is_left_as_it_was(writes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_image, "_LARGE", 0)
    model, seen = randomise(Counting(writes), seed=0).eval(), list[torch.Tensor]()
    model.calls.zero_()
    model.norm.register_forward_hook(lambda module, args, result: seen.append(result))
    assert capture(model, (picture(1),), {}).note == ""
    assert model.calls == 0
    assert not seen
