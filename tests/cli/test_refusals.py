"""What the user got wrong, and files that cannot be used: one line with a code, and with --json an object."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import lvtp_fx
from tests.cli.helpers import MODEL, Call, found, only_line


def test_missing_extra_is_one_line(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    line = only_line(call("explain", "hf:folder", code=2).stderr)
    assert line.startswith("LVTP504 library-missing at lvtp-fx: expected the libraries that this needs; got ")
    assert "; try pip install 'transformers" in line


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
    (("explain", "none:none", "--graph", "a.png"), "LVTP503 wrong-usage at lvtp-fx explain: expected options and "
     "arguments as its help lists them; got Invalid value for --graph: a graph is written as .dot, .gv or .svg"),
    (("predict", MODEL, "--device", "meta", "--images", "photos", "--out", "maps"), "LVTP106 not-a-model-to-transform "
     "at meta: expected a device of this machine; got its tensors hold no data"),
    (("verify", MODEL, "--device", "meta"), "LVTP106 not-a-model-to-transform at meta"),
    (("explain", MODEL, "--device", "meta", "--html", "a.html"), "LVTP106 not-a-model-to-transform at meta"),
    (("explain", MODEL, "--size", "²"), "LVTP503 wrong-usage at lvtp-fx explain"),
    (("explain", MODEL, "--config", "none.json"), "LVTP502 file-not-usable at none.json"),
    (("eval", MODEL, "--images", "photos", "--batch", "2"), "LVTP503 wrong-usage at lvtp-fx eval: expected options and "
     "arguments as its help lists them; got Invalid value for --batch: only together with --stride"),
    (("demo", "--out", "photos"), "LVTP502 file-not-usable at photos"),
    (("eval", MODEL, "--data", "camvid:set"), "LVTP105 bad-example-inputs at set/labels/val/2.png"),
    (("eval", "users_own:large", "--keep-ratio", "0.8", "--images", "photos", "--save", "maps"),
     "LVTP503 wrong-usage at lvtp-fx eval: expected options and arguments as its help lists them; got Invalid value "
     "for --save: a PNG holds 256 classes"),
    (("eval", "users_own:model_alone", "--size", "48", "--images", "photos"),
     "LVTP105 bad-example-inputs at Segmenter"),
])
def test_wrong_usage_and_unusable_files(call: Call, folder: Path, arguments: tuple[str, ...], text: str) -> None:
    (folder / "file").write_text("no folder")
    (folder / "folder.pt2").mkdir()
    (folder / "set/labels/val/2.png").write_text("no image")
    assert only_line(call(*arguments, code=2).stderr).startswith(text)
    result = call(*arguments, "--json", code=2)
    assert only_line(result.stderr).startswith(text)
    assert found(result)["error"]["code"] == text[:7]


def test_bug_keeps_its_traceback(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lvtp_fx.api, "prepare", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call("explain", MODEL)


@pytest.mark.parametrize(("name", "text"), [
    ("broken", "ZeroDivisionError: division by zero (users_own.py:22 in broken: return 1 / 0)"),
    ("leaving", "SystemExit: 7 (users_own.py:25 in leaving: raise SystemExit(7))"),
])
def test_where_the_users_own_function_fails_is_said(call: Call, name: str, text: str) -> None:
    result = call("explain", f"users_own:{name}", "--json", code=2)
    assert only_line(result.stderr) == (
        f"LVTP106 not-a-model-to-transform at users_own:{name}: expected a function that can be imported, and returns "
        f"a model; got {text}; try that line, which is not of this package")
    assert found(result)["error"]["got"] == text


def test_what_the_users_model_prints_is_kept_out_of_the_json(call: Call) -> None:
    result = call("explain", "users_own:talking", "--keep-ratio", "0.8", "--json")
    assert found(result)["model"] == "users_own:talking"
    assert {"talks", "talks in forward"} <= set(result.stderr.splitlines())
    assert "talks\n" in call("explain", "users_own:talking", "--keep-ratio", "0.8").stdout


def test_ctrl_c_is_said_and_is_no_failure_of_a_check(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(lvtp_fx, "transform", stopped)
    result = call("predict", MODEL, "--images", "photos", "--out", "maps", code=130)
    assert only_line(result.stderr) == "stopped before it was done"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a file that is always full")
def test_a_full_disk_is_one_line(call: Call) -> None:
    arguments = ("explain", MODEL, "--keep-ratio", "0.8", "--rounds", "0", "--html", "/dev/full")
    line = only_line(call(*arguments, code=2).stderr)
    assert line.startswith("LVTP502 file-not-usable at a file that is written: ")
    assert "got No space left on device" in line
