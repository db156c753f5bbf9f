"""The bundled checkpoint keeps its promises; others load from their folder, or say why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lvtp_fx.models
from lvtp_fx.models.adapters import timm_segmenter
from lvtp_fx.models.checkpoint import Spec, load_bundled, load_checkpoint, save_checkpoint
from lvtp_fx.models.scenes import CLASS_NAMES
from lvtp_fx.models.segmenter import Segmenter, SegmenterConfig, normalize
from lvtp_fx.models.train import HELD_OUT, STAGES, Stage, evaluate

BUNDLED = Path(lvtp_fx.models.__path__[0]) / "checkpoint"
TINY = SegmenterConfig(img_size=32, C=8, depth=1, heads=2)
TIMM_KWARGS = {"img_size": [32, 48], "num_classes": 0, "depth": 2, "embed_dim": 32, "num_heads": 2}
Card = dict[str, Any]


@pytest.fixture(scope="module")
def bundled() -> tuple[nn.Module, Spec]:
    return load_bundled()


def test_bundled_files_are_small() -> None:
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) <= 8_000_000


def test_bundled_model_has_enough_tokens(bundled: tuple[nn.Module, Spec]) -> None:
    model, spec = bundled
    assert isinstance(model, Segmenter)
    assert not model.training
    assert model.config.grid**2 >= 256
    assert spec.img_size == (model.config.img_size, model.config.img_size)
    assert (spec.classes, spec.ignore_index) == (len(CLASS_NAMES), None)


def test_bundled_model_predicts_held_out_scenes(bundled: tuple[nn.Module, Spec]) -> None:
    model, spec = bundled
    card = json.loads((BUNDLED / "model.json").read_text())["held_out"]
    assert card["first_seed"] == HELD_OUT
    meter = evaluate(model, spec.img_size[0], 24)
    assert meter.miou() >= 0.85
    assert 100 * meter.miou() == pytest.approx(card["miou"], abs=2)  # that one is over 256 scenes
    assert 100 * meter.boundary_miou() == pytest.approx(card["boundary_miou"], abs=3)
    assert evaluate(Segmenter(SegmenterConfig()), spec.img_size[0], 1).miou() < 0.3


def test_bundled_card_says_what_training_does_without_options() -> None:
    trained = json.loads((BUNDLED / "model.json").read_text())["trained"]
    assert trained["stages"] == [asdict(Stage.parse(text)) for text in STAGES]


def test_bundled_preprocessing_is_that_of_training(bundled: tuple[nn.Module, Spec]) -> None:
    images = torch.rand(2, 3, 192, 192)
    assert torch.allclose(bundled[1].preprocess(images), normalize(images))


def spec_with(**changed: Any) -> Spec:
    fields = {"img_size": (2, 4), "classes": 2, "ignore_index": None, "scale": 1.0, "mean": (0.0, 0.5, 1.0),
              "std": (1.0, 0.5, 2.0)}
    return Spec(**{**fields, **changed})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_preprocess_scales_then_centres(dtype: torch.dtype) -> None:
    images = torch.full((1, 3, 2, 4), 0.5, dtype=dtype)
    plain = spec_with().preprocess(images)
    assert (plain.shape, plain.dtype) == (images.shape, dtype)
    assert plain[0, :, 1, 2].tolist() == [0.5, 0, -0.25]
    assert spec_with(scale=255.0).preprocess(images)[0, :, 1, 2].tolist() == [127.5, 254, 63.25]


@pytest.mark.parametrize(("images", "message"), [
    (torch.rand(1, 3, 4, 2), r"must be \[B, 3, 2, 4\], got \[1, 3, 4, 2\]"),
    (torch.rand(3, 2, 4), r"must be \[B, 3, 2, 4\], got \[3, 2, 4\]"),
    (torch.rand(1, 1, 2, 4), r"must be \[B, 3, 2, 4\], got \[1, 1, 2, 4\]"),
    (torch.zeros(1, 3, 2, 4, dtype=torch.uint8), r"floats in \[0, 1\], got torch.uint8"),
])
def test_preprocess_refuses(images: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec_with().preprocess(images)


def write(folder: Path, state: dict[str, torch.Tensor], **kind: Any) -> Card:
    card = {
        "what": "a test", "img_size": [32, 32], "classes": 7, "ignore_index": None,
        "normalize": {"scale": "0-255", "mean": [1, 2, 3], "std": [4, 5, 6]}, **kind,
    }
    (folder / "model.json").write_text(json.dumps(card))
    save_file(state, folder / "model.safetensors")
    return card


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint of a tiny segmenter."""
    write(tmp_path, Segmenter(TINY).state_dict(), segmenter=asdict(TINY))
    return tmp_path


@torch.inference_mode()
def test_segmenter_comes_back(tmp_path: Path) -> None:
    model = Segmenter(TINY).eval()
    write(tmp_path, model.state_dict(), segmenter=asdict(TINY))
    loaded, spec = load_checkpoint(str(tmp_path))
    x = torch.rand(2, 3, 32, 32)
    assert not loaded.training
    assert torch.equal(loaded(x), model(x))
    assert not torch.equal(Segmenter(TINY)(x), model(x))
    assert spec == Spec((32, 32), 7, None, 255.0, (1, 2, 3), (4, 5, 6), "a test")


@torch.inference_mode()
def test_timm_model_comes_back(tmp_path: Path) -> None:
    encoder = timm.create_model("vit_tiny_patch16_224", **{**TIMM_KWARGS, "img_size": (32, 48)}).eval()
    head = nn.Linear(32, 5)
    state = {f"enc.{k}": v for k, v in encoder.state_dict().items()}
    state |= {f"head.{k}": v for k, v in head.state_dict().items()}
    write(tmp_path, state, timm_name="vit_tiny_patch16_224", timm_kwargs=TIMM_KWARGS, img_size=[32, 48], classes=5,
          ignore_index=255)
    model, spec = load_checkpoint(tmp_path)
    x = spec.preprocess(torch.rand(2, 3, 32, 48))
    planes = head(encoder.forward_features(x)[:, 1:]).reshape(2, 2, 3, 5).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(planes, (32, 48), mode="bilinear")
    assert not model.training
    assert (spec.img_size, spec.classes, spec.ignore_index) == ((32, 48), 5, 255)
    assert torch.allclose(model(x), expected, atol=1e-5)


@torch.inference_mode()
def test_timm_model_with_a_decoder_comes_back_from_half_the_bytes(tmp_path: Path) -> None:
    kwargs = {"img_size": [32, 48], "reg_tokens": 2, "depth": 2, "embed_dim": 32, "num_heads": 2}
    model = timm_segmenter("vit_tiny_patch16_224", "mask", 5, **{**kwargs, "img_size": (32, 48)}).half()
    write(tmp_path, model.state_dict(), timm_name="vit_tiny_patch16_224", timm_kwargs=kwargs, head="mask",
          img_size=[32, 48], classes=5)
    loaded, spec = load_checkpoint(tmp_path)
    x = spec.preprocess(torch.rand(2, 3, 32, 48))
    assert not loaded.training
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.allclose(loaded(x), model.float()(x), atol=1e-5)


@torch.inference_mode()
def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    card = {"segmenter": asdict(TINY), "what": "mine", "img_size": [32, 32], "classes": 7, "ignore_index": 255,
            "normalize": {"scale": "0-1", "mean": [0.5] * 3, "std": [0.2] * 3},
            "class_names": list("abcdefg"), "palette": [[i, 2 * i, 0] for i in range(7)], "licence": "kept"}
    model, x = Segmenter(TINY).eval(), torch.rand(1, 3, 32, 32)
    save_checkpoint(tmp_path / "new", model, card)
    loaded, spec = load_checkpoint(tmp_path / "new")
    assert torch.equal(loaded(x), model(x))
    assert spec.class_names == tuple("abcdefg")
    assert spec.colours == tuple((i, 2 * i, 0) for i in range(7))
    assert json.loads((tmp_path / "new/model.json").read_text()) == card
    save_checkpoint(tmp_path / "half", model, card, torch.float16)
    assert {value.dtype for value in load_file(tmp_path / "half/model.safetensors").values()} == {torch.float16}
    with pytest.raises(RuntimeError, match="size mismatch"):
        save_checkpoint(tmp_path / "wrong", model, {**card, "segmenter": {**asdict(TINY), "C": 2 * TINY.C}})
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize("gone", ["model.json", "model.safetensors"])
def test_missing_file_is_named(folder: Path, gone: str) -> None:
    (folder / gone).unlink()
    with pytest.raises(FileNotFoundError, match=f"is no checkpoint: it has no {gone}"):
        load_checkpoint(folder)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is no checkpoint"):
        load_checkpoint(tmp_path / "nowhere")


def no_kind(card: Card) -> None:
    del card["segmenter"]


def no_kwargs(card: Card) -> None:
    no_kind(card)
    card["timm_name"] = "vit_tiny_patch16_224"


def timm_model(name: str, *head: str) -> Callable[[Card], None]:
    def change(card: Card) -> None:
        no_kind(card)
        card.update(timm_name=name, timm_kwargs={}, **dict(zip(["head"], head, strict=False)))

    return change


@pytest.mark.parametrize(("change", "message"), [
    (no_kind, "neither 'segmenter' nor 'timm_name'"),
    (no_kwargs, "has no or a wrong 'timm_kwargs'"),
    (timm_model("vit_of_nobody"), r"cannot be read: Unknown model \(vit_of_nobody\)"),
    (timm_model("resnet18"), "cannot be read: 'ResNet' object has no attribute 'num_prefix_tokens'"),
    (timm_model("vit_tiny_patch16_224", "best"), "cannot be read: head must be one of linear, mask, dpt, got 'best'"),
    (lambda card: card.pop("classes"), "has no or a wrong 'classes'"),
    (lambda card: card["normalize"].pop("mean"), "has no or a wrong 'mean'"),
    (lambda card: card["normalize"].update(scale="0-1000"), "has no or a wrong '0-1000'"),
    (lambda card: card.update(img_size=32), "cannot be read: .*int"),
    (lambda card: card["segmenter"].update(C=9), "cannot be read: C 9 is no multiple of heads 2"),
    (lambda card: card["segmenter"].update(width=9), "cannot be read: .*'width'"),
    (lambda card: card["segmenter"].update(C=16), "model.safetensors does not fit model.json: .*size mismatch"),
])
def test_card_that_cannot_be_used_says_why(folder: Path, change: Callable[[Card], None], message: str) -> None:
    path = folder / "model.json"
    card = json.loads(path.read_text())
    load_checkpoint(folder)
    change(card)
    path.write_text(json.dumps(card))
    with pytest.raises(ValueError, match=f"(?s){message}"):
        load_checkpoint(folder)


@pytest.mark.parametrize("text", ["{", "", "[]", "\ufffd"])
def test_broken_card_is_named(folder: Path, text: str) -> None:
    (folder / "model.json").write_text(text)
    with pytest.raises(ValueError, match=r"model\.json cannot be read"):
        load_checkpoint(folder)


def test_broken_weights_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit model\.json"):
        load_checkpoint(folder)
