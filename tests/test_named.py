"""Models by name: each source with one that loads, and one that is refused and says why."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import lvtp_fx
from lvtp_fx.errors import LvtpError
from lvtp_fx.models.backbones import timm_backbone, torchvision_backbone
from lvtp_fx.models.named import Named, load_named
from lvtp_fx.models.request import Request
from lvtp_fx.models.scenes import CLASS_NAMES, PALETTE
from lvtp_fx.models.segmenter import Segmenter, SegmenterConfig

TINY = SegmenterConfig(img_size=32, patch_size=4, classes=5, C=32, depth=4, heads=2)
FUNCTIONS = """
import torch
from lvtp_fx.models.checkpoint import Spec
from lvtp_fx.models.segmenter import Segmenter, SegmenterConfig

def bare():
    return Segmenter(SegmenterConfig(img_size=32, patch_size=4, classes=5, C=32, depth=4, heads=2))

def with_spec():
    return bare(), Spec((32, 32), 5, 4, 1.0, (0.1,) * 3, (0.2,) * 3)

def sizeless():
    return torch.nn.Conv2d(3, 2, 1)

def wrong():
    return "a model"

made, no_function = bare(), {}
"""


@pytest.fixture
def hf_folder(tmp_path: Path) -> Path:
    from transformers import BeitConfig, BeitForSemanticSegmentation, BeitImageProcessor

    config = BeitConfig(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, image_size=64,
                        patch_size=8, out_indices=[0, 1, 2, 3], num_labels=5, use_auxiliary_head=False)
    BeitForSemanticSegmentation(config).save_pretrained(tmp_path / "beit")
    BeitImageProcessor(size={"height": 64, "width": 64}, image_mean=[0.2] * 3).save_pretrained(tmp_path / "beit")
    return tmp_path / "beit"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    card = {"what": "tiny", "segmenter": asdict(TINY), "img_size": [32, 32], "classes": 5, "ignore_index": 4,
            "normalize": {"scale": "0-1", "mean": [0.5] * 3, "std": [0.25] * 3}}
    (folder / "model.json").write_text(json.dumps(card))
    save_file(Segmenter(TINY).state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder has a module of the user's."""
    (tmp_path / "users_own.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "users_own", raising=False)
    return tmp_path


def check(named: Named, size: tuple[int, int], classes: int) -> None:
    """It takes images of its size, and can be asked for what it predicts."""
    assert named.img_size == size
    assert named.count_classes() == classes
    assert len(named.palette(classes)) >= classes
    image = torch.randint(0, 256, (3, 50, 60), dtype=torch.uint8)
    [labels] = named.predictor()([image])
    assert labels.shape == (50, 60)
    assert int(labels.max()) < classes


def refused(request: Request, message: str, code: str = "LVTP106") -> str:
    with pytest.raises(LvtpError, match=f"(?s){code} .*{message}") as caught:
        load_named(request)
    return str(caught.value)


def test_bundled() -> None:
    named = load_named(Request("bundled", size=(192, 192)))
    check(named, (192, 192), 7)
    assert (named.class_names, named.colours) == (CLASS_NAMES, PALETTE)
    refused(Request("bundled", size=(64, 64)), "192x192, which it was trained for")
    refused(Request("bundled", head="dpt"), "this model brings its own")


def test_timm_backbone_gets_a_head_and_the_statistics_of_timm() -> None:
    named = load_named(Request("timm:vit_tiny_patch16_224", (32, 64), "mask", 5))
    check(named, (32, 64), 5)
    assert named.notes == ("all weights are random",)
    white = torch.full((3, 32, 64), 255, dtype=torch.uint8)
    assert torch.allclose(named.prepared([white]), torch.ones(1, 3, 32, 64))  # mean and deviation 0.5
    dot = torch.zeros(3, 16, 16, dtype=torch.uint8)
    dot[:, 8, 8] = 200
    smooth = F.interpolate(dot[None].float(), (32, 64), mode="bicubic", antialias=True).round().clamp(0, 255)
    assert torch.allclose(named.prepared([dot]), smooth / 127.5 - 1, atol=0.02)  # as timm's models are trained
    again = load_named(Request("timm:vit_tiny_patch16_224", (32, 64), "mask", 5))
    assert torch.equal(named.dense(*named.inputs(1)), again.dense(*again.inputs(1)))
    refused(Request("timm:vit_tiny_patch61_224"), "such as vit_tiny_patch16_224")
    refused(Request("timm:maxvit_pico_rw_256", (100, 100)), "expected: a model of timm that gives feature maps")


def test_torchvision_backbone() -> None:
    named = load_named(Request("torchvision:vit_b_16", (32, 32)))
    check(named, (32, 32), 8)
    grey = torch.full((3, 32, 32), 128, dtype=torch.uint8)
    assert named.prepared([grey])[0, :, 0, 0].tolist() == pytest.approx([0.0741, 0.2052, 0.4265], abs=1e-3)
    refused(Request("torchvision:vit_b_16", (32, 64)), "square images")
    refused(Request("torchvision:resnet18"), "no VisionTransformer")


def test_transformers_folder(hf_folder: Path) -> None:
    for name in (f"hf:{hf_folder}", str(hf_folder)):
        named = load_named(Request(name))
        check(named, (64, 64), 5)
        assert named.class_names == tuple(f"LABEL_{i}" for i in range(5))
        assert not named.notes
    grey = torch.full((3, 64, 64), 51, dtype=torch.uint8)
    assert named.prepared([grey]).abs().max() < 1e-5  # 51 / 255 is the mean of its image processor


def test_prediction_is_that_of_the_image_processors_pipeline(hf_folder: Path) -> None:
    from transformers import AutoImageProcessor

    named = load_named(Request(f"hf:{hf_folder}"))
    image = torch.randint(0, 256, (3, 50, 60), dtype=torch.uint8)
    processor = AutoImageProcessor.from_pretrained(hf_folder)
    output = named.dense(**processor(images=[image], return_tensors="pt"))
    [expected] = processor.post_process_semantic_segmentation(output, [(50, 60)])
    [found] = named.predictor()([image])
    assert torch.equal(found, expected)


def test_pruned_transformers_model_predicts_like_the_dense_one(hf_folder: Path) -> None:
    named = load_named(Request(f"hf:{hf_folder}"))
    fast = lvtp_fx.transform(named.model, named.inputs(1), keep_ratio=0.8)
    image = torch.randint(0, 256, (3, 50, 60), dtype=torch.uint8)
    dense, pruned = (named.predictor(run)([image])[0] for run in (None, fast))
    assert 0.5 < float((dense == pruned).double().mean()) <= 1


def test_transformers_folder_that_lacks_something(hf_folder: Path, tmp_path: Path) -> None:
    refused(Request(f"hf:{tmp_path}"), "no config.json there")
    (hf_folder / "preprocessor_config.json").unlink()
    named = load_named(Request(f"hf:{hf_folder}"))
    assert "ImageNet's mean" in named.notes[0]
    state = load_file(hf_folder / "model.safetensors")
    head = [name for name in state if name.startswith("decode_head.classifier")]
    assert head
    save_file({name: state[name] for name in state if name not in head}, hf_folder / "model.safetensors",
              {"format": "pt"})
    refused(Request(f"hf:{hf_folder}"), r"none for decode_head\.classifier")
    (hf_folder / "model.safetensors").write_bytes(b"junk")
    refused(Request(f"hf:{hf_folder}"), "AutoModelForUniversalSegmentation can load")
    config = json.loads((hf_folder / "config.json").read_text())
    (hf_folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    refused(Request(f"hf:{hf_folder}"), "AutoModelForUniversalSegmentation can load")


def test_checkpoint_folder(checkpoint: Path, tmp_path: Path) -> None:
    named = load_named(Request(str(checkpoint)))
    check(named, (32, 32), 5)
    assert (named.class_names, named.colours) == ((), None)
    card = json.loads((checkpoint / "model.json").read_text())
    colours = [[9, 8, i] for i in range(5)]
    (checkpoint / "model.json").write_text(json.dumps({**card, "class_names": list("abcde"), "palette": colours}))
    named = load_named(Request(str(checkpoint)))
    assert (named.class_names, named.palette(5)) == (tuple("abcde"), tuple(map(tuple, colours)))
    (checkpoint / "model.safetensors").unlink()
    refused(Request(str(checkpoint)), r"it has no model\.safetensors")
    refused(Request(str(tmp_path)), r"it has no model\.json")


def test_exported_program(tmp_path: Path) -> None:
    model = Segmenter(TINY).eval()
    x = torch.rand(2, 3, 32, 32)
    free = {"image": {0: torch.export.Dim.DYNAMIC}}
    torch.export.save(torch.export.export(model, (x,), dynamic_shapes=free), tmp_path / "model.pt2")
    named = load_named(Request(str(tmp_path / "model.pt2")))
    check(named, (32, 32), 5)
    assert named.inputs(9)[0].shape == (9, 3, 32, 32)
    assert torch.allclose(named.dense(x), model(x), atol=1e-5)
    assert lvtp_fx.explain(named.model, named.inputs(1), flops_cut=0.2).sites
    refused(Request(str(tmp_path / "model.pt2"), size=(64, 64)), "what the program was exported with")
    refused(Request(str(tmp_path / "none.pt2")), "no such file")
    (tmp_path / "text.pt2").write_text("no archive")
    refused(Request(str(tmp_path / "text.pt2")), "no archive")
    torch.save(model.state_dict(), tmp_path / "weights.pt2")
    refused(Request(str(tmp_path / "weights.pt2")), "an archive of something else")
    refused(Request(str(tmp_path / "model.pt2"), device="nowhere"), "a device of this machine")
    torch.export.save(torch.export.export(torch.nn.Linear(3, 2), (torch.rand(1, 3),)), tmp_path / "linear.pt2")
    refused(Request(str(tmp_path / "linear.pt2")), "0 such inputs")


def test_exported_program_of_a_fixed_batch_is_run_on_its_own_inputs(tmp_path: Path) -> None:
    model, x = Segmenter(TINY).eval(), torch.rand(2, 3, 32, 32)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "model.pt2")
    named = load_named(Request(str(tmp_path / "model.pt2")))
    assert torch.equal(named.inputs(9)[0], x)
    assert named.notes[1] == "the program is run on the inputs that it was exported with, a batch of 2"
    photos = [torch.zeros(3, 40, 50, dtype=torch.uint8)] * 3
    assert torch.equal(named.dense(named.prepared(photos[:2])), model(named.prepared(photos[:2])))
    for images in (lambda: named.prepared(photos), lambda: named.predictor()):
        with pytest.raises(LvtpError, match=r"(?s)LVTP105 .*takes a batch of \d RGB.*\(2, 3, 32, 32\), and no others"):
            images()


def test_function_of_the_working_folder(in_folder: Path) -> None:
    path = list(sys.path)
    bare = load_named(Request("users_own:bare"))
    check(bare, (32, 32), 5)
    assert "ImageNet's mean" in bare.notes[0]
    spec = load_named(Request("users_own:with_spec"))
    assert spec.notes == ()
    assert not torch.allclose(bare.inputs(1)[0], spec.inputs(1)[0], atol=0.1)
    assert sys.path == path
    check(load_named(Request("users_own:made")), (32, 32), 5)
    refused(Request("users_own:wrong"), "got: str")
    refused(Request("users_own:no_function"), "got: dict")
    refused(Request("users_own:sizeless"), "--size HEIGHTxWIDTH", "LVTP103")
    assert load_named(Request("users_own:sizeless", size=(8, 8))).count_classes() == 2
    refused(Request("users_own:nothing"), "nothing")
    refused(Request("nobodys:function"), "No module named 'nobodys'")
    refused(Request("no-name:function"), "invalid format: 'no-name:function'")


def test_error_inside_the_users_function_is_refused_with_its_line_and_keeps_its_traceback(in_folder: Path) -> None:
    lines = {"divides": "1 / 0", "names": "sys.nothing", "imports": "__import__('nobody')"}
    (in_folder / "broken.py").write_text(
        "import sys\n" + "".join(f"def {name}(): return {line}\n" for name, line in lines.items()))
    for name, error in (("divides", ZeroDivisionError), ("names", AttributeError), ("imports", ModuleNotFoundError)):
        line = rf"LVTP106 (.|\n)*{error.__name__}: .*\(broken\.py:\d in {name}: "
        with pytest.raises(LvtpError, match=line) as caught:
            load_named(Request(f"broken:{name}"))
        assert isinstance(caught.value.__cause__, error)


@pytest.mark.parametrize("name", ["nothing", "", "timm:", "hf:", "some/where"])
def test_other_names_are_refused_with_the_forms(name: str) -> None:
    refused(Request(name), "bundled, timm:NAME, torchvision:NAME, hf:FOLDER")


def test_dtype_and_device_are_those_of_model_and_inputs() -> None:
    named = load_named(Request("timm:vit_tiny_patch16_224", (32, 32), dtype=torch.float64))
    assert {p.dtype for p in named.dense.parameters()} == {named.inputs(1)[0].dtype} == {torch.float64}
    refused(Request("bundled", device="nowhere"), "a device of this machine")


@pytest.mark.parametrize(("make", "shape", "other"), [
    (timm_backbone, {"name": "vit_tiny_patch16_224", "img_size": 32, "depth": 2}, {"depth": 3}),
    (torchvision_backbone, {"name": "vit_b_16", "image_size": 32}, {"image_size": 64}),
], ids=["timm", "torchvision"])
def test_backbone_takes_the_weights_of_a_file(
    tmp_path: Path, make: Callable[..., torch.nn.Module], shape: dict[str, Any], other: dict[str, Any]
) -> None:
    first, second = make(**shape), make(**shape)
    name = next(key for key, value in first.state_dict().items() if value.ndim == 2)
    assert not torch.equal(first.state_dict()[name], second.state_dict()[name])
    save_file(first.state_dict(), tmp_path / "weights.safetensors")
    torch.save(first.state_dict(), tmp_path / "weights.pth")
    for file in ("weights.safetensors", "weights.pth"):
        loaded = make(**shape, weights=tmp_path / file)
        assert all(torch.equal(value, first.state_dict()[key]) for key, value in loaded.state_dict().items())
    with pytest.raises(RuntimeError, match="state_dict"):
        make(**{**shape, **other}, weights=tmp_path / "weights.pth")


def test_weights_of_a_classifier_serve_at_another_size(tmp_path: Path) -> None:
    import timm

    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "weights.pth")
    request = Request("timm:vit_tiny_patch16_224", (32, 64), weights=tmp_path / "weights.pth")
    named = load_named(request)
    check(named, (32, 64), 8)
    assert named.notes == ("the head's weights are random",)
    refused(replace(request, weights=tmp_path / "none.pth"), r"no file .*none\.pth")
    refused(replace(request, name="timm:eva02_tiny_patch14_224", size=(28, 28)), "Missing key")


@torch.no_grad()
@pytest.mark.parametrize(("model", "head"), [
    ("timm:deit_tiny_patch16_224", "mask"), ("torchvision:vit_b_16", "linear"),
])
def test_weights_of_a_whole_segmenter_leave_nothing_random(tmp_path: Path, model: str, head: Any) -> None:
    request = Request(model, (32, 32), head, 3)
    tuned = load_named(request).dense
    for parameter in tuned.parameters():
        parameter.add_(0.01)
    torch.save(tuned.state_dict(), tmp_path / "tuned.pt")
    named = load_named(replace(request, weights=tmp_path / "tuned.pt"))
    x = named.inputs(2)[0]
    assert named.notes == ()
    assert torch.equal(named.dense(x), tuned(x))
    refused(replace(request, classes=4, weights=tmp_path / "tuned.pt"), "size mismatch")
    # Where no key fits, the error names some of them.
    error = refused(replace(request, name="timm:eva02_tiny_patch14_224", weights=tmp_path / "tuned.pt", size=(28, 28)),
                    r"Missing key.* and \d+ more")
    assert len(error) < 2000


@pytest.mark.parametrize("model", ["timm:vit_tiny_patch16_224", "torchvision:vit_b_16"])
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x80", b"junk", b"<!DOCTYPE html>" * 9, b"PK\x03\x04" + b"\0" * 40],
                         ids=["empty", "a byte", "text", "page", "zip"])
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, model: str, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    refused(Request(model, (32, 32), weights=tmp_path / name), f"got: no weights in .*{name}")


@pytest.mark.parametrize("model", ["timm:vit_tiny_patch16_224", "torchvision:vit_b_16"])
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, model: str) -> None:
    torch.save(torch.ones(3), tmp_path / "weights.pth")
    refused(Request(model, (32, 32), weights=tmp_path / "weights.pth"), r"got: no weights in .*weights\.pth")


@pytest.mark.parametrize(("missing", "name"), [
    ("timm", "timm:vit_tiny_patch16_224"), ("torchvision.models", "torchvision:vit_b_16"), ("transformers", "hf:x"),
])
def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, missing: str, name: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"pip install"):
        load_named(Request(name))
