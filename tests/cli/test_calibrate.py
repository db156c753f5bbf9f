"""`lvtp-fx calibrate` and the file that it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lvtp_fx
from lvtp_fx.cli.pruning import read_config
from tests.cli.helpers import MODEL, Call, found, named, only_line


def test_calibrated_config_is_read_back(call: Call, folder: Path) -> None:
    text = ["calibrate", MODEL, "--flops-cut", "0.1", "--passes", "24", "--out", "new/schedule.json"]
    value = found(call(*text, "--images", "photos", "--json"))
    config = read_config(folder / "new/schedule.json")
    assert value["config"]["sites"] == list(config.sites)
    explained = found(call("explain", MODEL, "--config", "new/schedule.json", "--json"))
    wanted = lvtp_fx.explain(named().model, named().inputs(1), config=config)
    assert explained["kept"] == list(wanted.kept)
    assert explained["flops_cut"] == pytest.approx(0.1, abs=0.03)
    less = found(call("explain", MODEL, "--config", "new/schedule.json", "--flops-cut", "0.05", "--json"))
    assert less["sites"] == explained["sites"]
    assert less["flops_cut"] < explained["flops_cut"]
    labelled = call(*text, "--data", "camvid:set", "--labels", "--limit", "3")
    assert "written: new/schedule.json" in labelled.stdout


def test_calibrate_looks_at_labels_only_where_asked(call: Call, folder: Path) -> None:
    """No pixel has a class: that matters to mIoU, and not to agreement."""
    for path in (folder / "set/labels/val").iterdir():
        Image.fromarray(np.full((40, 56), 255, np.uint8)).save(path)
    text = ["calibrate", MODEL, "--flops-cut", "0.1", "--passes", "16", "--out", "a.json", "--data", "camvid:set"]
    call(*text)
    assert "labels without a pixel of any class" in only_line(call(*text, "--labels", code=2).stderr)


def test_calibrate_counts_labels_as_eval_does(call: Call, folder: Path) -> None:
    """The number of the pixels that do not count may be a class; what is no class is refused."""
    meta = json.loads((folder / "set/meta.json").read_text())
    (folder / "set/meta.json").write_text(json.dumps({**meta, "ignore_index": 3}))
    for path in (folder / "set/labels/val").iterdir():
        Image.fromarray(np.full((40, 56), 3, np.uint8)).save(path)
    text = ["calibrate", MODEL, "--flops-cut", "0.1", "--passes", "16", "--out", "a.json", "--labels", "--data"]
    assert "labels without a pixel of any class" in only_line(call(*text, "camvid:set", code=2).stderr)
    Image.fromarray(np.full((40, 56), 9, np.uint8)).save(folder / "set/labels/val/0.png")
    wrong = call(*text, "camvid:set", code=2)
    assert only_line(wrong.stderr).startswith("LVTP105 bad-example-inputs at 0: expected labels of a model of 5 "
                                              "classes; got 9")
    wrong = call(*text, "scenes:1", code=2)
    assert "LVTP105 bad-example-inputs at scenes:1: expected 7 classes; got a model of 5 classes" in wrong.stderr


def test_calibrate_refuses_what_says_nothing(call: Call, folder: Path) -> None:
    out = ["--out", "schedule.json"]
    both = call("calibrate", MODEL, "--images", "photos", "--flops-cut", "0.1", "--max-drop", "0.1", *out, code=2)
    neither = call("calibrate", MODEL, "--images", "photos", *out, code=2)
    assert all("give either --flops-cut or --max-drop" in only_line(it.stderr) for it in (both, neither))
    two = call("calibrate", MODEL, "--images", "photos", "--max-drop", "0.1", "--set", "flops_cut=0.4", *out, code=2)
    assert "give either --flops-cut or --max-drop" in only_line(two.stderr)
    for option in (("--labels",), ("--split", "test")):
        ignored = call("calibrate", MODEL, "--images", "photos", *option, "--flops-cut", "0.1", *out, code=2)
        assert f"Invalid value for {option[0]}: only together with --data" in only_line(ignored.stderr)
    call("calibrate", MODEL, "--flops-cut", "0.1", *out, code=2)
    sites = call("calibrate", MODEL, "--images", "photos", "--flops-cut", "0.1", "--sites", "1", *out, code=2)
    assert "it is what calibrate finds" in sites.stderr or "calibrate.sites" in sites.stderr
    assert not (folder / "schedule.json").exists()
