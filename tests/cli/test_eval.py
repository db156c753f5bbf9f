"""`lvtp-fx eval`: scores, agreement, label maps, and going on where a run was stopped."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import lvtp_fx
from lvtp_fx.cli import label_maps
from lvtp_fx.cli.label_maps import origin
from lvtp_fx.models.datasets import open_dataset
from lvtp_fx.models.metrics import SegmentationMeter
from lvtp_fx.models.named import load_named
from lvtp_fx.models.request import Request
from tests.cli.helpers import COLOURS, MODEL, Call, found, named, only_line


def write_beit(folder: Path) -> None:
    """A small segmenter of transformers, and its image processor."""
    from transformers import BeitConfig, BeitForSemanticSegmentation, BeitImageProcessor

    config = BeitConfig(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, image_size=64,
                        patch_size=8, out_indices=[0, 1, 2, 3], num_labels=5, use_auxiliary_head=False)
    BeitForSemanticSegmentation(config).save_pretrained(folder)
    BeitImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


def scores(at_model_size: bool) -> dict[str, Any]:
    """What eval has to find, written out."""
    data = open_dataset("camvid:set")
    data = data.resized((32, 32)) if at_model_size else data
    fast = lvtp_fx.transform(named().model, named().inputs(1), keep_ratio=0.8)
    meters = {"dense": SegmentationMeter(5, 255), "pruned": SegmentationMeter(5, 255)}
    for i in range(4):
        image, label = data[i]
        dense = named().predictor()([image])[0][None]
        for name, run in (("dense", None), ("pruned", fast)):
            meters[name].update(named().predictor(run)([image])[0][None], label[None], dense)
    wanted = {name: meter.miou() for name, meter in meters.items()}
    return {**wanted, "agreement": meters["pruned"].agreement(), "near": meters["pruned"].boundary_miou()}


@pytest.mark.parametrize("at_model_size", [False, True])
def test_eval_scores_labelled_images(call: Call, at_model_size: bool) -> None:
    flag = ["--at-model-size"] if at_model_size else []
    value = found(call("eval", MODEL, "--keep-ratio", "0.8", "--data", "camvid:set", "--json", *flag))
    wanted = scores(at_model_size)
    assert value["images"] == 4
    assert value["class_names"] == list("abcde")  # of the data, where the model names none
    assert value["dense"]["miou"] == pytest.approx(wanted["dense"])
    assert value["pruned"]["miou"] == pytest.approx(wanted["pruned"])
    assert value["pruned"]["boundary_miou"] == pytest.approx(wanted["near"])
    assert value["agreement"] == pytest.approx(wanted["agreement"])
    assert wanted["dense"] != wanted["pruned"]
    assert value["gflops_pruned"] == pytest.approx((1 - value["flops_cut"]) * value["gflops_dense"])


def test_eval_draws_in_the_colours_of_the_data(call: Call, folder: Path) -> None:
    call("eval", MODEL, "--keep-ratio", "0.8", "--data", "camvid:set", "--limit", "1", "--save", "maps")
    with Image.open(folder / "maps/pruned/0.png") as picture:
        assert (picture.getpalette() or [])[:15] == [part for colour in COLOURS for part in colour]


def test_eval_of_unlabelled_images_gives_the_agreement_and_saves_maps(call: Call, folder: Path) -> None:
    value = found(call("eval", MODEL, "--keep-ratio", "0.8", "--images", "photos", "--save", "maps", "--json"))
    assert 0 < value["agreement"] < 1
    assert value["dense"] == {}
    equal = pixels = 0
    for i in range(3):
        dense, pruned = (np.array(Image.open(folder / f"maps/{name}/p{i}.png")) for name in ("dense", "pruned"))
        assert dense.shape == (40, 48 + i)
        equal, pixels = equal + int((dense == pruned).sum()), pixels + dense.size
    assert value["agreement"] == pytest.approx(equal / pixels)
    table = call("eval", MODEL, "--keep-ratio", "0.8", "--images", "photos/p0.png").stdout
    assert "on 1 images" in table
    assert "mIoU" not in table


def test_eval_goes_on_with_the_maps_that_are_of_the_same_making(call: Call, folder: Path) -> None:
    """A map that is there is scored as it stands, unless the options, the weights or the image are others now."""
    text = ["eval", MODEL, "--images", "photos", "--save", "maps", "--json", "--keep-ratio"]
    whole = call(*text, "0.8").stdout
    kept = folder / "maps/pruned/p0.png"
    with Image.open(kept) as picture:
        changed = Image.fromarray(1 - np.minimum(np.array(picture), 1))
        about = PngInfo()
        about.add_text("lvtp_fx", picture.info["lvtp_fx"])
    changed.save(kept, pnginfo=about)
    assert found(call(*text, "0.8", "--resume"))["agreement"] < found(call(*text, "0.8"))["agreement"]
    for other in (["0.7"], ["0.8", "--stride", "16"]):
        call(*text, "0.8")
        assert call(*text, *other, "--resume").stdout == call(*text, *other).stdout != whole
    call(*text, "0.8")
    (folder / "photos/p1.png").write_bytes((folder / "photos/p0.png").read_bytes())
    kept.write_bytes(kept.read_bytes()[:90])
    assert call(*text, "0.8", "--resume").stdout == call(*text, "0.8").stdout != whole
    source = folder / "users_own.py"
    source.write_text(source.read_text().replace("seed=0", "seed=1"))
    del sys.modules["users_own"]
    assert call(*text, "0.8", "--resume").stdout == call(*text, "0.8").stdout
    assert "only together with --save" in call("eval", MODEL, "--images", "photos", "--resume", code=2).stderr


def test_eval_in_windows_scores_otherwise(call: Call) -> None:
    whole, slid = (found(call("eval", MODEL, "--keep-ratio", "0.8", "--data", "camvid:set", "--limit", "1", "--json",
                              *more)) for more in ([], ["--stride", "16", "--batch", "4"]))
    assert whole["images"] == slid["images"] == 1
    assert whole["dense"]["miou"] != slid["dense"]["miou"]
    text = ["eval", MODEL, "--keep-ratio", "0.8", "--data", "camvid:set"]
    assert "the window's side" in call(*text, "--stride", "64", code=2).stderr
    assert "needs a stride" in call(*text, "--short-side", "64", code=2).stderr


def test_maps_of_another_preprocessing_are_made_anew(call: Call, folder: Path) -> None:
    """How images are resized is nothing that an image of the model's own size tells."""
    text = ["predict", "hf:beit", "--images", "photos", "--out", "maps", "--keep-ratio", "0.8", "--resume", "--json"]
    write_beit(folder / "beit")
    assert [found(call(*text))["made"] for _ in range(2)] == [3, 0]
    file = folder / "beit/preprocessor_config.json"
    card = json.loads(file.read_text())
    file.write_text(json.dumps({**card, "resample": 0}))
    assert card["resample"] != 0
    assert [found(call(*text))["made"] for _ in range(2)] == [3, 0]


@pytest.mark.parametrize("library", ["torchvision", "pillow", "transformers"])
def test_label_maps_depend_on_who_resized_the_image(
    folder: Path, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_beit(folder / "beit")
    beit = load_named(Request("hf:beit"))
    fast = lvtp_fx.transform(beit.model, beit.inputs(1), keep_ratio=0.8)
    before = origin(beit, fast, stride=None)
    assert origin(beit, fast, stride=None) == before
    versions = label_maps.version
    monkeypatch.setattr(label_maps, "version", lambda name: "another" if name == library else versions(name))
    assert origin(beit, fast, stride=None) != before


def test_eval_does_not_write_among_the_images(call: Call, folder: Path) -> None:
    (folder / "photos").rename(folder / "dense")
    before = (folder / "dense/p0.png").read_bytes()
    wrong = call("eval", "none:none", "--images", "dense", "--save", ".", code=2)
    assert "Invalid value for --save: dense is the folder of an image that is read" in only_line(wrong.stderr)
    (folder / "dense").rename(folder / "pruned")
    wrong = call("eval", "none:none", "--images", "pruned/p0.png", "--save", ".", code=2)
    assert "Invalid value for --save: pruned is the folder of an image that is read" in only_line(wrong.stderr)
    assert (folder / "pruned/p0.png").read_bytes() == before


@pytest.mark.parametrize("option", [("--split", "test"), ("--at-model-size",)])
def test_eval_refuses_what_says_nothing_of_images(call: Call, option: tuple[str, ...]) -> None:
    wrong = call("eval", "none:none", "--images", "photos", *option, code=2)
    assert f"Invalid value for {option[0]}: only together with --data" in only_line(wrong.stderr)


def test_eval_refuses_what_it_cannot_score(call: Call, folder: Path) -> None:
    assert "give either --data or --images" in call("eval", MODEL, code=2).stderr
    call("eval", MODEL, "--data", "camvid:set", "--images", "photos", code=2)
    wrong = call("eval", MODEL, "--data", "scenes:1", "--keep-ratio", "0.8", code=2)
    assert only_line(wrong.stderr).startswith("LVTP105")
    assert "expected 7 classes; got a model of 5 classes" in wrong.stderr
    Image.fromarray(np.full((40, 56), 9, np.uint8)).save(folder / "set/labels/val/0.png")
    wrong = call("eval", MODEL, "--data", "camvid:set", "--keep-ratio", "0.8", code=2)
    assert "label must be in [0, 5) where it is not ignored, got 9 to 9" in only_line(wrong.stderr)
    for i in range(4):
        Image.fromarray(np.full((40, 56), 255, np.uint8)).save(folder / f"set/labels/val/{i}.png")
    wrong = call("eval", MODEL, "--data", "camvid:set", "--keep-ratio", "0.8", "--json", code=2)
    assert only_line(wrong.stderr).startswith("LVTP105 bad-example-inputs at camvid:set: expected labels of a class")
    assert found(wrong)["error"]["got"] == "ignored pixels alone"
