"""Entropies of attention rows: the reference, its parts, and the Triton kernel in Triton's interpreter."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram, default_decompositions
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from lvtp_fx.ops import row_entropy
from lvtp_fx.ops.row_entropy import row_entropies
from tests.interpret_kernel import tensors

ROOT = Path(__file__).parents[1]
NO_TRITON = "Triton is not installed: it has no wheels for this platform"
MASKS = [None, "bool", "lowest", "bias", "keys"]


def random_case(seed: int) -> dict[str, Any]:
    pick = random.Random(seed)
    before, after = pick.randrange(6), pick.randrange(6)
    shape = (pick.randint(1, 3), pick.randint(1, 3), pick.randint(12, 150), pick.choice([8, 24, 64, 80]))
    return {"seed": seed, "shape": shape, "mask": MASKS[seed % len(MASKS)],
            "before": before, "after": after, "every": pick.choice([1, 1, 3]),
            "scale": pick.choice([None, 0.3]), "orders": pick.sample([0.5, 1.0, 1.5, 2.0, 3.0], pick.randint(1, 4))}


def brute_force(case: dict[str, Any]) -> torch.Tensor:
    """softmax, then the formula, row by row."""
    q, k, mask = tensors(case)
    B, H, L, D = q.shape
    keys = slice(None, None, case["every"])
    scores = (q.double() @ k.double()[:, :, keys].mT) * (case["scale"] or D**-0.5)
    if mask is not None:
        mask = mask.expand(B, H, L, L)[..., keys]
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.double()
    p = scores.softmax(-1)[:, :, case["before"] : L - case["after"]]
    uniform = torch.full((p.shape[-1],), 1 / p.shape[-1], dtype=torch.float64)

    def tsallis(p: torch.Tensor, order: float) -> torch.Tensor:
        return torch.special.entr(p).sum(-1) if order == 1 else (1 - (p**order).sum(-1)) / (order - 1)

    return torch.cat([tsallis(p, order) / tsallis(uniform, order) for order in case["orders"]], 1).nan_to_num(nan=0.0)


def options(case: dict[str, Any]) -> tuple[Any, ...]:
    return case["scale"], case["before"], case["after"], case["orders"], case["every"]


@pytest.mark.parametrize("seed", range(10))
def test_the_reference_is_the_formula(seed: int) -> None:
    case = random_case(seed)
    q, k, mask = tensors(case)
    mask = mask.double() if mask is not None and mask.is_floating_point() else mask
    found = row_entropies(q.double(), k.double(), mask, *options(case))
    torch.testing.assert_close(found.double(), brute_force(case), rtol=0, atol=1e-5)


class Entropy(nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.ops.lvtp.entropy(q, k, None, None, 1, 0, [0.5, 1.0, 2.0], 1)
        return found


def taken_apart(q: torch.Tensor) -> ExportedProgram:
    """The op in an exported program of any batch size, as ship.save_exported writes it."""
    program = torch.export.export(Entropy(), (q, q.clone()), dynamic_shapes=({0: Dim.DYNAMIC}, {0: Dim.DYNAMIC}))
    assert [str(n.target) for n in program.graph.nodes if n.op == "call_function"] == ["lvtp.entropy.default"]
    return program.run_decompositions({op: b for op, b in default_decompositions().items() if "lvtp." in str(op)})


@pytest.mark.parametrize("seed", range(10))
def test_parts_give_what_the_whole_gives(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(seed)
    q, k, mask = tensors(case)
    whole = row_entropies(q, k, mask, *options(case))
    monkeypatch.setattr(row_entropy, "_PART", 40)
    seen: list[int] = []

    def counted(*args: Any) -> torch.Tensor:
        seen.append(args[4].stop - args[4].start)
        return scores(*args)

    scores = row_entropy.scores
    monkeypatch.setattr(row_entropy, "scores", counted)
    # Row by row the same sums, of products that a BLAS may round in another way when there are fewer of them.
    torch.testing.assert_close(row_entropies(q, k, mask, *options(case)), whole, rtol=0, atol=1e-5)
    assert 1 < len(seen) <= 16
    assert sum(seen) == whole.shape[-1]


def test_parts_in_an_exported_program_take_any_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_entropy, "_PART", 500)
    program = taken_apart(torch.randn(2, 2, 70, 8))
    assert len(program.graph.find_nodes(op="call_function", target=torch.ops.aten.amax.default)) == 10
    for B in (1, 3):
        q, k = torch.randn(2, B, 2, 70, 8)
        torch.testing.assert_close(program.module()(q, k), Entropy()(q, k), rtol=0, atol=1e-4)


def test_a_large_map_is_never_held() -> None:
    """At 2,900 tokens and all keys: no tensor of a head's whole map, whether compiled graphs see the parts or not."""
    q = torch.randn(1, 1, 2900, 8)
    held: list[int] = []

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            held.extend([out.numel()] if isinstance(out, torch.Tensor) else [])
            return out

    with Largest():
        torch.ops.lvtp.entropy(q, q, None, None, 0, 0, [1.0, 2.0], 1)
    assert max(held) <= 2900 * 1450


def interpreted(cases: list[dict[str, Any]]) -> list[float]:
    done = subprocess.run([sys.executable, "-m", "tests.interpret_kernel"], input=json.dumps(cases), text=True,
                          capture_output=True, check=False, timeout=300, cwd=ROOT,
                          env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    errors: list[float] = json.loads(done.stdout)
    return errors


def test_the_kernel_is_the_reference() -> None:
    """In Triton's interpreter: rows and keys that fill no block, all head sizes, masks, and rows that see nothing."""
    pytest.importorskip("triton", reason=NO_TRITON)
    cases = [random_case(seed) for seed in range(10)]
    for case, error in zip(cases, interpreted(cases), strict=True):
        assert error < 1e-5, case


@pytest.mark.parametrize("mask", [None, "i1", "bf16", "fp32"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_kernel_compiles_for_a_gpu(dtype: str, mask: str | None) -> None:
    """To machine code of an H100, which takes no GPU; numbers that are 1 are constants, as launchers make them."""
    triton = pytest.importorskip("triton", reason=NO_TRITON)
    from triton.backends.compiler import GPUTarget

    from lvtp_fx.ops.row_entropy_triton import BLOCK_M, BLOCK_N, row_entropy_kernel

    constants = {"KEYS": 70, "SCALE": 0.125, "ORDERS": (0.5, 1.0, 2.0), "UNIFORM": (14.7, 4.2, 0.9), "Q": 3,
                 "WIDE": 4, "MASKED": mask is not None, "HIDING": mask == "i1", "BLOCK_N": BLOCK_N,
                 "BLOCK_M": BLOCK_M, "BLOCK_D": 64, **dict.fromkeys(["q_d", "k_d", "mask_k", "every", "before"], 1)}
    types = {name: "i32" for name in row_entropy_kernel.arg_names if name not in constants}
    types |= {"q": f"*{dtype}", "k": f"*{dtype}", "mask": f"*{mask or dtype}", "out": "*fp32"}
    source = triton.compiler.ASTSource(row_entropy_kernel, types, constexprs=constants)
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]


def test_cuda_takes_the_kernel_but_no_file_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors that only say where they are."""
    pytest.importorskip("triton", reason=NO_TRITON)
    monkeypatch.setattr(row_entropy, "_PART", 500)

    def ops(device: str) -> tuple[str, str]:
        with FakeTensorMode(shape_env=ShapeEnv()):
            q = torch.empty(2, 3, 70, 8, device=device, requires_grad=True)
            return str(make_fx(Entropy())(q, q).graph), str(taken_apart(q).graph)

    (cuda, cuda_file), (cpu, cpu_file) = ops("cuda"), ops("cpu")
    assert "lvtp.row_entropies_fused" in cuda
    assert "lvtp" not in cuda_file + cpu + cpu_file


COUNT = """
import torch
import lvtp_fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

for device in ("cuda", "cpu"):
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        q = torch.empty(2, 3, 4096, 8, device=device)
        torch.ops.lvtp.entropy(q, q, None, None, 1, 2, [1.0, 2.0], 1)
    print(counter.get_total_flops())
"""


def test_the_kernels_flops_are_counted_from_the_first_time() -> None:
    """In a process that has run nothing before."""
    pytest.importorskip("triton", reason=NO_TRITON)
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.split() == [str(2 * 2 * 3 * 4093 * 4096 * 8)] * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel's run on a GPU needs one")
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernel_on_a_gpu(seed: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager and compiled, against the reference in float64 on the same rounded inputs."""
    monkeypatch.setattr(row_entropy, "_PART", 1)
    case = random_case(seed)
    q, k, mask = (each if each is None else each.cuda() for each in tensors(case))
    assert q is not None
    assert k is not None
    q, k = q.to(dtype), k.to(dtype)
    wanted = row_entropies(q.double().cpu(), k.double().cpu(), mask if mask is None else mask.cpu(), *options(case))
    torch._dynamo.reset()  # which compiles a function for so many sizes only
    for run in (row_entropies, torch.compile(row_entropies, fullgraph=True, dynamic=False)):
        torch.testing.assert_close(run(q, k, mask, *options(case)).cpu(), wanted.float(), rtol=0, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel's memory on a GPU needs one")
def test_the_kernel_holds_no_map_on_a_gpu() -> None:
    q = torch.randn(1, 4, 8192, 64, device="cuda", dtype=torch.bfloat16)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    row_entropies(q, q, None, None, 0, 0, [1.0, 2.0], 1)
    assert torch.cuda.max_memory_allocated() - before < 8 * q.numel() * q.element_size()
