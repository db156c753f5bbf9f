"""What users do with models and inputs: it works as it does with the dense model, or is refused (test_diagnostics)."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import lvtp_fx
from lvtp_fx.decisions import Decision
from lvtp_fx.models.segmenter import Segmenter, SegmenterConfig
from tests.conftest import CUT, Case
from tests.test_laws import relative
from tests.tiny import fused, picture, vit
from tests.zoo import ZOO

Cases = Callable[[str, str], Case]
NAME = "vit_tiny_patch16_224"


@pytest.fixture
def it(case: Cases) -> Case:
    return case(NAME, "linear")


@pytest.fixture(autouse=True)
def no_grad() -> Any:
    with torch.no_grad():
        yield


def test_an_empty_batch_gives_empty_logits(it: Case) -> None:
    assert it.fast(it.x[:0]).shape == it.model(it.x[:0]).shape == (0, 8, 128, 128)


def test_an_empty_batch_passes_where_neighbours_are_looked_for_in_bands() -> None:
    """4,096 tokens: most are compared with those around them only."""
    model = Segmenter(SegmenterConfig(img_size=256, patch_size=4, C=8, depth=3, heads=1, classes=3))
    fast = lvtp_fx.transform(model, (torch.rand(1, 3, 256, 256),), keep_ratio=0.5, sites=(0,))
    assert fast(torch.rand(0, 3, 256, 256)).shape == (0, 3, 256, 256)


class Options(nn.Module):
    """Takes more than images: a factor, an optional prompt, a switch, and two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = vit(fused, 2)

    def forward(
        self, image: torch.Tensor, scale: float = 1.0, prompt: torch.Tensor | None = None, upsample: bool = False,
        size: tuple[int, int] = (16, 16),
    ) -> torch.Tensor:
        x = self.inner(image) * scale
        x = x if prompt is None else x + prompt
        return nn.functional.interpolate(x, size) if upsample else x


def test_an_input_that_is_no_tensor_is_fixed_and_checked() -> None:
    model, x = Options().eval(), picture()
    fast = lvtp_fx.transform(model, (x, 2.0, None), keep_ratio=0.5)
    assert fast(x, 2.0, None).shape == (2, 5, 8, 8)
    copied = copy.deepcopy(fast)
    copied.graph.eliminate_dead_code()
    copied.recompile()
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, 2.0, None), fast(x, 2.0, None))
    for run in (fast, copied):
        for inputs, name in (((x, 3.0, None), "scale"), ((x, 2.0, torch.ones(1)), "prompt")):
            with pytest.raises(lvtp_fx.LvtpError, match=f"LVTP401 input-does-not-fit at input '{name}'"):
                run(*inputs)
    named = lvtp_fx.transform(model, ((x,), {"upsample": True, "size": (16, 16)}), keep_ratio=0.5)
    assert named(x, upsample=True, size=(16, 16)).shape == (2, 5, 16, 16)
    for options in ({"upsample": False, "size": (16, 16)}, {"upsample": True, "size": (64, 16)}):
        with pytest.raises(lvtp_fx.LvtpError, match="LVTP401"):
            named(x, **options)
    assert lvtp_fx.BySize(model, keep_ratio=0.5)(x, 3.0).shape == (2, 5, 8, 8)


def test_under_autocast_the_same_tokens_live_on(it: Case) -> None:
    for before, after in _under_autocast(it, lvtp_fx.transform(it.captured, flops_cut=CUT, feature="keys")):
        assert (before.kept == after.kept).float().mean() > 0.9  # queries and keys are the model's, and are rounded
        assert (before.owner == after.owner).float().mean() > 0.9
    for before, after in _under_autocast(it, it.fast):
        # So is the stream, by more. One other token moves all between it and the one that it replaces, so tokens are
        # looked for, not compared place by place.
        same = [len(set(a) & set(b)) for a, b in zip(before.kept.tolist(), after.kept.tolist(), strict=True)]
        assert sum(same) > 0.97 * before.kept.numel()
        assert (before.owner == after.owner).float().mean() > 0.9


def _under_autocast(it: Case, fast: torch.fx.GraphModule) -> Iterator[tuple[Decision, Decision]]:
    """The decisions of each site, without autocast and with it."""
    plain = lvtp_fx.decisions(fast, (it.x,))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = lvtp_fx.decisions(fast, (it.x,))
    return zip(plain, rounded, strict=True)


def test_bytes_are_no_floats() -> None:
    """A model that scales bytes and not floats: its graph does what the example asked for."""

    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = vit(fused, 2)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.inner(image.float() / 255 if image.dtype == torch.uint8 else image)
            return out

    model, image = Either(), torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    fast = lvtp_fx.transform(model, (image,), flops_cut=0)
    assert torch.equal(fast(image), model(image))
    with pytest.raises(lvtp_fx.LvtpError, match="LVTP401"):
        fast(image.float())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_image_goes_through_as_in_the_dense_model_and_spoils_no_other(it: Case, value: float) -> None:
    bad = it.x.clone()
    bad[1, 0, 5, 5] = value
    pruned, dense = it.fast(bad), it.model(bad)
    assert torch.equal(pruned.isnan(), dense.isnan())
    assert bool(pruned[1].isnan().all())
    assert torch.equal(pruned[[0, 2]], it.fast(it.x)[[0, 2]])


def test_an_image_without_any_contrast_has_finite_logits(it: Case) -> None:
    assert bool(it.fast(torch.zeros_like(it.x)).isfinite().all())


def test_strided_and_channels_last_inputs(it: Case) -> None:
    turned = it.x.transpose(2, 3).contiguous().transpose(2, 3)
    assert not turned.is_contiguous()
    for x in (turned, it.x.contiguous(memory_format=torch.channels_last), it.x.expand(3, -1, -1, -1)):
        assert relative(it.fast(x), it.fast(it.x)) < 1e-5


def test_a_model_in_train_mode_is_captured_in_eval_and_left_as_it_was(it: Case) -> None:
    model = ZOO[NAME].build("linear").train()
    model.encoder.model.blocks[1].eval()
    modes = [m.training for m in model.modules()]
    fast = lvtp_fx.transform(model, (it.x,), flops_cut=CUT)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(fast(it.x), it.fast(it.x))


def test_a_model_is_unchanged_after_a_refusal(it: Case) -> None:
    for bad in ({"flops_cut": 0.97}, {"sites": (9,)}, {"flops_cut": 3}):
        with pytest.raises(lvtp_fx.LvtpError):
            lvtp_fx.transform(it.model, (it.x,), **bad)
    for key, value in it.model.state_dict().items():
        assert torch.equal(value, it.state[key])
    assert torch.equal(it.model(it.x), it.output)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(it: Case, dtype: torch.dtype) -> None:
    """Transformed in half precision, moved to it afterwards, and under autocast."""
    model, x = ZOO[NAME].build("linear").to(dtype), it.x.to(dtype)
    fast = lvtp_fx.transform(model, (x,), flops_cut=CUT)
    assert fast(x).dtype == dtype
    lvtp_fx.verify(model, fast, (x,))
    moved = copy.deepcopy(it.fast).to(dtype)
    assert torch.equal(moved(x), fast(x))
    with torch.autocast("cpu", dtype=dtype):
        assert it.fast(it.x).dtype == it.model(it.x).dtype


def test_capture_does_not_depend_on_the_mode_it_is_called_in(it: Case) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        fast = lvtp_fx.transform(it.model, (it.x,), flops_cut=CUT)
    assert torch.equal(fast(it.x), it.fast(it.x))


def test_copies_are_whole(it: Case) -> None:
    again = copy.deepcopy(it.fast)
    assert torch.equal(again(it.x), it.fast(it.x))
    assert again.report == it.fast.report
    assert len(lvtp_fx.decisions(again, it.x)) == 2
    lvtp_fx.verify(it.captured, again, (it.x,))


def test_a_saved_module_runs_but_its_graph_is_lost(it: Case) -> None:
    file = io.BytesIO()
    torch.save(it.fast, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again(it.x), it.fast(it.x))
    assert again.report == it.fast.report
    with pytest.raises(lvtp_fx.LvtpError, match=r"LVTP302.*\n.*\n.*\n.*\n.*torch.save loses its graph"):
        lvtp_fx.decisions(again, it.x)


def test_a_module_moves_to_another_device(it: Case) -> None:
    """meta stands for any device: an op that held the old one would fail."""
    assert copy.deepcopy(it.fast).to("meta")(it.x.to("meta")).shape == it.output.shape


@dataclass
class Prediction:
    logits: torch.Tensor
    extra: list[torch.Tensor | None]


pytree.register_dataclass(Prediction)


class Wrapped(nn.Module):
    """Another signature and another output around a segmenter."""

    def __init__(self, inner: nn.Module, kind: str) -> None:
        super().__init__()
        self.inner, self.kind = inner, kind

    def forward(self, image: torch.Tensor, shift: torch.Tensor, *, double: bool = False) -> Any:
        logits = self.inner(image) + shift
        extra = [logits * 2 if double else logits, None]
        if self.kind == "dict":
            return {"logits": logits, "extra": extra}
        return (logits, extra) if self.kind == "tuple" else Prediction(logits, extra)


@pytest.mark.parametrize("kind", ["dict", "tuple", "dataclass"])
def test_outputs_keep_their_structure_and_keyword_inputs_their_names(it: Case, kind: str) -> None:
    model = Wrapped(it.model, kind)
    inputs = {"image": it.x, "shift": torch.ones(3, 8, 1, 1), "double": True}
    fast = lvtp_fx.transform(model, inputs, flops_cut=CUT)
    got, want = fast(**inputs), model(**inputs)
    assert type(got) is type(want)
    assert pytree.tree_structure(got) == pytree.tree_structure(want)
    logits, double = [leaf for leaf in pytree.tree_leaves(got) if leaf is not None]
    assert torch.equal(double, 2 * logits)
    assert relative(logits, it.fast(it.x) + 1) < 1e-5
    lvtp_fx.verify(model, fast, inputs)
    one = {name: value[:1] if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    assert pytree.tree_leaves(fast(**one))[0].shape == (1, 8, 128, 128)


def test_graph_modules_and_exported_programs_are_accepted(it: Case) -> None:
    traced = torch.fx.symbolic_trace(it.model)
    fast = lvtp_fx.transform(traced, (it.x,), flops_cut=CUT)
    assert torch.equal(fast(it.x), it.fast(it.x))
    lvtp_fx.verify(traced, fast, (it.x,))
    program = torch.export.export(it.model, (it.x,))  # without a dynamic batch: it has to stay at 3
    fast = lvtp_fx.transform(program, flops_cut=CUT)
    assert torch.equal(fast(it.x), it.fast(it.x))
    assert fast.report.notes == ("the batch size is fixed at 3: the program was exported for it alone",)
    with pytest.raises(lvtp_fx.LvtpError, match=r"LVTP401.*\n  expected: shape \[3, 3, 128, 128\]"):
        fast(it.x[:1])


def test_report_and_explain_agree_and_are_plain_data(it: Case) -> None:
    report = it.fast.report
    assert lvtp_fx.explain(it.model, (it.x,), flops_cut=CUT) == report
    assert report.to_dict()["flops_cut"] == report.flops_cut
    assert [b["path"] for b in report.to_dict()["blocks"]] == [f"encoder.model.blocks.{i}.attn" for i in range(4)]
    assert [b.tokens_dense for b in report.blocks] == [65] * 4
    first, second = report.kept
    assert [b.tokens for b in report.blocks] == [65, first + 1, second + 1, second + 1]
    assert [b.site for b in report.blocks] == [True, True, False, False]
    assert all(b.source.startswith("attention.py:") for b in report.blocks)
    text = str(report)
    assert "encoder.model.blocks.1.attn" in text
    assert f"GFLOPs an image, whole model: {report.gflops_dense:.3f} -> {report.gflops_pruned:.3f}" in text


def test_config_object_overrides_and_lists(it: Case) -> None:
    config = lvtp_fx.Config(flops_cut=CUT, sites=[0, 1], keep_ratio=[0.9, 0.8])  # type: ignore[arg-type]
    report = lvtp_fx.explain(it.captured, config=config, keep_ratio=None)
    assert report == it.fast.report
    assert lvtp_fx.explain(it.captured, config=config).kept == (57, 45)
