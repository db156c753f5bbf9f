"""What Inductor makes of the dialect: how many kernels, and that they are vectorised."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch._inductor.utils import fresh_cache, run_and_get_code

from tests import op_calls
from tests.conftest import needs_compiler

pytestmark = needs_compiler
lvtp = torch.ops.lvtp
N, M, K = 256, 64, 181


def kernels(run: Callable[..., object], *inputs: torch.Tensor) -> list[str]:
    """The sources of the C++ kernels of a compiled function, each once."""
    torch._dynamo.reset()
    with fresh_cache(), torch.no_grad():
        _, code = run_and_get_code(torch.compile(run, fullgraph=True), *inputs)
    return re.findall(r"cpp_pybinding\(\[.*?\], r?'''(.*?)'''", "".join(code), re.DOTALL)


def ranking(rounds: int) -> Callable[..., torch.Tensor]:
    def run(
        feature: torch.Tensor, position: torch.Tensor, anchors: torch.Tensor, edges: torch.Tensor
    ) -> torch.Tensor:
        priority = op_calls.rank(feature, anchors, position, edges, edges, 16, 16, 3.0, 0.0, 0.05, K, rounds)
        kept: torch.Tensor = lvtp.select(priority, K)
        return kept

    return run


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    return (torch.randn(1, N, 32), torch.arange(N)[None], torch.arange(0, N, N // M)[None], torch.randn(1, N))


def test_rounds_share_their_kernels(inputs: tuple[torch.Tensor, ...]) -> None:
    """A compiler takes about a second a kernel: four rounds more must not be eight kernels more."""
    few, many = (kernels(ranking(rounds), *inputs) for rounds in (4, 8))
    assert len(few) == len(many) > 0


def test_what_is_no_number_is_found_by_vectors(inputs: tuple[torch.Tensor, ...]) -> None:
    """Inductor asks `isnan` of one element at a time, which made the largest of these kernels nine times slower."""
    found = kernels(ranking(2), *inputs)
    assert found
    assert not any("std::isnan" in source for source in found)
