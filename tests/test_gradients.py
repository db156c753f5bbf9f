"""Gradients of a transformed module are right, reach what the dense model's reach, and train it."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.func import functional_call

import lvtp_fx
from lvtp_fx.models.checkpoint import load_bundled
from lvtp_fx.models.metrics import SegmentationMeter
from lvtp_fx.models.scenes import CLASS_NAMES, make_batch
from lvtp_fx.models.segmenter import normalize
from lvtp_fx.models.train import HELD_OUT
from lvtp_fx.models.training import warmup_cosine
from tests.tiny import fused, picture, vit

EPS = 1e-6
VARIANTS = list(product(("delta", "delta of several", "copy", "frozen"), ("merge", "select")))


def made(restore: str, reduce: str) -> tuple[nn.Module, fx.GraphModule, torch.Tensor]:
    """In float64: a model, transformed, and one image on which no decision is close."""
    model, x = vit(fused).double(), picture(1).double()
    mode, _, several = restore.partition(" of ")
    options: dict[str, Any] = {"restore": mode, "reduce": reduce, "sites": (0, 1), "keep_ratio": 0.5, "rounds": 1,
                               "restore_from": 3 if several else 1}
    return model, lvtp_fx.transform(model, (x,), **options), x


def numerically_right(fast: nn.Module, x: torch.Tensor, only: str = "") -> bool:
    """Whether the gradients by the image and by all parameters (or by `only` one) are those of finite differences."""
    names, values = zip(*((n, p) for n, p in fast.named_parameters() if only in ("", n)), strict=True)
    weight = torch.randn(fast(x).shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))

    def run(image: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = functional_call(fast, dict(zip(names, parameters, strict=True)), (image,))
        return (out * weight).sum()

    inputs = (x.clone().requires_grad_(not only), *(v.detach().clone().requires_grad_() for v in values))
    torch.manual_seed(0)  # the fast mode compares along a random direction of each input
    return torch.autograd.gradcheck(run, inputs, eps=EPS, atol=1e-5, rtol=1e-4, fast_mode=True, raise_exception=False)


@pytest.mark.parametrize(("restore", "reduce"), VARIANTS)
def test_gradients_are_those_of_finite_differences(restore: str, reduce: str) -> None:
    _, fast, x = made(restore, reduce)
    noise = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(3))
    for other in (x + 100 * EPS * noise, x - 100 * EPS * noise):  # decisions are constant all around: no ties
        for a, b in zip(lvtp_fx.decisions(fast, x), lvtp_fx.decisions(fast, other), strict=True):
            assert torch.equal(a.kept, b.kept)
            assert torch.equal(a.owner, b.owner)
    assert numerically_right(fast, x)


@pytest.mark.parametrize(("op", "restore", "right"), [
    ("merge", "delta", False), ("restore", "delta", False), ("key_bias", "delta", True), ("features", "delta", True),
    ("restore_between", "delta of several", False), ("features", "delta of several", False)])
def test_a_gradient_that_is_cut_off_would_be_found(op: str, restore: str, right: bool) -> None:
    """Sizes are counts: there is nothing to differentiate in a key bias; features weigh what several restore."""
    _, fast, x = made(restore, "merge")
    graph = copy.deepcopy(fast.graph)
    node = graph.find_nodes(op="call_function", target=getattr(torch.ops.lvtp, op).default)[-1]
    # One small parameter: where it finds an error, gradcheck goes through all entries to describe it.
    assert numerically_right(fast, x, "blocks.0.attention.proj.bias")
    assert numerically_right(fx.GraphModule(fast, _cut(graph, node)), x, "blocks.0.attention.proj.bias") == right


def _cut(graph: fx.Graph, node: fx.Node) -> fx.Graph:
    with graph.inserting_after(node):
        cut = graph.call_function(torch.ops.aten.detach.default, (node,))
    node.replace_all_uses_with(cut, delete_user_cb=lambda user: user is not cut)
    return graph


@pytest.mark.parametrize(("restore", "reduce"), VARIANTS)
def test_every_parameter_that_the_dense_model_trains_is_trained(restore: str, reduce: str) -> None:
    model, fast, x = made(restore, reduce)
    reached = [_reached(module, model, x) for module in (model, fast)]
    assert reached[0] == reached[1]
    assert len(reached[0]) >= 30
    assert "embed.conv.weight" in reached[1]


def _reached(module: nn.Module, model: nn.Module, x: torch.Tensor) -> set[str]:
    """The parameters of `model` that get a gradient through `module`, beyond rounding."""
    model.zero_grad(set_to_none=True)
    module(x).square().sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    return {name for name, grad in grads.items() if grad is not None and float(grad.abs().max()) > 1e-9}


def scenes(first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images as the bundled segmenter takes them, and labels."""
    images, labels = make_batch(range(first, first + count))
    return normalize(images), labels


def miou(model: nn.Module, held_out: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """In points."""
    meter = SegmentationMeter(len(CLASS_NAMES))
    with torch.no_grad():
        for images, labels in held_out:
            meter.update(model(images).argmax(1), labels)
    return 100 * meter.miou()


@pytest.mark.parametrize(("count", "steps", "lr"), [(32, 60, 6e-4), (8, 1, 0.0)])
def test_a_short_fine_tune_wins_back_half_of_what_a_large_cut_lost(count: int, steps: int, lr: float) -> None:
    """The recipe of docs/finetune.md: the dense model is the teacher, on scenes that are not those it is judged on."""
    model, teacher = load_bundled()[0], load_bundled()[0]
    held_out = [scenes(HELD_OUT + first, 8) for first in range(0, count, 8)]
    fast = lvtp_fx.transform(model, (held_out[0][0],), flops_cut=0.6, sites=(2,))
    dense, pruned = miou(teacher, held_out), miou(fast, held_out)
    assert dense - pruned > 8  # there is something to win back
    optimiser = torch.optim.AdamW(fast.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = warmup_cosine(lr, steps, step)
        images, _ = scenes(100_000 + 4 * step, 4)
        with torch.no_grad():
            target = teacher(images).softmax(1)
        optimiser.zero_grad()
        F.cross_entropy(fast(images), target).backward()
        optimiser.step()
    won_back = miou(fast, held_out) - pruned
    if lr:
        assert won_back >= 0.5 * (dense - pruned)
    else:
        assert won_back == 0
