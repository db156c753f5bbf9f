"""What transform, verify and calibrate must leave as it was, beyond parameters: the laws have these."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lvtp_fx
from lvtp_fx.classes import dense_output
from lvtp_fx.models.random_weights import randomise
from tests.tiny import Attention, C, PreNorm, TinyViT, captured, fused, picture, vit


class Merging(nn.Linear):
    """A low-rank update that `train(False)` merges into the weight, as loralib's."""

    merged = False

    def __init__(self) -> None:
        super().__init__(C, C)
        self.update = nn.Parameter(torch.randn(C, C) / 10)

    def train(self, mode: bool = True) -> Merging:
        if self.merged is mode:
            self.weight.data += -self.update if mode else self.update
            self.merged = not mode
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight if self.merged else self.weight + self.update, self.bias)


def merging() -> nn.Module:
    attention = Attention(fused)
    attention.proj = Merging()
    return TinyViT([PreNorm(attention), PreNorm(Attention(fused))])


@pytest.mark.parametrize("run", [
    lambda model: captured_in_training(model), lambda model: dense_output(model, picture()),
], ids=["capture", "prediction"])
def test_a_train_of_the_users_own_is_not_called(run: Callable[[nn.Module], Any]) -> None:
    model = merging().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = run(model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(found, model.eval()(picture()), atol=1e-5, rtol=1e-5)


def captured_in_training(model: nn.Module) -> torch.Tensor:
    out: torch.Tensor = lvtp_fx.transform(model, (picture(),), flops_cut=0)(picture())
    return out


taps: dict[str, torch.Tensor] = {}


def keep(held: Any, name: str) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        held[name] = output

    return hook


def write(held: list[torch.Tensor], module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
    held.append(output)


def write_global(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
    taps["global"] = output


class Tapped(nn.Module):
    """Reads in forward what a hook wrote into a dict that both hold, as MiDaS' DPT does."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.proj, self.taps = vit(fused, 2), nn.Linear(C, 5), dict[str, torch.Tensor]()
        self.model.get_submodule("blocks.0").register_forward_hook(keep(self.taps, "first"))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.model(image)
        return out + self.proj(self.taps["first"]).transpose(1, 2).unflatten(2, (8, 8))


@torch.no_grad()
def test_what_hooks_write_is_in_the_graph_and_not_in_the_model() -> None:
    model, x, other = randomise(Tapped(), 0).eval(), picture(seed=1), picture(seed=2)
    observed: list[torch.Tensor] = []
    model.model.register_forward_hook(partial(write, observed))
    model.model.register_forward_hook(write_global)
    taps.clear()
    model(x)
    held = [model.taps["first"], observed[0], taps["global"]]
    fast = lvtp_fx.transform(model, (x,), flops_cut=0)
    assert torch.equal(fast(other), model(other))  # not what a hook had kept of x
    assert len(observed) == 2  # by the two calls of the model, none by tracing it
    model(x)
    after = [model.taps["first"], observed[-1], taps["global"]]
    assert all(type(a) is type(b) and torch.equal(a, b) for a, b in zip(held, after, strict=True))


@cache
def ramp(count: int) -> torch.Tensor:
    return torch.linspace(0, 1, count).view(1, count, 1)


class Memoised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = vit(fused, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.model.get_submodule("head")(self.model.features(image) + ramp(64))
        return x.transpose(1, 2).unflatten(2, (8, 8))


def test_a_memoised_table_holds_no_fake_tensor_afterwards() -> None:
    ramp.cache_clear()
    model = Memoised().eval()
    fast = lvtp_fx.transform(model, (picture(),), flops_cut=0)
    assert torch.equal(fast(picture()), model(picture()))
    assert type(ramp(64)) is torch.Tensor


class Counting(nn.Module):
    """Counts its calls, and lets the count into its output."""

    def __init__(self) -> None:
        super().__init__()
        self.model = vit(fused, 3)
        self.calls: torch.Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        out: torch.Tensor = self.model(image) + self.calls
        return out


def test_buffers_that_forward_writes_are_not_written_by_checks() -> None:
    model, x = Counting().eval(), picture()
    fast = lvtp_fx.transform(model, (x,), keep_ratio=0.5)
    lvtp_fx.verify(model, fast, (x,))  # both runs begin with the same count
    lvtp_fx.decisions(fast, (x,))
    lvtp_fx.calibrate(model, picture(2), flops_cut=0.3, passes=8, progress=lambda done, of: None)
    assert model.calls == 0
    fast(x)
    assert model.calls == 1  # as the model itself would have


class Loose(nn.Module):
    """Holds tensors that are neither parameters nor buffers, one with a gradient history."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.scales, self.shift = vit(fused, 2), [nn.Parameter(torch.ones(()))], torch.zeros(())
        self.last = nn.Parameter(torch.ones(2)) * 2

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.model(image) * self.scales[0] + self.shift
        return out


@torch.no_grad()
def test_loose_tensors_are_shared_too() -> None:
    model, x = Loose().eval(), picture()
    fast = lvtp_fx.transform(model, (x,), flops_cut=0)
    model.scales[0].fill_(3)
    model.shift.fill_(1)
    assert torch.equal(fast(x), model(x))


def test_examples_made_in_inference_mode() -> None:
    with torch.inference_mode():
        x = picture()
    model = vit(fused, 2)
    fast = lvtp_fx.transform(model, (x,), flops_cut=0)
    with torch.inference_mode():
        assert torch.equal(fast(x), model(x))


def test_wrappers_are_looked_through() -> None:
    model, x = vit(fused, 2), picture()
    fast = lvtp_fx.transform(torch.compile(model), (x,), keep_ratio=0.5)
    assert fast.report.sites == lvtp_fx.explain(captured(model), keep_ratio=0.5).sites
    lvtp_fx.verify(torch.compile(model), fast, (x,))
    lvtp_fx.verify(model, torch.compile(fast), (x,))


def test_a_graph_in_which_nothing_is_dropped_is_the_captured_one() -> None:
    """Also where attention is spelled out, which a pruned graph writes as one fused op."""
    model, x = vit(lambda m, q, k, v: (q @ k.mT * m.scale).softmax(-1) @ v), picture()
    one = captured(model)
    for options in ({"keep_ratio": 1.0}, {"flops_cut": 0.0}):
        fast = lvtp_fx.transform(one, **options)
        assert torch.equal(fast(x), model(x))
        assert (fast.report.kept, fast.report.flops_cut) == ((), 0)


def test_a_hook_around_a_block_does_not_hide_the_stream() -> None:
    model = vit(fused, 4)
    plain = lvtp_fx.explain(model, (picture(),), keep_ratio=0.5)
    model.get_submodule("blocks.1").register_full_backward_hook(lambda module, grad_in, grad_out: None)
    hooked = lvtp_fx.explain(model, (picture(),), keep_ratio=0.5)
    assert [block.path for block in hooked.blocks] == [block.path for block in plain.blocks]
    assert hooked.flops_cut == plain.flops_cut


class Extractor(nn.Module):
    """Reads a block's output by a hook that closes over it, as feature extractors are written."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head, self.found = vit(fused), nn.Linear(C, 5), dict[str, torch.Tensor]()
        self.backbone.blocks[1].register_forward_hook(self.keep("middle"))

    def keep(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            self.found[name] = output

        return hook

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.backbone(x)
        return y + self.head(self.found["middle"]).transpose(1, 2).unflatten(2, (8, 8))  # type: ignore[no-any-return]


@pytest.mark.parametrize("used", [False, True])
def test_a_hook_that_closes_over_the_model_writes_into_the_twin(used: bool) -> None:
    model = randomise(Extractor(), seed=0).eval()
    before = model(picture(seed=9)) if used else None
    found = dict(model.found)
    fast = lvtp_fx.transform(model, (picture(),), flops_cut=0)
    assert model.found == found
    assert before is None or model.found["middle"] is found["middle"]
    assert torch.equal(fast(picture()), model(picture()))
    fast = lvtp_fx.transform(model, (picture(),), keep_ratio=0.5, sites=(0,), rounds=1)
    assert lvtp_fx.verify(model, fast, (picture(),)).max_error < 2e-6


def test_a_wrapped_method_is_the_twins() -> None:
    """Its parameters stay parameters, and a mode of training stays with the user's model."""
    model = vit(fused)
    for block in model.blocks:
        block.mlp.insert(1, nn.Dropout(0.5))
        block.forward = (lambda forward: lambda x: forward(x) * 1.0)(block.forward)
    model.train()
    fast = lvtp_fx.transform(model, (picture(),), flops_cut=0)
    assert model.training
    assert torch.equal(fast(picture()), model.eval()(picture()))
    names = {name for name, _ in model.named_parameters()}
    assert {name for name, _ in fast.named_parameters()} == {name for name in names if name in fast.state_dict()
                                                             and not name.endswith(UNREAD)}


UNREAD = ("q_norm.weight", "q_norm.bias", "k_norm.weight", "k_norm.bias", "temperature", "bias_table", "heads_mix")
TABLE: dict[int, torch.Tensor] = {}


class Tabled(TinyViT):
    """Keeps tables in a dict of its module, and in one of its class."""

    table: ClassVar[dict[int, torch.Tensor]] = {}

    def features(self, image: torch.Tensor) -> torch.Tensor:
        x = super().features(image)
        for known in (TABLE, self.table):
            if x.shape[1] not in known:
                known[x.shape[1]] = torch.linspace(0, 1, x.shape[1], dtype=x.dtype)[:, None]
            x = x + known[x.shape[1]]
        return x


def test_tables_beside_a_model_hold_no_fake_tensor_afterwards() -> None:
    model = randomise(Tabled([PreNorm(Attention(fused)) for _ in range(2)]), seed=0).eval()
    fast = lvtp_fx.transform(model, (picture(),), flops_cut=0)
    assert not TABLE
    assert not Tabled.table
    output = model(picture())
    assert type(output) is torch.Tensor
    assert torch.equal(fast(picture()), output)
    kept = TABLE[64]
    lvtp_fx.transform(model, (picture(),), flops_cut=0)
    assert list(TABLE) == [64]
    assert TABLE[64] is kept
