"""Every code, asserted by its whole text where the text is ours, beside what works."""

from __future__ import annotations

import copy
import json
import pickle
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import flex_attention
from torchvision.models import resnet18

import lvtp_fx
from lvtp_fx.errors import Code, LvtpError
from lvtp_fx.strategies.lvtp import Lvtp
from tests.conftest import Case
from tests.tiny import fused, picture, vit
from tests.zoo import ZOO

Cases = Callable[[str, str], Case]
NAME = "vit_tiny_patch16_224"


@pytest.fixture
def it(case: Cases) -> Case:
    return case(NAME, "linear")


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(LvtpError) as caught:
        call()
    return str(caught.value)


class TwoDevices(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3, device="meta")


class Silent(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if image.shape[2] != 64:
            raise AssertionError
        return image


class Gated(nn.Module):
    """A branch on what is computed of a buffer, in a way that is not followed."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.gate: torch.Tensor | float
        self.register_buffer("gate", torch.zeros(()))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(image)
        return logits * 2 if torch.as_tensor(self.gate).sinh() > 0 else logits


@dataclass
class Answer:
    logits: torch.Tensor


class Answering(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> Answer:
        return Answer(self.model(image))


class Branches(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image + 1 if image.sum() > 0 else image


class Uncopyable(nn.Module):
    def __deepcopy__(self, memo: object) -> object:
        raise TypeError("cannot pickle a lock")


class FourChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3)


def test_lvtp101_names_the_line_that_stops_capture() -> None:
    head, expected, got, why, hint = refusal(
        lambda: lvtp_fx.transform(Branches(), (torch.rand(2, 3, 32, 32),))).splitlines()
    line = Branches.forward.__code__.co_firstlineno + 1
    assert head == (f"LVTP101 cannot-capture at Branches (test_diagnostics.py:{line} in forward: "
                    "return image + 1 if image.sum() > 0 else image)")
    assert expected == "  expected: a model that torch.export.export(model, example, strict=False) captures"
    assert got.startswith("  got: GuardOnDataDependentSymNode: Could not guard on data-dependent expression")
    assert why == "  why: Python at that line asks for a tensor's value, which a graph does not have"
    assert hint == ("  try: put a Python number in the place of a buffer that the line reads (del model.x; "
                    "model.x = 0.0), take the branch out of forward, or pass the encoder alone")


def test_refusal_is_all_that_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    """torch.export prints the graph so far, where it fails."""
    refusal(lambda: lvtp_fx.transform(Branches(), (torch.rand(2, 3, 32, 32),)))
    assert capfd.readouterr() == ("", "")


def test_lvtp105_for_an_error_without_a_message() -> None:
    text = refusal(lambda: lvtp_fx.transform(Silent(), (torch.rand(2, 3, 32, 32),)))
    assert text.startswith("LVTP105 bad-example-inputs at Silent (test_diagnostics.py:")
    assert "it stops with AssertionError: no message" in text


def test_lvtp101_for_a_buffer_in_a_branch_and_the_way_out(it: Case) -> None:
    model = Gated(it.model)
    assert "Gated (test_diagnostics.py" in refusal(lambda: lvtp_fx.transform(model, (it.x,), flops_cut=0.2))
    del model.gate
    model.gate = 0.0
    assert torch.equal(lvtp_fx.transform(model, (it.x,), flops_cut=0.2)(it.x), it.fast(it.x))


def test_lvtp101_for_a_dataclass_that_is_not_registered_and_the_way_out(it: Case) -> None:
    model = Answering(it.model)
    text = refusal(lambda: lvtp_fx.transform(model, (it.x,), flops_cut=0.2))
    assert "why: a graph returns tensors in tuples, lists, dicts and registered classes only" in text
    assert "try: torch.export.register_dataclass(TheClass) for a dataclass, before lvtp_fx.transform" in text
    torch.export.register_dataclass(Answer)
    out = lvtp_fx.transform(model, (it.x,), flops_cut=0.2)(it.x)
    assert type(out) is Answer
    assert torch.equal(out.logits, it.fast(it.x))


@pytest.mark.parametrize("grad", [True, False])
def test_lvtp105_for_an_example_that_the_model_refuses(it: Case, grad: bool) -> None:
    with torch.inference_mode(not grad):
        head, expected, got, why, hint = refusal(
            lambda: lvtp_fx.transform(it.model, (torch.rand(1, 3, 64, 64),))).splitlines()
    assert head.startswith("LVTP105 bad-example-inputs at EncoderSegmenter (patch_embed.py:")
    assert expected == "  expected: inputs that the model itself takes"
    assert got == ("  got: float32 [1, 3, 64, 64]; it stops with AssertionError: Input height (64) doesn't match model "
                   "(128).")
    assert why == "  why: the graph is captured from a call of the model, which fails without lvtp_fx, too"
    assert hint == "  try: model(*example_inputs) has to run: look at shapes, dtypes and names of the inputs"


def test_lvtp105_for_a_keyword_that_the_model_does_not_have(it: Case) -> None:
    text = refusal(lambda: lvtp_fx.transform(it.model, {"pixels": it.x}))
    assert "stops with TypeError" in text
    assert "unexpected keyword argument 'pixels'" in text


def test_lvtp105_for_inputs_that_the_dense_model_makes_nan_of(it: Case) -> None:
    assert refusal(lambda: lvtp_fx.verify(it.model, it.fast, (it.x * torch.nan,))) == (
        "LVTP105 bad-example-inputs at example_inputs\n"
        "  expected: inputs of which the model makes numbers\n"
        "  got: NaN in the dense model's output\n"
        "  why: NaN equals nothing, so there is nothing to compare\n"
        "  try: look for NaN and infinities in the inputs and in the model's weights"
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_lvtp106_for_torchscript_and_for_a_model_with_a_transformed_part(it: Case) -> None:
    traced = torch.jit.trace(nn.ReLU(), (torch.rand(1, 3),))
    for model, got in ((traced, "TopLevelTracedModule, which TorchScript made"),
                       (nn.Sequential(it.fast), "Sequential, which lvtp_fx.transform made, or a part of it")):
        text = refusal(lambda model=model: lvtp_fx.transform(model, (it.x,)))
        assert text.startswith("LVTP106 not-a-model-to-transform at model")
        assert f"  got: {got}\n" in text


def test_lvtp101_for_a_model_that_cannot_be_copied() -> None:
    assert refusal(lambda: lvtp_fx.transform(Uncopyable(), (torch.rand(1, 3, 32, 32),))) == (
        "LVTP101 cannot-capture at Uncopyable\n"
        "  expected: a module that copy.deepcopy can copy\n"
        "  got: TypeError: cannot pickle a lock\n"
        "  why: a copy that shares the parameters is traced, so that the model itself is never changed\n"
        "  try: remove hooks, locks, open files and tensors with a gradient history from the module's attributes, "
        "or pass torch.export.export(model.eval(), example_inputs)"
    )


def test_lvtp102_where_there_is_no_attention() -> None:
    assert refusal(lambda: lvtp_fx.transform(resnet18(), (torch.rand(1, 3, 64, 64),))) == (
        "LVTP102 attention-not-matched at the whole graph\n"
        "  expected: at least one block softmax(q k^T) v over the tokens of a patch grid, added to a residual stream\n"
        "  got: no softmax that looks like attention\n"
        "  why: without a matched block nothing can be pruned, and a silent no-op would look like success\n"
        "  try: lvtp_fx.explain(model, example_inputs) lists every miss; pass the encoder alone if the model hides it"
    )
    assert lvtp_fx.explain(resnet18(), (torch.rand(1, 3, 64, 64),)).refused.startswith("LVTP102")


def test_lvtp103_shows_the_call_to_write(it: Case) -> None:
    assert refusal(lambda: lvtp_fx.transform(FourChannels())) == (
        "LVTP103 shape-not-inferable at FourChannels\n"
        "  expected: an attribute img_size or image_size on a module or its config, or pretrained_cfg['input_size']\n"
        "  got: none of them\n"
        "  why: the token grid is fixed when the graph is captured\n"
        "  try: lvtp_fx.transform(model, (torch.rand(1, 4, HEIGHT, WIDTH),)) with your image size"
    )
    assert lvtp_fx.explain(it.model, flops_cut=0.2).kept == it.fast.report.kept  # inferred from img_size


def test_lvtp104_names_a_parameter_a_device() -> None:
    assert refusal(lambda: lvtp_fx.transform(TwoDevices(), (torch.rand(1, 3),))) == (
        "LVTP104 parameters-on-several-devices at first.weight, second.weight\n"
        "  expected: all parameters and buffers on one device\n"
        "  got: first.weight on cpu, second.weight on meta\n"
        "  why: one graph runs on one device\n"
        "  try: model.to(device) before lvtp_fx.transform"
    )


def test_lvtp105_for_a_program_of_any_image_size() -> None:
    class Pixels(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.relu()

    free = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(Pixels(), (torch.rand(2, 3, 8, 8),), dynamic_shapes=(free,))
    text = refusal(lambda: lvtp_fx.transform(program))
    assert text.startswith("LVTP105 bad-example-inputs at input 'image' of the exported program\n"
                           "  expected: a program of one image size, free in its batch alone\n  got: axis 2 of size ")


@pytest.mark.parametrize(("given", "expected", "got"), [
    (torch.zeros(0, 3, 128, 128), "a tensor with a batch of at least one", "shape (0, 3, 128, 128)"),
    ((), "a tensor with a batch of at least one", "no tensor"),
    (5, "a tensor, a tuple of inputs or a dict of keyword inputs", "int"),
])
def test_lvtp105(it: Case, given: Any, expected: str, got: str) -> None:
    text = refusal(lambda: lvtp_fx.transform(it.model, given))
    assert text.startswith("LVTP105 bad-example-inputs at example_inputs")
    assert f"  expected: {expected}\n  got: {got}\n" in text
    assert text.endswith("try: lvtp_fx.transform(model, (torch.rand(1, 3, 224, 224),))")


@pytest.mark.parametrize(("model", "got"), [("vit", "str"), (None, "GraphModule, which lvtp_fx.transform made")])
def test_lvtp106(it: Case, model: Any, got: str) -> None:
    assert refusal(lambda: lvtp_fx.transform(model or it.fast, (it.x,))) == (
        "LVTP106 not-a-model-to-transform at model\n"
        "  expected: an nn.Module, GraphModule or ExportedProgram, not yet transformed\n"
        f"  got: {got}\n"
        "  why: its graph is captured and rewritten\n"
        "  try: pass the original model"
    )


@pytest.mark.parametrize(("options", "expected", "hint"), [
    ({"flops_cut": -0.1}, "a share in [0, 1)", "0.35 saves 35 % of the FLOPs"),
    ({"flops_cut": 1}, "a share in [0, 1)", "0.35 saves 35 % of the FLOPs"),
    ({"flops_cut": float("nan")}, "a share in [0, 1)", "0.35 saves 35 % of the FLOPs"),
    ({"flops_cut": True}, "a share in [0, 1)", "0.35 saves 35 % of the FLOPs"),
    ({"latency_cut": 0}, "a share in (0, 1), or None", "0.3 saves 30 % of the time"),
    ({"latency_cut": 1}, "a share in (0, 1), or None", "0.3 saves 30 % of the time"),
    ({"check_latency": 1}, "True or False", "leave it out"),
    ({"keep_ratio": 0}, "a share in (0, 1], or one a site", "keep_ratio=0.7"),
    ({"keep_ratio": (0.5, 1.5)}, "a share in (0, 1], or one a site", "keep_ratio=0.7"),
    ({"keep_ratio": ()}, "a share in (0, 1], or one a site", "keep_ratio=0.7"),
    ({"sites": ()}, '"auto", "every" or block indices', "sites=(2, 5, 8)"),
    ({"sites": "all"}, '"auto", "every" or block indices', "sites=(2, 5, 8)"),
    ({"sites": (1.5,)}, '"auto", "every" or block indices', "sites=(2, 5, 8)"),
    ({"strategy": "best"}, "one of lvtp, random, grid, shannon, edges, received, fused, bipartite, mutual, superpixels",
     "strategy='lvtp'"),
    ({"reduce": "drop"}, "one of merge, select", "reduce='merge'"),
    ({"restore": "zero"}, "one of delta, copy, frozen", "restore='delta'"),
    ({"decoder": "none"}, "one of reduced, full", "decoder='reduced'"),
    ({"feature": "values"}, "one of auto, keys, stream", "feature='auto'"),
    ({"entropy_direction": "up"}, "one of low, high", "entropy_direction='low'"),
    ({"proportional_attention": 1}, "True or False", "leave it out"),
    ({"qs": ()}, "one or more Tsallis orders > 0", "qs=(0.5, 1.0, 2.0)"),
    ({"qs": (0,)}, "one or more Tsallis orders > 0", "qs=(0.5, 1.0, 2.0)"),
    ({"edge_weight": -1}, "a number >= 0", "edge_weight=0 switches it off"),
    ({"qs": 2.0}, "one or more Tsallis orders > 0", "qs=(0.5, 1.0, 2.0)"),
    ({"cell": (2,)}, "(rows, columns), each >= 1", "cell=(2, 2)"),
    ({"cell": None}, "(rows, columns), each >= 1", "cell=(2, 2)"),
    ({"strategy": Lvtp}, "a name, or an object", "strategy=Lvtp()"),
    ({"align": 0}, 'an integer >= 1, or "auto"', "align=1"),
    ({"restore_from": 0}, "an integer >= 1", "restore_from=1"),
    ({"restore_softness": 0}, "a number > 0", "restore_from=1 needs none"),
    ({"entropy_keys": 2.0}, "an integer >= 1", "entropy_keys=1"),
])
def test_lvtp201(options: dict[str, Any], expected: str, hint: str) -> None:
    ((name, value),) = options.items()
    assert refusal(lambda: lvtp_fx.Config(**options)) == (
        f"LVTP201 config-out-of-range at Config.{name}\n  expected: {expected}\n  got: {value!r}\n"
        f"  why: a graph built from it would not be what was asked for\n  try: {hint}"
    )


def test_numbers_of_numpy_are_numbers() -> None:
    two = [np.int8(2)] * 2
    given = lvtp_fx.Config(flops_cut=np.float32(0.5), sites=np.arange(2).tolist(), rounds=np.int64(3), cell=two)
    assert given == lvtp_fx.Config(flops_cut=0.5, sites=(0, 1), rounds=3, cell=(2, 2))
    assert json.loads(json.dumps([given.flops_cut, given.rounds, given.cell])) == [0.5, 3, [2, 2]]
    assert "expected: an integer >= 1\n" in refusal(lambda: lvtp_fx.Config(rounds=np.float64(3)))
    assert "expected: a share in [0, 1)\n" in refusal(lambda: lvtp_fx.Config(flops_cut=np.bool_(True)))


def test_lvtp201_for_a_config_that_is_none(it: Case) -> None:
    text = refusal(lambda: lvtp_fx.transform(it.captured, config={"flops_cut": 0.3}))  # type: ignore[arg-type]
    assert text.startswith("LVTP201 config-out-of-range at Config.config\n  expected: a Config, or None\n")


def test_lvtp201_for_a_field_that_does_not_exist(it: Case) -> None:
    text = refusal(lambda: lvtp_fx.transform(it.captured, flop_cut=0.3))
    assert text.startswith("LVTP201 config-out-of-range at Config.flop_cut\n  expected: a field of Config: align, ")
    assert text.endswith("try: check the spelling")


def test_lvtp201_for_more_ratios_than_sites(it: Case) -> None:
    text = refusal(lambda: lvtp_fx.transform(it.captured, keep_ratio=(0.9, 0.8, 0.7, 0.6)))
    assert "expected: one ratio, or 2\n  got: 4 ratios\n  why: each site needs its own" in text


def test_lvtp202_says_what_can_be_reached(it: Case) -> None:
    text = refusal(lambda: lvtp_fx.transform(it.captured, flops_cut=0.97))
    head, expected, got, why, hint = text.splitlines()
    assert head == "LVTP202 flops-cut-unreachable at Config.flops_cut"
    best = float(expected.removeprefix("  expected: at most ").split()[0])
    assert got == "  got: 0.97"
    assert why == "  why: all before block 0 and after the encoder runs on the full grid"
    assert hint == "  try: a smaller flops_cut"
    late = refusal(lambda: lvtp_fx.transform(it.captured, flops_cut=0.97, sites=(2,)))
    assert late.endswith("  try: a smaller flops_cut, or earlier sites, e.g. sites=(0, 1, 2)")
    assert lvtp_fx.explain(it.captured, flops_cut=best - 0.01).refused == ""
    assert lvtp_fx.explain(it.captured, flops_cut=0.97).refused == text


class Cumulative(nn.Module):
    """An op that needs the full grid lies between the first block and the others."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = vit(fused, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        first, *others = self.vit.blocks
        x = torch.cumsum(first(self.vit.embed(image)), -1).sort(-1)[0]
        for block in others:
            x = block(x)
        out: torch.Tensor = self.vit.norm(x)
        return out


def test_lvtp202_names_what_is_not_used_and_no_sites_that_do_not_exist() -> None:
    text = refusal(lambda: lvtp_fx.transform(Cumulative().eval(), (picture(),), flops_cut=0.5))
    *_, why, hint = text.splitlines()
    assert why.startswith("  why: all before block 0 and after the encoder runs on the full grid; 2 attentions are not "
                          "used, the nearest miss at vit.blocks.1.attention (")
    assert why.endswith("): aten.cumsum.default has no rule")
    assert hint == "  try: a smaller flops_cut"


def test_lvtp101_for_quantised_layers() -> None:
    class Packed(nn.Module):
        """Fails as torch.ao's layers do, which leave torch."""

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            if torch.compiler.is_exporting():
                raise AttributeError("quantized.LinearPackedParamsBase does not have a field '__obj_flatten__'")
            return image

    text = refusal(lambda: lvtp_fx.transform(Packed(), (picture(),)))
    assert text.startswith("LVTP101 cannot-capture at Packed (test_diagnostics.py:")
    assert text.endswith("\n  why: torch.export has no ops for packed quantised layers\n"
                         "  try: transform the float model, then quantise it")


def test_lvtp101_for_a_part_that_torchscript_made() -> None:
    model = vit(fused)
    model.head = torch.jit.trace(model.head, torch.zeros(2, 64, 32))
    text = refusal(lambda: lvtp_fx.transform(model, (picture(),)))
    assert text.startswith("LVTP101 cannot-capture at TinyViT")
    assert text.endswith("why: a part of it is TorchScript's, which torch.export does not take\n"
                         "  try: the module that was scripted")


def test_lvtp101_for_flex_attention() -> None:
    text = refusal(lambda: lvtp_fx.transform(vit(lambda _, q, k, v: flex_attention(q, k, v)), (picture(),)))
    assert text.startswith("LVTP101 cannot-capture at ")
    assert text.endswith("try: write flex_attention as F.scaled_dot_product_attention with a mask, or pass the encoder "
                         "alone")


def test_lvtp202_where_scoring_would_cost_more_than_it_saves(it: Case) -> None:
    text = refusal(lambda: lvtp_fx.transform(it.captured, keep_ratio=0.99, sites=(3,)))
    head, expected, got, why, hint = text.splitlines()
    assert head == "LVTP202 flops-cut-unreachable at encoder.model.blocks.3.attn"
    assert expected == "  expected: a reduction that saves more FLOPs than scoring, owners and restores cost"
    assert got.startswith("  got: +")
    assert got.endswith("% FLOPs at keep_ratio=0.99")
    assert why == "  why: the graph would be slower than the dense one: too few tokens are dropped, or most ops " \
        "after this block need the full grid"
    assert hint == "  try: a smaller keep_ratio, or earlier sites, e.g. sites=(0, 1, 2); or leave this model dense"
    assert lvtp_fx.transform(it.captured, keep_ratio=0.5, sites=(0,)).report.flops_cut > 0


def test_lvtp203(it: Case) -> None:
    for sites in ((2, 0), (1, 1), (-1, 0)):
        text = refusal(lambda sites=sites: lvtp_fx.transform(it.captured, sites=sites, keep_ratio=(0.9, 0.5)))
        assert text.startswith("LVTP203 sites-out-of-range at Config.sites\n  expected: blocks in rising order, each")
    assert refusal(lambda: lvtp_fx.transform(it.captured, sites=(1, 4))) == (
        "LVTP203 sites-out-of-range at Config.sites\n  expected: block indices in [-4, 4)\n  got: (1, 4)\n"
        "  why: the encoder has 4 blocks\n"
        '  try: sites="auto", or lvtp_fx.explain(model, example_inputs) to see the blocks'
    )


def test_lvtp301_for_another_computation(it: Case) -> None:
    fast = copy.deepcopy(it.fast)
    first = next(iter(fast.graph.find_nodes(op="call_function", target=torch.ops.aten.conv2d.default)))
    with fast.graph.inserting_after(first):
        doubled = fast.graph.call_function(torch.ops.aten.mul.Tensor, (first, 2.0))
    first.replace_all_uses_with(doubled, lambda user: user is not doubled)
    fast.recompile()
    text = refusal(lambda: lvtp_fx.verify(it.model, fast, (it.x,)))
    assert text.startswith("LVTP301 verify-mismatch at encoder.model.patch_embed (node transpose)\n"
                           "  expected: a relative error of at most 2e-05\n")
    assert "report it with lvtp_fx.explain(model, example_inputs)" in text
    lvtp_fx.verify(it.model, it.fast, (it.x,))


class Dropping(nn.Module):
    """Draws random numbers in eval mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = vit(fused, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(self.inner(image), 0.1)


class Restless(Dropping):
    """Draws numbers that are no tensors, which the graph does not hold."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.inner(image) * self.draw()


@pytest.mark.parametrize("draw", [random.random, lambda: np.random.rand()], ids=["random", "numpy"])
@pytest.mark.parametrize("batch", [1, 2])
def test_numbers_that_python_draws_are_said_to_be_fixed(draw: Callable[[], float], batch: int) -> None:
    report = lvtp_fx.explain(Restless(draw).eval(), picture(batch), keep_ratio=0.5)
    assert report.notes == (
        "forward computes something else from one call to the next, from the same inputs: numbers that Python or "
        "NumPy drew while it was captured are fixed in the graph",)
    assert lvtp_fx.explain(Restless(lambda: 0.5).eval(), picture(batch), keep_ratio=0.5).notes == ()


def test_lvtp301_for_a_model_that_draws_random_numbers() -> None:
    model, x = Dropping().eval(), picture()
    fast = lvtp_fx.transform(model, (x,), keep_ratio=0.5)
    (note,) = fast.report.notes
    where = r"the top level \(node native_dropout, test_diagnostics\.py:\d+\)"
    assert re.fullmatch(rf"aten\.native_dropout\.default at {where} draws random numbers, also in eval mode: "
                        "no two runs give the same, and verify cannot compare them", note)
    text = refusal(lambda: lvtp_fx.verify(model, fast, (x,)))
    assert text.startswith("LVTP301 verify-mismatch at the top level (node native_dropout, ")
    assert "got: aten.native_dropout.default, which draws random numbers in eval mode, too" in text
    assert text.endswith("try: F.dropout(x, p, self.training) in the model, then transform and verify again")


def test_lvtp302(it: Case) -> None:
    assert refusal(lambda: lvtp_fx.decisions(it.model, it.x)) == (
        "LVTP302 not-a-transformed-module at EncoderSegmenter\n"
        "  expected: what lvtp_fx.transform returned\n  got: EncoderSegmenter\n"
        "  why: only its graph says where the decisions are taken\n"
        "  try: fast = lvtp_fx.transform(model, example_inputs), then pass fast (torch.save loses its graph)"
    )
    other = ZOO["explicit_vit"]
    text = refusal(lambda: lvtp_fx.verify(other.build("linear"), it.fast, (other.image(),)))
    assert "expected: the model that was transformed\n  got: another graph" in text


def test_lvtp302_for_other_weights(it: Case) -> None:
    fast = copy.deepcopy(it.fast)
    lvtp_fx.verify(it.model, fast, it.x)  # a copy has weights of its own, which are the same
    with torch.no_grad():
        fast.get_parameter("encoder.model.blocks.1.mlp.fc1.weight").mul_(2)
    assert refusal(lambda: lvtp_fx.verify(it.model, fast, it.x)) == (
        "LVTP302 not-a-transformed-module at encoder.model.blocks.1.mlp.fc1.weight\n"
        "  expected: a module with the weights of the model\n  got: other ones\n"
        "  why: the two would differ wherever they are used\n"
        "  try: pass the model that was transformed; or load one state dict into both"
    )


@pytest.mark.parametrize("shape", [(2, 4, 128, 128), (2, 3, 128, 64), (3, 128, 128)])
def test_lvtp401(it: Case, shape: tuple[int, ...]) -> None:
    assert refusal(lambda: it.fast(torch.rand(shape))) == (
        "LVTP401 input-does-not-fit at input 'image'\n  expected: shape [any, 3, 128, 128]\n"
        f"  got: shape {list(shape)}\n"
        "  why: the token grid and the position tables were captured for that size\n"
        "  try: resize the input, or call lvtp_fx.transform again with an example of this size; "
        "lvtp_fx.BySize(model) does so for every size that it meets"
    )


class Offset(nn.Module):
    """Makes a tensor on the device that it runs on: its captured graph holds that device."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(image + torch.arange(128, device=image.device))
        return out


def test_lvtp402_where_the_graph_holds_the_old_device(it: Case) -> None:
    fast = lvtp_fx.transform(Offset(it.model), (it.x,), flops_cut=0.2)
    assert refusal(lambda: fast.to("meta")(it.x.to("meta"))) == (
        "LVTP402 graph-holds-another-device at input 'image'\n  expected: a tensor on cpu\n  got: meta\n"
        "  why: the captured graph creates tensors on the device that it was captured on\n"
        "  try: move the model first, then call lvtp_fx.transform on it"
    )


def test_codes_are_unique_and_errors_survive_a_process_boundary() -> None:
    assert len({c.number for c in Code}) == len({c.slug for c in Code}) == len(Code)
    error = LvtpError(Code.BAD_INPUT, where="a", expected="b", got="c", why="d", hint="e")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert (again.code, again.slug, again.hint) == ("LVTP401", "input-does-not-fit", "e")
