"""`lvtp-fx predict`: label maps of the pruned model alone, and going on where a run was stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.helpers import MODEL, Call, found, only_line

PREDICT = ("predict", MODEL, "--images", "photos", "--out", "maps")


@pytest.mark.parametrize("windows", [(), ("--stride", "16", "--batch", "3", "--short-side", "36")])
def test_predict_writes_what_eval_writes_of_the_pruned_model(
    call: Call, folder: Path, windows: tuple[str, ...]
) -> None:
    assert "written: 3 label maps in maps" in call(*PREDICT, "--keep-ratio", "0.6", *windows).stdout
    call("eval", MODEL, "--images", "photos", "--keep-ratio", "0.6", "--save", "both", *windows)
    assert sorted(path.name for path in (folder / "maps").iterdir()) == ["p0.png", "p1.png", "p2.png"]
    for i in range(3):
        assert (folder / f"maps/p{i}.png").read_bytes() == (folder / f"both/pruned/p{i}.png").read_bytes()
    assert (folder / "maps/p0.png").read_bytes() != (folder / "both/dense/p0.png").read_bytes()


def test_keep_ratio_one_is_the_dense_model(call: Call, folder: Path) -> None:
    value = found(call(*PREDICT, "--keep-ratio", "1", "--limit", "2", "--json"))
    assert (value["images"], value["made"], value["out"]) == (2, 2, "maps")
    assert value["flops_cut"] == 0
    call("eval", MODEL, "--images", "photos", "--keep-ratio", "0.6", "--save", "both")
    for i in range(2):
        with Image.open(folder / f"maps/p{i}.png") as got, Image.open(folder / f"both/dense/p{i}.png") as want:
            assert np.array_equal(np.array(got), np.array(want))


def test_predict_goes_on_with_the_maps_that_are_of_the_same_making(call: Call, folder: Path) -> None:
    call(*PREDICT, "--keep-ratio", "0.6", "--limit", "2")
    text = call(*PREDICT, "--keep-ratio", "0.6", "--resume").stdout
    assert "written: 1 label maps in maps, 2 were there" in text
    assert found(call(*PREDICT, "--keep-ratio", "0.6", "--resume", "--json"))["made"] == 0
    assert found(call(*PREDICT, "--keep-ratio", "0.6", "--json"))["made"] == 3
    Image.new("RGB", (40, 40), "red").save(folder / "photos/p1.png")
    assert found(call(*PREDICT, "--keep-ratio", "0.6", "--resume", "--json"))["made"] == 1
    assert found(call(*PREDICT, "--keep-ratio", "0.7", "--resume", "--json"))["made"] == 3


def test_predict_refuses_before_it_works(call: Call, folder: Path) -> None:
    assert "Missing option '--images'" in only_line(call("predict", MODEL, "--out", "maps", code=2).stderr)
    large = call("predict", "users_own:large", "--images", "photos", "--keep-ratio", "0.8", "--out", "maps", code=2)
    assert "Invalid value for --out: a PNG holds 256 classes, the model has 257" in only_line(large.stderr)
    wrong = call(*PREDICT, "--batch", "2", code=2)
    assert "Invalid value for --batch: only together with --stride" in only_line(wrong.stderr)
    (folder / "photos/p1.png").write_bytes(b"no image")
    assert only_line(call(*PREDICT, "--keep-ratio", "0.8", code=2).stderr).startswith("LVTP105 bad-example-inputs")
