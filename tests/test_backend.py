"""`torch.compile(model, backend="lvtp_fx")`: what `transform` makes, from what Dynamo traced."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import nn

import lvtp_fx
from lvtp_fx.backend import NotPruned
from lvtp_fx.models.random_weights import randomise
from tests.backend_helpers import Inner, compiled, dialect, refusals, relative, selections, transformed
from tests.conftest import needs_compiler
from tests.tiny import Attention, C, PreNorm, TinyViT, fused, picture, vit
from tests.zoo import ZOO

CUT = 0.2


def _transformers() -> nn.Module:
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, image_size=112, patch_size=14)

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = transformers.Dinov2WithRegistersModel(config), nn.Linear(64, 8)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head(self.encoder(image).last_hidden_state[:, 5:])
            return out

    return randomise(Tokens(), 0).eval()


MODELS: dict[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {
    **{name: (lambda name=name, head=head: (ZOO[name].build(head), ZOO[name].image(2))) for name, head in (
        ("vit_small_patch16_dinov3", "dpt"), ("vit_small_patch14_reg4_dinov2", "linear"),
        ("beit_base_patch16_224", "linear"), ("torchvision_vit", "linear"), ("explicit_vit", "mask"),
    )},
    "transformers": lambda: (_transformers(), ZOO["vit_small_patch14_reg4_dinov2"].image(2)),
}


LISTED = """
import sys
import torch

def ours():
    return sorted(name for name in sys.modules if name.split(".")[0] == "lvtp_fx")

listed = torch._dynamo.list_backends()
print("lvtp_fx" in listed, "lvtp_fx_2" in listed, ours())
try:
    torch.compile(torch.nn.ReLU(), backend="lvtp_fx", options={"flopscut": 0.3})(torch.zeros(1))
except Exception as error:
    print("LVTP201" in str(error), "lvtp_fx.backend" in ours())
"""


def test_it_is_listed_without_being_imported(tmp_path: Path) -> None:
    """In a process that never names it but as a string: the entry point of the installed package is what is found."""
    done = subprocess.run([sys.executable, "-c", LISTED], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["True False []", "True True"]


@pytest.mark.parametrize("name", MODELS)
def test_the_same_nodes_tokens_and_outputs_as_transform(name: str) -> None:
    model, x = MODELS[name]()
    fast, inner = transformed(model, x, flops_cut=CUT), Inner()
    run = compiled(model, inner, flops_cut=CUT)
    with torch.no_grad():
        assert refusals(lambda: run(x)) == []
        got, want, dense = run(x), fast(x), model(x)
    assert len(inner.graphs) == 1
    assert dialect(inner.graphs[0]) == dialect(fast)
    assert len(inner.kept) == len(fast.report.sites) >= 2
    for kept, expected in zip(inner.kept, selections(fast, (x,)), strict=True):
        assert torch.equal(kept, expected)
    assert relative(got, want) < 1e-5
    assert relative(got, dense) > 1e-3


@pytest.fixture(scope="module")
def any_size() -> nn.Module:
    """Takes any image size that is a multiple of its patches."""
    made = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=5, depth=3, embed_dim=64,
                             num_heads=2, dynamic_img_size=True)
    return randomise(made, 0).eval()


def image(batch: int, rows: int, columns: int = 96) -> torch.Tensor:
    return torch.randn(batch, 3, rows, columns, generator=torch.Generator().manual_seed(rows + batch))


@pytest.mark.parametrize("dynamic", [None, True])
def test_one_graph_a_size_and_one_more_where_the_batch_turns_out_to_change(
    any_size: nn.Module, dynamic: bool | None,
) -> None:
    options: dict[str, Any] = {"keep_ratio": 0.5, "sites": (0,)}
    inner = Inner()
    run, shapes = compiled(any_size, inner, dynamic=dynamic, **options), [(2, 96), (3, 96), (2, 128), (5, 96), (4, 128)]
    fast = lvtp_fx.BySize(any_size, **options)
    with torch.no_grad():
        for batch, rows in shapes:
            x = image(batch, rows)
            assert relative(run(x), fast(x)) < 1e-5
            assert torch.equal(inner.kept[0], selections(fast.graph(x), (x,))[0])
    assert inner.pruned() == [True] * (2 if dynamic else 3)  # the first is for a batch of two, and no other


@pytest.mark.parametrize("dynamic", [False, True])
def test_one_image_is_not_taken_for_a_part_of_a_larger_one(dynamic: bool) -> None:
    """A batch of one is a literal in Dynamo's graph, also where all sizes are free."""
    model, inner = vit(fused), Inner()
    run = compiled(model, inner, dynamic=dynamic, keep_ratio=0.5, sites=(0,))
    fast = transformed(model, picture(1), keep_ratio=0.5, sites=(0,))
    with torch.no_grad():
        for x in (picture(1), picture(1, seed=5), picture(4)):
            assert relative(run(x), fast(x)) < 1e-5
    assert inner.pruned() == [True, True]


def test_a_size_that_is_declared_free_cannot_be(any_size: nn.Module) -> None:
    """The graph holds one token grid; the batch alone may be declared free."""
    run, x = compiled(any_size, Inner(), keep_ratio=0.5, sites=(0,)), image(2, 96)
    torch._dynamo.mark_dynamic(x, 2)
    with pytest.raises(Exception, match="Constraints violated"), torch.no_grad():
        run(x)
    inner, x = Inner(), image(2, 96)
    run = compiled(any_size, inner, keep_ratio=0.5, sites=(0,))
    torch._dynamo.mark_dynamic(x, 0)
    with torch.no_grad():
        run(x)
        run(image(3, 96))
    assert inner.pruned() == [True]


class Broken(nn.Module):
    """A ViT and a head, with a graph break between them."""

    def __init__(self) -> None:
        super().__init__()
        self.vit, self.head = vit(fused), nn.Conv2d(5, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.vit(x)
        torch._dynamo.graph_break()
        out: torch.Tensor = self.head(x)
        return out


def test_of_several_graphs_each_is_pruned_or_left_with_one_warning() -> None:
    model, x, inner = Broken(), picture(), Inner()
    run = compiled(model, inner, keep_ratio=0.5)
    with torch.no_grad():
        messages = refusals(lambda: run(x))
        want = model.head(transformed(model.vit, x, keep_ratio=0.5)(x))
        assert refusals(lambda: run(x)) == []  # once a graph, not once a call
        assert relative(run(x), want) < 1e-5
    assert inner.pruned() == [True, False]
    assert len(messages) == 1
    assert "LVTP102 attention-not-matched" in messages[0]


class BrokenInside(nn.Module):
    """A graph break between patches and blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.blocks = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x)
        torch._dynamo.graph_break()
        out: torch.Tensor = self.blocks(x)
        return out


def test_a_piece_of_a_model_is_said_to_be_one() -> None:
    first, second = refusals(lambda: compiled(BrokenInside().eval(), Inner())(picture()))
    line = BrokenInside.forward.__code__.co_firstlineno + 2
    assert f"note: this graph is a piece of the model, which Dynamo breaks at test_backend.py:{line}: " in first
    assert "fullgraph=True" in first
    assert "note: " not in second  # its end is the model's


def test_what_has_no_attention_is_compiled_as_usual_with_one_warning() -> None:
    model, x, inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), picture(), Inner()
    run = compiled(model, inner)
    messages = refusals(lambda: run(x))
    assert len(messages) == 1
    assert "LVTP102 attention-not-matched" in messages[0]
    assert "no softmax that looks like attention" in messages[0]
    assert "note: " not in messages[0]
    assert torch.equal(run(x), model(x))
    assert inner.pruned() == [False]


def test_a_cut_that_cannot_be_reached_is_a_warning_with_the_reason() -> None:
    model, inner = vit(fused), Inner()
    run = compiled(model, inner, flops_cut=0.95)
    messages = refusals(lambda: run(picture()))
    assert len(messages) == 1
    assert "LVTP202 flops-cut-unreachable" in messages[0]
    assert torch.equal(run(picture()), model(picture()))


@pytest.mark.parametrize(("options", "place"), [
    ({"flops_cut": 2}, "Config.flops_cut"), ({"flopscut": 0.3}, "options['flopscut']"),
    ({"inner": "lvtp_fx"}, "options['inner']"), ({"inner": 3}, "options['inner']"),
])
def test_options_out_of_range_stop_compilation_with_the_text_of_the_error(options: dict[str, Any], place: str) -> None:
    torch._dynamo.reset()
    run = torch.compile(vit(fused), backend="lvtp_fx", options={"inner": "eager", **options})
    with pytest.raises(Exception, match="LVTP201 config-out-of-range") as caught:
        run(picture())
    assert f"at {place}\n" in str(caught.value)
    assert "try: " in str(caught.value)


def test_a_mode_is_inductors() -> None:
    from lvtp_fx.backend import lvtp_fx as backend

    with pytest.raises(lvtp_fx.LvtpError, match="LVTP201 config-out-of-range at mode"):
        backend(torch.fx.symbolic_trace(nn.Identity()), [picture()], options={"inner": "eager"}, mode="max-autotune")
    with pytest.raises(lvtp_fx.LvtpError, match="one of default"):
        backend(torch.fx.symbolic_trace(nn.Identity()), [picture()], mode="fastest")


@needs_compiler
@pytest.mark.parametrize("mode", [None, "max-autotune-no-cudagraphs"])
def test_a_mode_is_in_force_while_inductor_compiles(mode: str | None) -> None:
    """As a pass of Inductor's own sees it."""
    seen = []
    torch._dynamo.reset()
    with torch._inductor.config.patch(
        force_disable_caches=True,  # what comes from a cache is not compiled
        post_grad_custom_post_pass=lambda graph: seen.append(torch._inductor.config.max_autotune),
    ), torch.no_grad():
        messages = refusals(lambda: torch.compile(nn.Conv2d(3, 4, 3).eval(), backend="lvtp_fx", mode=mode)(picture()))
    assert "LVTP102 attention-not-matched" in messages[0]
    assert seen == [mode is not None]


def test_gradients_are_those_of_the_transformed_module_under_aot_autograd() -> None:
    model, x, inner = vit(fused), picture(), Inner("aot_eager")
    fast = transformed(model, x, keep_ratio=0.5)
    fast(x).square().sum().backward()
    want = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    compiled(model, inner, keep_ratio=0.5)(x).square().sum().backward()
    assert inner.pruned() == [True]
    reached = [name for name, p in model.named_parameters() if p.grad is not None]
    assert reached == [name for name, g in want.items() if g is not None]
    assert len(reached) >= 30
    for name in reached:
        torch.testing.assert_close(model.get_parameter(name).grad, want[name], rtol=1e-4, atol=1e-4, msg=name)


def test_weights_and_buffers_are_the_models_and_may_change() -> None:
    def masked(m: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=m.allowed)

    model, x, inner = vit(masked), picture(), Inner()
    run = compiled(model, inner, keep_ratio=0.5)
    with torch.no_grad():
        before = run(x)
        model.get_parameter("head.bias").add_(1)
        torch.testing.assert_close(run(x), before + 1)
        for block in model.get_submodule("blocks").children():
            block.get_submodule("attention").get_buffer("allowed").copy_(torch.eye(64, dtype=torch.bool))
        assert relative(run(x), transformed(model, x, keep_ratio=0.5)(x)) < 1e-5
        assert relative(run(x), before + 1) > 1e-3
    assert inner.pruned() == [True]


class Wide(nn.Module):
    """Has a layer whose gradients fill a bucket of DistributedDataParallel's."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.wide = vit(fused), nn.Linear(600, 600)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.inner(image)
        return y + self.wide(y.new_ones(1, 600)).mean()


@pytest.mark.parametrize("whole", [True, False])
def test_under_ddp_the_graph_has_to_stay_whole(whole: bool) -> None:
    inner = Inner()
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(Wide().eval(), bucket_cap_mb=1)
        with torch._dynamo.config.patch(optimize_ddp=not whole):
            found = refusals(lambda: compiled(model, inner, keep_ratio=0.5)(picture()))
    finally:
        torch.distributed.destroy_process_group()
    assert inner.pruned() == ([True] if whole else [False, False])
    assert all("got: FakeTensor" in text and "optimize_ddp = False" in text for text in found)
    assert bool(found) is not whole


class Dropping(nn.Module):
    """Dropout and a batch norm around a block's MLP."""

    def __init__(self, kind: nn.Module) -> None:
        super().__init__()
        self.vit = TinyViT([PreNorm(Attention(fused)) for _ in range(3)])
        self.vit.norm = nn.Sequential(nn.LayerNorm(C), kind)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.vit(x)
        return out


class TokenNorm(nn.BatchNorm1d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize(("kind", "reason"), [(nn.Dropout(0.5), "random numbers"), (TokenNorm(C), "writes into")])
def test_what_training_mode_changes_is_not_pruned_and_said(kind: nn.Module, reason: str) -> None:
    model, x = Dropping(kind), picture()
    for training in (True, False):
        model.train(training)
        inner = Inner()
        run = compiled(model, inner, keep_ratio=0.5)
        messages = refusals(lambda run=run: run(x))
        assert inner.pruned() == [not training]
        assert len(messages) == int(training)
        assert not training or ("LVTP101 cannot-capture" in messages[0] and reason in messages[0])
    model.train()
    torch.manual_seed(0)
    want = model(x)
    torch.manual_seed(0)
    assert torch.equal(compiled(model, Inner(), keep_ratio=0.5)(x), want)


def test_training_mode_without_randomness_is_pruned() -> None:
    inner = Inner()
    model = Dropping(nn.Dropout(0.0)).train()
    assert refusals(lambda: compiled(model, inner, keep_ratio=0.5)(picture())) == []
    assert inner.pruned() == [True]


class HalfFrozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vit, self.head = vit(fused), nn.Conv2d(5, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            x = self.vit(x)
        out: torch.Tensor = self.head(x)
        return out


def test_a_part_without_gradients_stays_without() -> None:
    model, inner = HalfFrozen(), Inner()
    run = compiled(model, inner, keep_ratio=0.5)
    messages = refusals(lambda: run(picture()).sum().backward())
    assert len(messages) == 1
    assert "torch.no_grad()" in messages[0]
    assert [n for n, p in model.named_parameters() if p.grad is not None] == ["head.weight", "head.bias"]
    with torch.no_grad():  # where nothing is trained, nothing is lost
        assert refusals(lambda: run(picture())) == []
    assert inner.pruned() == [False, True]


@needs_compiler
def test_inductor_is_what_compiles_it_unless_told_otherwise() -> None:
    model, x = vit(fused), picture()
    fast = transformed(model, x, keep_ratio=0.5, sites=(0,), rounds=1)
    torch._dynamo.reset()
    torch._inductor.metrics.reset()
    run = torch.compile(model, backend="lvtp_fx", fullgraph=True, options={
        "keep_ratio": 0.5, "sites": (0,), "rounds": 1, "inner_options": {"epilogue_fusion": False}})
    with torch.no_grad():
        assert relative(run(x), fast(x)) < 1e-5
    assert torch._inductor.metrics.generated_kernel_count > 0


@needs_compiler
@pytest.mark.parametrize("name", ["tiny", "vit_small_patch14_reg4_dinov2"])
def test_one_line_is_the_same_as_transform_and_compile(name: str) -> None:
    """To rounding: weights are inputs of one graph and attributes of the other, so torch may fuse them differently.
    (With torch 2.14 on a CPU all bits were the same.)"""
    model, x = MODELS[name]() if name in MODELS else (vit(fused), picture())
    options: dict[str, Any] = {"keep_ratio": 0.5, "sites": (0, 1), "rounds": 1}
    with torch.no_grad():
        torch._dynamo.reset()
        got = torch.compile(model, backend="lvtp_fx", options=options)(x)
        torch._dynamo.reset()
        want = torch.compile(lvtp_fx.transform(model, (x,), **options), fullgraph=True)(x)
        assert relative(got, want) < 1e-6
        assert relative(got, model(x)) > 1e-3  # and it is pruned


class Gain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vit, self.gain = vit(fused), 2.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.vit(x) * self.gain
        return out


def test_a_number_that_dynamo_left_open_is_guarded_on() -> None:
    """Under dynamic=True a Python float is an input of Dynamo's graph."""
    model, x, inner = Gain(), picture(), Inner()
    run = compiled(model, inner, dynamic=True, keep_ratio=0.5, sites=(0,))
    with torch.no_grad():
        first = run(x)
        model.gain = 3.0
        assert relative(run(x), first * 1.5) < 1e-5
    assert inner.pruned() == [True, True]


def test_tensors_without_data_and_modules_in_training_mode_are_left_as_they_are() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from lvtp_fx.backend import lvtp_fx as backend

    model, inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5)), Inner()
    fake = FakeTensorMode().from_tensor(picture())
    for training, inputs, code in (
        (False, fake, "LVTP105 bad-example-inputs"), (True, picture(), "LVTP101 cannot-capture at 0 (node"),
        (False, picture(), "LVTP102 attention-not-matched"),
    ):
        graph = torch.fx.symbolic_trace(model.train(training))
        messages = refusals(lambda graph=graph, inputs=inputs: backend(graph, [inputs], options={"inner": inner}))
        assert len(messages) == 1
        assert code in messages[0]
        assert inner.graphs[-1] is graph


def test_a_defect_of_the_pass_does_not_stop_the_program(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("mixed")

    monkeypatch.setattr("lvtp_fx.backend.transform", broken)
    model, x = vit(fused), picture()
    with pytest.warns(NotPruned, match=r"nothing is pruned:\nKeyError: 'mixed'\n  this is a defect of lvtp_fx"), \
            caplog.at_level("DEBUG", "lvtp_fx.backend"), torch.no_grad():
        got = torch.compile(model, backend="lvtp_fx", options={"keep_ratio": 0.5, "inner": "eager"})(x)
    assert torch.equal(got, model(x))
    assert "in broken" in caplog.text
