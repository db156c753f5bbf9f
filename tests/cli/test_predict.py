"""`lvtp-fx predict`: label maps of the pruned model alone, and going on where a run was stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lvtp_fx.cli.source import unlabelled
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
    assert 0 < value["gflops_dense"] == value["gflops_pruned"]
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


def test_predict_does_not_write_among_the_images(call: Call, folder: Path) -> None:
    """Neither over them, nor beside them, where the next run would take a map for an image."""
    (folder / "link").symlink_to(folder / "photos")
    (folder / "linked").mkdir()
    (folder / "linked/q.png").symlink_to(folder / "photos/p1.png")
    before = {path: path.read_bytes() for path in (folder / "photos").iterdir()}
    for images, out in (("photos", "photos"), ("photos/p0.png", "photos"), ("photos", "link"), ("link", "photos"),
                        ("photos", "maps/../photos"), ("linked", "photos"), ("linked", "linked")):
        wrong = call("predict", "none:none", "--images", images, "--out", out, code=2)
        assert f"Invalid value for --out: {out} is the folder of an image that is read" in only_line(wrong.stderr)
    assert {path: path.read_bytes() for path in (folder / "photos").iterdir()} == before
    call(*PREDICT[:-1], "photos/maps", "--keep-ratio", "1", "--limit", "1")


def test_images_of_one_name_are_told_apart_and_the_others_keep_theirs(call: Call, folder: Path) -> None:
    Image.new("RGB", (40, 40), "red").save(folder / "photos/p1.jpg")
    call(*PREDICT, "--keep-ratio", "1")
    assert sorted(path.name for path in (folder / "maps").iterdir()) == [
        "0001_p1.png", "0002_p1.png", "p0.png", "p2.png"]
    paths = [Path("a/x.png"), Path("b/x.png"), Path("c/0000_x.png")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 40)).save(path)
    assert unlabelled(paths).ids == ("0000_x", "0001_x", "0002_0000_x")


def test_a_file_that_cannot_be_read_does_not_stop_the_others(call: Call, folder: Path) -> None:
    (folder / "photos/p1.png").write_bytes((folder / "photos/p1.png").read_bytes()[:60])
    result = call(*PREDICT, "--keep-ratio", "1", "--json", code=2)
    value = found(result)
    assert (value["images"], value["made"]) == (3, 2)
    assert value["not_read"] == [result.stderr.strip()]
    assert only_line(result.stderr).startswith("LVTP105 bad-example-inputs at photos/p1.png: expected an image that ")
    assert sorted(path.name for path in (folder / "maps").iterdir()) == ["p0.png", "p2.png"]
    again = call(*PREDICT, "--keep-ratio", "1", "--resume", code=2)
    assert "written: 0 label maps in maps, 2 were there, 1 images cannot be read" in again.stdout
    assert found(call(*PREDICT, "--keep-ratio", "1", "--limit", "1", "--json"))["not_read"] == []


def test_predict_refuses_before_it_works(call: Call, folder: Path) -> None:
    assert "Missing option '--images'" in only_line(call("predict", MODEL, "--out", "maps", code=2).stderr)
    large = call("predict", "users_own:large", "--images", "photos", "--keep-ratio", "0.8", "--out", "maps", code=2)
    assert "Invalid value for --out: a PNG holds 256 classes, the model has 257" in only_line(large.stderr)
    wrong = call(*PREDICT, "--batch", "2", code=2)
    assert "Invalid value for --batch: only together with --stride" in only_line(wrong.stderr)
    (folder / "photos/p1.png").write_bytes(b"no image")
    assert only_line(call(*PREDICT, "--keep-ratio", "0.8", code=2).stderr).startswith("LVTP105 bad-example-inputs")
