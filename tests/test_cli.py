"""The commands, on a small model of the user's and on images in files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import typer
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner, Result

import lvtp_fx
from lvtp_fx import ship
from lvtp_fx.cli.main import app
from lvtp_fx.cli.options import read_config
from lvtp_fx.cli.transform import writer
from lvtp_fx.models.datasets import open_dataset
from lvtp_fx.models.metrics import SegmentationMeter
from lvtp_fx.models.named import Named, load_named
from lvtp_fx.models.request import Request

MODEL = "users_own:model"
MODULE = """
import torch
from lvtp_fx.models.checkpoint import Spec
from lvtp_fx.models.random_weights import randomise
from lvtp_fx.models.segmenter import Segmenter, SegmenterConfig

def model():
    made = randomise(Segmenter(SegmenterConfig(img_size=32, patch_size=4, classes=5, C=32, depth=2, heads=2)), seed=0)
    return made.eval(), Spec((32, 32), 5, 4, 1.0, (0.5,) * 3, (0.25,) * 3)

def model_alone():
    return model()[0]

def large():
    return Segmenter(SegmenterConfig(img_size=32, patch_size=4, classes=257, C=32, depth=2, heads=2)).eval()

def convolution():
    return torch.nn.Conv2d(3, 2, 1)

def broken():
    return 1 / 0
"""
COMMANDS = ("demo", "explain", "transform", "verify", "bench", "eval", "calibrate")
Call = Callable[..., Result]
COLOURS = [[10 * i, 3, 200] for i in range(5)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a module with models, three photos, and a labelled set of four images with five classes."""
    (tmp_path / "users_own.py").write_text(MODULE)
    rng = np.random.default_rng(0)
    for i in range(3):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 48 + i, 3), dtype=np.uint8)).save(tmp_path / f"photos/p{i}.png")
    for kind in ("images", "labels"):
        (tmp_path / "set" / kind / "val").mkdir(parents=True)
    meta = {"classes": list("abcde"), "num_classes": 5, "ignore_index": 255, "palette": COLOURS}
    (tmp_path / "set/meta.json").write_text(json.dumps(meta))
    (tmp_path / "set/val.txt").write_text("0 1 2 3")
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)).save(tmp_path / f"set/images/val/{i}.jpg")
        label = np.kron(rng.integers(0, 5, (5, 7), dtype=np.uint8), np.ones((8, 8), np.uint8))
        Image.fromarray(label).save(tmp_path / f"set/labels/val/{i}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "users_own", raising=False)
    return tmp_path


@pytest.fixture
def call(folder: Path) -> Call:
    """Run a command in this process; what it must not raise is raised here."""

    def run(*arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return run


def named() -> Named:
    return load_named(Request(MODEL))


def only_line(text: str) -> str:
    [line] = text.splitlines()
    return line


def found(result: Result) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(result.stdout)
    return value


def test_help_names_the_commands_and_each_explains_itself(call: Call) -> None:
    listed = call("--help").stdout
    for name in COMMANDS:
        assert f" {name} " in listed
        own = call(name, "--help").stdout
        assert own.count("--") > 5
        assert name == "demo" or "Example: lvtp-fx" in own
    assert "Exit codes: 0 done" in listed
    call("dmo", code=2)


def test_explain_says_what_the_api_says(call: Call) -> None:
    report = lvtp_fx.explain(named().model, named().inputs(1), keep_ratio=0.8)
    text = call("explain", MODEL, "--keep-ratio", "0.8")
    assert text.stdout == f"{report}\n"
    assert text.stderr == ""  # no terminal: no progress
    value = found(call("explain", MODEL, "--keep-ratio", "0.8", "--json"))
    assert value == {"model": MODEL, **json.loads(json.dumps(report.to_dict())), "notes": []}


def test_explain_of_what_is_refused_explains_and_exits_with_2(call: Call) -> None:
    result = call("explain", MODEL, "--flops-cut", "0.99", code=2)
    assert "blocks.0" in result.stdout
    assert only_line(result.stderr).startswith("LVTP202 flops-cut-unreachable at Config.flops_cut")
    value = found(call("explain", "users_own:convolution", "--size", "8", "--json", code=2))
    assert value["refused"].startswith("LVTP102")


def test_explain_writes_a_page(call: Call, folder: Path) -> None:
    page = folder / "out/page.html"
    bare = call("explain", MODEL, "--keep-ratio", "0.8", "--html", "out/page.html", "--rounds", "0")
    assert "blocks.0" in bare.stdout
    size = len(page.read_text())
    assert "Latency was not measured" in page.read_text()
    call("explain", MODEL, "--keep-ratio", "0.8", "--html", "out/page.html", "--images", "photos", "--limit", "2",
         "--rounds", "2")
    assert len(page.read_text()) > size + 1000
    assert "measured, median, ms" in page.read_text()
    assert re.search(r"<p>Latency: (torch.compile, fullgraph|eager).*, cpu, \d+ threads, torch 2", page.read_text())
    call("explain", MODEL, "--html", "out/page.html", "--rounds", "1", code=2)
    call("explain", MODEL, "--flops-cut", "0.99", "--html", "refused.html", code=2)
    assert "LVTP202" in (folder / "refused.html").read_text()
    call("explain", MODEL, "--images", "photos", code=2)


def test_explain_writes_the_graph(call: Call, folder: Path) -> None:
    call("explain", MODEL, "--keep-ratio", "0.8", "--graph", "out/after.dot", "--graph-before", "out/before.gv")
    before = (folder / "out/before.gv").read_text()
    assert "lvtp.merge" in (folder / "out/after.dot").read_text()
    assert "scaled_dot_product_attention" in before
    assert "lvtp." not in before
    # What is refused has a graph before, and none after.
    call("explain", MODEL, "--flops-cut", "0.99", "--graph", "out/none.dot", "--graph-before", "out/dense.dot", code=2)
    assert (folder / "out/dense.dot").read_text() == before
    assert not (folder / "out/none.dot").exists()
    for option in ("--graph", "--graph-before"):
        refused = call("explain", MODEL, "--keep-ratio", "0.8", option, "out/graph.png", code=2)
        assert ".dot, .gv or .svg" in " ".join(refused.stderr.split())
        assert option in refused.stderr


def test_transform_writes_what_the_api_makes(call: Call, folder: Path) -> None:
    value = found(call("transform", MODEL, "--keep-ratio", "0.8", "--to", "out/fast.pt2", "--json"))
    assert (value["written"], value["kind"]) == ("out/fast.pt2", "exported program")
    assert value["bytes"] == (folder / "out/fast.pt2").stat().st_size
    assert value["oracle_error"] < 2e-5
    x = named().inputs(3, seed=1)
    fast = lvtp_fx.transform(named().model, named().inputs(2), keep_ratio=0.8)
    loaded = torch.export.load(folder / "out/fast.pt2").module()
    assert torch.allclose(loaded(*x), fast(*x), atol=1e-4)
    assert not torch.allclose(loaded(*x), named().dense(*x), atol=1e-4)


def test_transform_writes_onnx_and_compiled_packages(call: Call, folder: Path) -> None:
    (x,) = named().inputs(2, seed=1)
    want = lvtp_fx.transform(named().model, (x,), keep_ratio=0.8)(x)
    arguments = ("transform", MODEL, "--keep-ratio", "0.8", "--no-verify", "--to")
    assert "(ONNX, " in call(*arguments, "fast.onnx").stdout
    session = onnxruntime.InferenceSession(folder / "fast.onnx")
    got = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    assert torch.allclose(got, want, atol=1e-4)
    if not (which("c++") or which("g++")):  # which a package for the CPU is made with
        assert only_line(call(*arguments, "fast.aoti.pt2", code=2).stderr).startswith("LVTP501")
        return
    assert "(AOTInductor package, " in call(*arguments, "fast.aoti.pt2").stdout
    assert torch.allclose(torch._inductor.aoti_load_package(str(folder / "fast.aoti.pt2"))(x), want, atol=1e-4)


def test_transform_writes_nothing_where_it_refuses(call: Call, folder: Path) -> None:
    assert "LVTP202" in only_line(call("transform", MODEL, "--flops-cut", "0.99", "--to", "a.pt2", code=2).stderr)
    assert "ends in none of" in call("transform", MODEL, "--to", "a.txt", code=2).stderr
    call("transform", MODEL, code=2)
    assert not list(folder.glob("a.*"))


@pytest.mark.parametrize(("name", "save", "kind"), [
    ("a.pt2", ship.save_exported, "exported program"), ("a.aoti.pt2", ship.save_aoti, "AOTInductor package"),
    ("b.a.onnx", ship.save_onnx, "ONNX"),
])
def test_end_of_the_name_says_what_is_written(name: str, save: object, kind: str) -> None:
    assert writer(Path("folder.onnx", name)) == (save, kind)
    with pytest.raises(typer.BadParameter, match="ends in none of"):
        writer(Path("folder.onnx", name + ".zip"))


def test_exported_program_is_a_model_again(call: Call, folder: Path) -> None:
    free = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(named().dense, named().inputs(2), dynamic_shapes=free)
    torch.export.save(program, folder / "dense.pt2")
    value = found(call("verify", "dense.pt2", "--keep-ratio", "0.8", "--json"))
    assert value["verified"] is True
    assert "ImageNet" in value["notes"][0]
    assert "what the program was exported with" in call("verify", "dense.pt2", "--size", "64", code=2).stderr


def test_verify_passes_and_a_difference_is_code_1(call: Call) -> None:
    assert "verified on 2 images" in call("verify", MODEL, "--keep-ratio", "0.8").stdout
    value = found(call("verify", MODEL, "--keep-ratio", "0.8", "--images", "photos", "--json"))
    assert (value["images"], value["verified"]) == (3, True)
    assert 0 < value["output_error"] <= value["tolerance"]
    result = call("verify", MODEL, "--keep-ratio", "0.8", "--tolerance", "1e-12", "--json", code=1)
    assert only_line(result.stderr).startswith("LVTP301 verify-mismatch at blocks.")
    assert found(result)["error"]["code"] == "LVTP301"


def test_bench_times_both(call: Call) -> None:
    value = found(call("bench", MODEL, "--keep-ratio", "0.6", "--batch", "3", "--rounds", "4", "--eager", "--dtype",
                       "float64", "--json"))
    assert (value["batch"], value["size"], value["dtype"], value["how"]) == (3, "32x32", "float64", "eager")
    for name in ("dense", "pruned"):
        assert 0 < value[name]["low_ms"] <= value[name]["median_ms"] <= value[name]["high_ms"]
    assert value["speedup"] == pytest.approx(value["dense"]["median_ms"] / value["pruned"]["median_ms"])
    table = call("bench", MODEL, "--keep-ratio", "0.6", "--rounds", "2", "--eager").stdout
    assert "ms, quartiles" in table
    assert "a batch of 4 at 32x32, float32, eager, 2 rounds" in table
    call("bench", MODEL, "--rounds", "1", code=2)


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
    (folder / "users_own.py").write_text(MODULE.replace("seed=0", "seed=1"))
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


def test_eval_refuses_what_it_cannot_score(call: Call, folder: Path) -> None:
    assert "give either --data or --images" in call("eval", MODEL, code=2).stderr
    call("eval", MODEL, "--data", "camvid:set", "--images", "photos", code=2)
    wrong = call("eval", MODEL, "--data", "scenes:1", "--keep-ratio", "0.8", code=2)
    assert only_line(wrong.stderr).startswith("LVTP105")
    assert "expected 7 classes; got a model of 5 classes" in wrong.stderr
    Image.fromarray(np.full((40, 56), 9, np.uint8)).save(folder / "set/labels/val/0.png")
    wrong = call("eval", MODEL, "--data", "camvid:set", "--keep-ratio", "0.8", code=2)
    assert "label must be in [0, 5) where it is not ignored, got 9 to 9" in only_line(wrong.stderr)


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


def test_calibrate_refuses_what_says_nothing(call: Call, folder: Path) -> None:
    out = ["--out", "schedule.json"]
    both = call("calibrate", MODEL, "--images", "photos", "--flops-cut", "0.1", "--max-drop", "0.1", *out, code=2)
    neither = call("calibrate", MODEL, "--images", "photos", *out, code=2)
    assert all("give either --flops-cut or --max-drop" in only_line(it.stderr) for it in (both, neither))
    call("calibrate", MODEL, "--images", "photos", "--labels", "--flops-cut", "0.1", *out, code=2)
    call("calibrate", MODEL, "--flops-cut", "0.1", *out, code=2)
    sites = call("calibrate", MODEL, "--images", "photos", "--flops-cut", "0.1", "--sites", "1", *out, code=2)
    assert "it is what calibrate finds" in sites.stderr or "calibrate.sites" in sites.stderr
    assert not (folder / "schedule.json").exists()


def test_missing_extra_is_one_line(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    line = only_line(call("explain", "hf:folder", code=2).stderr)
    assert line.startswith("LVTP504 library-missing at lvtp-fx: expected the libraries that this needs; got ")
    assert "; try pip install 'transformers" in line


# What the user got wrong, and files that cannot be used: one line with a code, and with --json an object.


@pytest.mark.parametrize(("arguments", "text"), [
    (("dmo",), "LVTP503 wrong-usage at lvtp-fx: expected options and arguments as its help lists them; got No such "),
    (("explain", MODEL, "--flops-cut", "much"), "LVTP503 wrong-usage at lvtp-fx explain: expected options and "
     "arguments as its help lists them; got Invalid value for '--flops-cut'"),
    (("verify",), "LVTP503 wrong-usage at lvtp-fx verify"),
    (("bench", MODEL, "--keep-ratio", "a"), "LVTP503 wrong-usage at lvtp-fx bench"),
    (("transform", MODEL, "--to", "model.zip"), "LVTP503 wrong-usage at lvtp-fx transform"),
    (("transform", MODEL, "--to", "file/model.pt2"), "LVTP502 file-not-usable at file: expected a file or folder that "
     "can be used so; got File exists; try another path"),
    (("transform", MODEL, "--to", "photos"), "LVTP503"),
    (("transform", MODEL, "--to", "folder.pt2"), "LVTP502 file-not-usable at folder.pt2"),
    (("explain", MODEL, "--html", "photos"), "LVTP502 file-not-usable at photos"),
    (("explain", MODEL, "--graph", "file/graph.dot"), "LVTP502 file-not-usable at file"),
    (("calibrate", MODEL, "--images", "photos", "--flops-cut", "0.1", "--out", "photos"), "LVTP502"),
    (("eval", MODEL, "--images", "photos", "--save", "file"), "LVTP502 file-not-usable at file"),
    (("explain", MODEL, "--config", "none.json"), "LVTP502 file-not-usable at none.json"),
    (("eval", MODEL, "--images", "photos", "--batch", "2"), "LVTP503 wrong-usage at lvtp-fx eval: expected options and "
     "arguments as its help lists them; got Invalid value for --batch: only together with --stride"),
    (("demo", "--out", "photos"), "LVTP502 file-not-usable at photos"),
    (("eval", MODEL, "--data", "camvid:set"), "LVTP105 bad-example-inputs at set/labels/val/2.png"),
    (("eval", "users_own:large", "--keep-ratio", "0.8", "--images", "photos", "--save", "maps"),
     "LVTP503 wrong-usage at lvtp-fx eval: expected options and arguments as its help lists them; got Invalid value "
     "for --save: a PNG holds 256 classes"),
    (("eval", "users_own:model_alone", "--size", "48", "--images", "photos"), "LVTP101 cannot-capture at Segmenter"),
])
def test_wrong_usage_and_unusable_files(call: Call, folder: Path, arguments: tuple[str, ...], text: str) -> None:
    (folder / "file").write_text("no folder")
    (folder / "folder.pt2").mkdir()
    (folder / "set/labels/val/2.png").write_text("no image")
    assert only_line(call(*arguments, code=2).stderr).startswith(text)
    result = call(*arguments, "--json", code=2)
    assert only_line(result.stderr).startswith(text)
    assert found(result)["error"]["code"] == text[:7]


def test_bug_keeps_its_traceback(call: Call) -> None:
    with pytest.raises(ZeroDivisionError):
        call("explain", "users_own:broken")


def installed(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lvtp-fx")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=folder,
                          env={**os.environ, **environment})


def test_installed_command_prints_one_object_and_nothing_else(folder: Path) -> None:
    """Without a C++ compiler: that way is short, and says that it is another one."""
    done = installed(folder, "bench", MODEL, "--keep-ratio", "0.6", "--rounds", "2", "--json",
                     CXX=str(folder / "no-compiler"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["how"].startswith("eager (torch.compile fails: InvalidCxxCompiler")


def test_installed_command_fails_with_a_line_and_a_code(folder: Path) -> None:
    done = installed(folder, "explain", "nothing", "--json")
    assert done.returncode == 2
    assert only_line(done.stderr).startswith("LVTP106 not-a-model-to-transform at nothing: expected bundled")
    assert json.loads(done.stdout)["error"]["slug"] == "not-a-model-to-transform"


def test_installed_command_without_its_libraries_is_a_line(folder: Path) -> None:
    (folder / "typer.py").write_text("raise ImportError('no typer')")
    done = installed(folder, "explain", "bundled", PYTHONPATH=str(folder))
    assert (done.returncode, done.stdout) == (2, "")
    assert only_line(done.stderr) == (
        "LVTP504 library-missing at lvtp-fx: expected the libraries that this needs; got the command line needs more "
        "than torch; try pip install 'lvtp_fx[cli]'")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a file that is always full")
def test_a_full_disk_is_one_line(call: Call) -> None:
    arguments = ("explain", MODEL, "--keep-ratio", "0.8", "--rounds", "0", "--html", "/dev/full")
    line = only_line(call(*arguments, code=2).stderr)
    assert line.startswith("LVTP502 file-not-usable at a file that is written: ")
    assert "got No space left on device" in line


def test_on_a_terminal_what_takes_time_is_shown(folder: Path) -> None:
    """The real command under a pseudo-terminal; without one nothing is shown."""
    pty = pytest.importorskip("pty", reason="Windows has no pseudo-terminals")
    ours, theirs = pty.openpty()
    arguments = ["eval", MODEL, "--data", "camvid:set", "--keep-ratio", "0.8"]
    command = [str(Path(sys.executable).with_name("lvtp-fx")), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, cwd=folder,
                          env={**os.environ, "TERM": "xterm", "COLUMNS": "100"}) as process:
        os.close(theirs)
        shown = b""
        while chunk := _read(ours):
            shown += chunk
        assert process.stdout is not None
        assert b"mIoU" in process.stdout.read()
    os.close(ours)
    assert process.returncode == 0, shown
    for text in (b"find images", f"load {MODEL}".encode(), b"transform", b"score 4 of 4 images", b"4/4"):
        assert text in shown
    assert installed(folder, *arguments).stderr == ""


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # how Linux says that the other side is closed
        return b""


def test_installed_command_shows_bugs(folder: Path) -> None:
    done = installed(folder, "explain", "users_own:broken")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError: division by zero" in done.stderr
