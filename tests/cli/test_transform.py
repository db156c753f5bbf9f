"""`lvtp-fx transform` and the files that it writes."""

from __future__ import annotations

from pathlib import Path
from shutil import which

import onnxruntime
import pytest
import torch
import typer

import lvtp_fx
from lvtp_fx import ship
from lvtp_fx.cli.transform import writer
from tests.cli.helpers import MODEL, Call, found, named, only_line


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
