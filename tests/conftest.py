"""Models and transformed graphs that several tests look at, made once a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from shutil import which

import pytest
import torch
from torch import fx, nn

import lvtp_fx
from lvtp_fx.capture import Capture, capture
from tests.zoo import ZOO

CUT = 0.2  # reachable with every head
needs_compiler = pytest.mark.skipif(not (which("c++") or which("g++")), reason="Inductor needs a C++ compiler on a CPU")


@pytest.fixture(scope="session", autouse=True)
def same_bits() -> Iterator[None]:
    """One thread, and no kernel that a graph cannot hold (nn.MultiheadAttention has one for no_grad).

    The models are small: threads that wait for each other cost more than they do, most of all beside other tests.
    And another number of threads adds up in another order, to other bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Case:
    """A segmenter of the zoo, transformed at `CUT`, and a batch of three different images."""

    model: nn.Module
    captured: Capture  # of `model`; most of the time goes into making it
    fast: fx.GraphModule
    x: torch.Tensor
    output: torch.Tensor  # of `model`, before it was transformed
    state: dict[str, torch.Tensor]  # copy of the model's, before it was transformed


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All laws of a segmenter go to one process, which transforms it once."""
    for item in items:
        params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if "name" in params and "case" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group(f"{params['name']} {params.get('head', 'linear')}"))


@pytest.fixture(scope="session")
def case() -> Callable[[str, str], Case]:
    @cache
    def make(name: str, head: str) -> Case:
        entry = ZOO[name]
        model, x = entry.build(head), entry.image(3)
        state = {key: value.clone() for key, value in model.state_dict().items()}
        with torch.no_grad():
            output = model(x)
        captured = capture(model, (x,), {})
        return Case(model, captured, lvtp_fx.transform(captured, flops_cut=CUT), x, output, state)

    return make
