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
from lvtp_fx.same_values import same_values
from tests.test_batches import Branching
from tests.tiny import picture
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
    "written in place": lambda x: F.linear(x, WEIGHT).relu_() * 2,
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


def test_a_write_is_never_the_same_as_itself() -> None:
    assert not same_values(OTHERS["written in place"], OTHERS["written in place"], (torch.rand(2, 4),), {})


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
