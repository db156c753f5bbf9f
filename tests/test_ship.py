"""What works with what: each cell of the table in docs/deploy.md is a test here, and the table says no more."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from shutil import which
from typing import Any

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

import lvtp_fx
from lvtp_fx import ship
from tests.backend_helpers import relative
from tests.conftest import needs_compiler
from tests.ship_routes import OPTIONS, ROUTES, Made, Run, made
from tests.tiny import fused, picture, vit
from tests.zoo import ZOO

ROOT = Path(__file__).parents[1]
# One process makes each file once.
pytestmark = pytest.mark.xdist_group("ship")
COMPILED = ("torch.compile", "backend", "AOTInductor")


@pytest.fixture(scope="module")
def it() -> Made:
    return made()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ship")


@pytest.fixture(scope="module")
def route(it: Made, folder: Path) -> Callable[[str], Run]:
    @cache
    def make(name: str) -> Run:
        return ROUTES[name](it, folder)

    return make


# The columns: each takes a route and checks what its cell says.


def image(batch: int, seed: int) -> torch.Tensor:
    """All images need gradients: one that does not would be compiled for once more."""
    return picture(batch, seed).requires_grad_()


def any_batch(name: str, run: Run, it: Made, folder: Path, cell: str) -> None:
    """The file is made with one image."""
    assert cell == "yes"
    for batch in (1, 2, 5):
        x = image(batch, seed=batch)
        got = run(x)[0]
        assert relative(got, it.expected(x)[0]) < 1e-5
        assert relative(got, it.model(x)) > 1e-2  # and it is pruned


def same_tokens(name: str, run: Run, it: Made, folder: Path, cell: str) -> None:
    assert cell == "yes"
    x, y = image(3, seed=9), image(3, seed=8)
    got, want, other = run(x)[1], it.expected(x)[1], it.expected(y)[1]
    assert len(got) == len(want) == 2
    for a, b, c in zip(got, want, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)  # they do depend on the image


def other_size(name: str, run: Run, it: Made, folder: Path, cell: str) -> None:
    def call() -> torch.Tensor:
        return run(torch.zeros(2, 3, 64, 64, requires_grad=True))[0]

    if cell == "not checked":
        assert call().shape == (2, 5, 8, 8)  # an answer, for an image that the model does not take
        return
    with pytest.raises(Exception, match={
        "LVTP401": "LVTP401 input-does-not-fit", "as the model": "must match the size of tensor b|is not broadcastable",
        "refused": "Guard failed|Got invalid dimensions",
    }[cell]) as caught:
        call()
    assert cell == "LVTP401" or "LVTP401" not in str(caught.value)
    if cell == "as the model":
        with pytest.raises(RuntimeError, match="must match the size of tensor b"):
            it.model(torch.zeros(2, 3, 64, 64))


def gradients(name: str, run: Run, it: Made, folder: Path, cell: str) -> None:
    x = image(3, seed=4)
    output = run(x)[0]
    assert output.requires_grad == (cell == "yes")
    if cell == "yes":
        output.square().sum().backward()
        got, x.grad = x.grad, None
        it.fast(x).square().sum().backward()
        assert relative(got, x.grad) < 1e-4


SCRIPTS = {
    "export": "import torch; run = torch.export.load('model.pt2').module()",
    "AOTInductor": "import torch; run = torch._inductor.aoti_load_package('model.aoti.pt2')",
    "ONNX": "import torch, onnxruntime\n"
            "s = onnxruntime.InferenceSession('model.onnx')\n"
            "run = lambda x: [torch.from_numpy(y) for y in s.run(None, {s.get_inputs()[0].name: x.numpy()})]",
    "torch.compile": "import torch; run = torch.load('model.pt', weights_only=False)",
    "backend": "import torch; run = torch.compile(torch.nn.Identity(), backend='lvtp_fx', options={'inner': 'eager'})\n"
               "with torch.no_grad(): run(torch.zeros(2, 3, 32, 32))\n"
               "run = lambda x: [torch.load('case.pt')[1]]",
}
REST = """
import sys
x, want = torch.load('case.pt')
with torch.no_grad():
    got = run(x)[0]
assert (got - want).abs().max() <= 1e-5 * want.abs().max()
assert not [name for name in sys.modules if name.startswith('lvtp')], 'lvtp_fx was imported'
print('it ran')
"""


def without_lvtp_fx(name: str, run: Run, it: Made, folder: Path, cell: str) -> None:
    """In a process of its own, which looks at what it has imported."""
    x = picture(3, seed=5)
    torch.save((x, it.expected(x)[0]), folder / "case.pt")
    torch.save(it.shown, folder / "model.pt")
    if cell == "no program":
        assert name not in SCRIPTS
        return
    done = subprocess.run([sys.executable, "-c", SCRIPTS[name] + REST], cwd=folder, capture_output=True, text=True)
    assert ("it ran" in done.stdout) == (cell == "yes"), done.stderr
    assert cell == "yes" or "lvtp" in done.stderr


COLUMNS: dict[str, Callable[[str, Run, Made, Path, str], None]] = {
    "any batch size": any_batch, "same tokens as eager": same_tokens, "another image size": other_size,
    "gradients": gradients, "runs without lvtp_fx": without_lvtp_fx,
}


def table() -> dict[tuple[str, str], str]:
    """The cells of the table in docs/deploy.md, by row and column."""
    lines = re.findall(r"^\|(.*)\|$", (ROOT / "docs" / "deploy.md").read_text(), flags=re.MULTILINE)
    rows = [[cell.strip().strip("`") for cell in line.split("|")] for line in lines]
    header = next(i for i, row in enumerate(rows) if row[1:] == list(COLUMNS))
    cells = {}
    for row in rows[header + 2 : header + 2 + len(ROUTES)]:
        cells.update({(row[0], column): cell for column, cell in zip(COLUMNS, row[1:], strict=True)})
    return cells


CELLS = table()


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("row", [
    pytest.param(row, marks=[needs_compiler] if row in COMPILED else []) for row in ROUTES])
def test_cell(it: Made, folder: Path, route: Callable[[str], Run], row: str, column: str) -> None:
    COLUMNS[column](row, route(row), it, folder, CELLS[row, column])


def test_the_table_has_these_rows_and_columns_and_no_others() -> None:
    assert list(CELLS) == [(row, column) for row in ROUTES for column in COLUMNS]


# Segmenters of the zoo, at several sites and in two rounds (more are more of the same, and take exporters minutes).


@cache
def pruned(name: str, head: str, cut: float) -> torch.fx.GraphModule:
    entry = ZOO[name]
    return lvtp_fx.transform(entry.build(head), (entry.image(),), flops_cut=cut, rounds=2)


@pytest.mark.parametrize(("name", "head", "cut"), [
    ("beit_base_patch16_224", "linear", 0.35), ("beit_base_patch16_224", "mask", 0.35),  # a mask that is trained
    ("vit_small_patch16_dinov3", "dpt", 0.2),  # a rotary embedding; four taps
])
def test_onnx_of_what_is_gathered_beside_the_tokens(tmp_path: Path, name: str, head: str, cut: float) -> None:
    entry, fast = ZOO[name], pruned(name, head, cut)
    assert len(fast.report.sites) >= 2
    ship.save_onnx(fast, (entry.image(1),), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (image,) = session.get_inputs()
    assert (image.name, image.shape) == ("image", ["batch", 3, *entry.image().shape[2:]])
    assert [(one.name, one.shape[0]) for one in session.get_outputs()] == [("output", "batch")]
    for batch in (1, 3):
        x = entry.image(batch, seed=batch)
        got = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
        assert relative(got, fast(x)) < 1e-4


def test_exported_rotary_embedding_keeps_the_tokens_places(tmp_path: Path) -> None:
    entry, fast = ZOO["vit_small_patch16_dinov3"], pruned("vit_small_patch16_dinov3", "dpt", 0.2)
    ship.save_exported(fast, (entry.image(1),), tmp_path / "dinov3.pt2")
    run = torch.export.load(tmp_path / "dinov3.pt2").module()
    for batch in (1, 3):
        x = entry.image(batch, seed=batch)
        assert relative(run(x), fast(x)) < 1e-5


# The program of docs/deploy.md, and what it says of sizes.


@needs_compiler
@pytest.mark.parametrize("checked", [False, True])
def test_a_package_checks_its_inputs_where_it_is_told_to(
    folder: Path, route: Callable[[str], Run], checked: bool
) -> None:
    route("AOTInductor")
    script = SCRIPTS["AOTInductor"] + "; print(tuple(run(torch.zeros(2, 3, 64, 64))[0].shape))"
    switch = {"AOTI_RUNTIME_CHECK_INPUTS": "1"} if checked else {}
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, **switch})
    assert (done.returncode != 0) == checked
    assert ("(2, 5, 8, 8)" in done.stdout) != checked
    assert not checked or "dim" in done.stderr


@needs_compiler
def test_a_package_runs_in_cpp(it: Made, folder: Path, route: Callable[[str], Run], tmp_path: Path) -> None:
    route("AOTInductor")
    text = (ROOT / "docs" / "deploy.md").read_text()
    found = re.search(r"```cpp\n(.*?)```.*?\n    g\+\+ (.*?)\n", text, flags=re.DOTALL)
    assert found is not None
    program, options = found.groups()
    small = program.replace("fast.aoti.pt2", str(folder / "model.aoti.pt2")).replace("3, 64, 64", "3, 32, 32")
    (tmp_path / "main.cpp").write_text(small)
    compiler = which("g++") or which("c++")
    options = options.replace("$LIBTORCH", str(Path(torch.__file__).parent))
    subprocess.run(f"{compiler} {options} -o main", shell=True, cwd=tmp_path, check=True, capture_output=True)
    done = subprocess.run("./main", cwd=tmp_path, check=True, capture_output=True, text=True)
    want = it.expected(torch.full((1, 3, 32, 32), 0.5))[0].abs().mean()
    assert float(done.stdout) == pytest.approx(float(want), rel=1e-4)


# Weights: the names are the dense model's.


def test_a_state_dict_loads_into_the_dense_and_into_the_transformed_model(it: Made, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({name: tensor + 0.01 if tensor.is_floating_point() else ~tensor
               for name, tensor in it.model.state_dict().items()}, file)
    state = load_file(file)
    fresh = vit(fused)
    fast = lvtp_fx.transform(fresh, (picture(),), **OPTIONS)
    dense_keys, fast_keys = set(fresh.state_dict()), set(fast.state_dict())
    assert fast_keys == dense_keys
    assert {name for name, _ in fast.named_parameters()} | {name for name, _ in fast.named_buffers()} \
        == dense_keys - UNREAD
    before = fast(picture())
    load_model(fast, file)
    for name, tensor in fast.state_dict().items():
        assert torch.equal(tensor, state[name]), name
        assert fresh.state_dict()[name].data_ptr() == tensor.data_ptr()
    assert relative(fast(picture()), before) > 1e-3
    save_model(fast, tmp_path / "fast.safetensors")
    load_model(vit(fused), tmp_path / "fast.safetensors")
    other = vit(fused)
    other.load_state_dict(state)
    assert relative(lvtp_fx.transform(other, (picture(),), **OPTIONS)(picture()), fast(picture())) < 1e-6


def test_a_state_dict_with_what_is_not_read_is_checked_as_the_models() -> None:
    model = vit(fused)
    fast = lvtp_fx.transform(model, (picture(),), **OPTIONS)
    name = "blocks.0.attention.q_norm.weight"
    assert name in UNREAD
    state = {key: value.clone() for key, value in model.state_dict().items()}
    twin = copy.deepcopy(fast)
    twin.load_state_dict({**state, name: state[name] + 1})
    assert torch.equal(twin.state_dict()[name], state[name] + 1)  # and the copy's is another than the model's
    assert torch.equal(model.state_dict()[name], state[name])
    within = torch.nn.Sequential(fast)
    within.load_state_dict({f"0.{key}": value for key, value in state.items()})
    for wrong, text in (
        ({**state, name: torch.zeros(3)}, rf"size mismatch for {name}: the state dict has \(3,\), the model \(16,\)"),
        ({key: value for key, value in state.items() if key != name}, f'Missing key.*"{name}"'),
        ({**state, "another": torch.zeros(3)}, 'Unexpected key.*"another"'),
    ):
        with pytest.raises(RuntimeError, match=text):
            fast.load_state_dict(wrong)
        with pytest.raises(RuntimeError, match=text.replace(name, f"0.{name}").replace("another", "0.another")):
            within.load_state_dict({f"0.{key}": value for key, value in wrong.items()})


class Normalising(torch.nn.Module):
    """Holds one tensor as a plain attribute, makes another one on the way, and has buffers that are not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.vit, self.mean = vit(fused), torch.full((1, 3, 1, 1), 0.5)
        self.register_buffer("shift", torch.ones(1), persistent=False)
        self.vit.embed.register_buffer("scale", torch.full((1,), 2.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x - self.mean) * torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
        return self.vit(x * self.vit.embed.scale + self.shift)  # type: ignore[no-any-return]


def test_constants_are_no_state(tmp_path: Path) -> None:
    model = Normalising()
    fast = lvtp_fx.transform(model, (picture(),), **OPTIONS)
    for each in (fast, copy.deepcopy(fast)):
        assert each.state_dict().keys() == model.state_dict().keys()
        each.load_state_dict(model.state_dict())
        model.load_state_dict(each.state_dict())
        assert relative(each(picture()), fast(picture())) == 0
    save_model(fast, tmp_path / "fast.safetensors")
    load_model(Normalising(), tmp_path / "fast.safetensors")


# Of the attention of tests/tiny.py: parameters that its fused form does not read.
UNREAD = {
    f"blocks.{i}.attention.{name}" for i in range(3)
    for name in ("q_norm.weight", "q_norm.bias", "k_norm.weight", "k_norm.bias", "temperature", "bias_table",
                 "heads_mix", "allowed")
}


# Refusals.


SAVE = {"model.pt2": ship.save_exported, "model.aoti.pt2": ship.save_aoti, "model.onnx": ship.save_onnx}


@pytest.mark.parametrize("name", SAVE)
def test_inputs_of_another_size_are_refused_and_nothing_is_written(it: Made, tmp_path: Path, name: str) -> None:
    with pytest.raises(lvtp_fx.LvtpError, match="LVTP401 input-does-not-fit"):
        SAVE[name](it.fast, (torch.zeros(2, 3, 64, 64),), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_written_program_is_known_for_what_it_is(it: Made, tmp_path: Path) -> None:
    """No op of the dialect is left in it, yet it is not taken for a dense model."""
    ship.save_exported(it.fast, (picture(),), tmp_path / "fast.pt2")
    program = torch.export.load(tmp_path / "fast.pt2")
    assert "lvtp" not in program.graph_module.code
    for model in (program, program.module(), torch.export.export(it.fast, (picture(),))):
        with pytest.raises(lvtp_fx.LvtpError, match=r"LVTP106 (.|\n)*which lvtp_fx.transform made"):
            lvtp_fx.transform(model, (picture(),))
    torch.export.save(torch.export.export(it.model, (picture(),)), tmp_path / "dense.pt2")
    assert lvtp_fx.transform(torch.export.load(tmp_path / "dense.pt2"), **OPTIONS).report.flops_cut > 0


def test_what_cannot_be_written_is_a_refusal_that_says_why(it: Made, tmp_path: Path) -> None:
    with pytest.raises(lvtp_fx.LvtpError, match="LVTP501 cannot-write-file") as caught:
        ship.save_exported(it.fast, (picture(),), tmp_path / "no" / "such" / "folder.pt2")
    assert "folder" in caught.value.hint
    with pytest.raises(lvtp_fx.LvtpError, match=r"LVTP501 cannot-write-file(.|\n)*ends with \.pt2"):
        ship.save_aoti(it.fast, (picture(),), tmp_path / "model.so")


class Then(nn.Module):
    """A model, and what is made of its output."""

    def __init__(self, then: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.then = vit(fused), then

    def forward(self, image: torch.Tensor) -> Any:
        return self.then(self.inner(image))


@pytest.mark.parametrize(("name", "extra"), [
    ("a.pt2", "city"), ("a.aoti.pt2", "city"), ("a.onnx", "city"), ("a.onnx", 3), ("a.onnx", 0.5), ("a.onnx", True)])
def test_an_output_that_the_format_has_no_place_for_is_a_refusal(tmp_path: Path, name: str, extra: object) -> None:
    """torch.export.save writes a string, and torch.export.load cannot read it."""
    fast = lvtp_fx.transform(Then(lambda out: (out, {"more": extra})), (picture(),), **OPTIONS)
    with pytest.raises(lvtp_fx.LvtpError, match=f"LVTP501 (.|\n)*got: {extra!r} among the outputs") as caught:
        SAVE[f"model{name[1:]}"](fast, (picture(),), tmp_path / name)
    assert ("save_exported" in caught.value.hint) == (extra != "city")
    assert list(tmp_path.iterdir()) == []


def test_numbers_among_the_outputs_are_written_and_read(tmp_path: Path) -> None:
    fast = lvtp_fx.transform(
        Then(lambda out: (out, [3, 0.5, True, None, out.shape[0]])), (picture(),), **OPTIONS)
    ship.save_exported(fast, picture(), tmp_path / "a.pt2")  # a tensor, as transform takes it
    got, numbers = torch.export.load(tmp_path / "a.pt2").module()(picture(2))
    assert numbers == [3, 0.5, True, None, 2]
    assert relative(got, fast(picture(2))[0]) < 1e-5


def test_what_onnx_cannot_express_is_named(tmp_path: Path) -> None:
    fast = lvtp_fx.transform(Then(lambda out: torch.special.bessel_j0(out)), (picture(),), **OPTIONS)
    with pytest.raises(lvtp_fx.LvtpError, match=r"LVTP501 (.|\n)*got: .*bessel_j0") as caught:
        ship.save_onnx(fast, (picture(),), tmp_path / "a.onnx")
    assert "\x1b" not in str(caught.value)


FULL = """
import resource, sys
from pathlib import Path
import lvtp_fx
from lvtp_fx import ship
from tests.tiny import fused, picture, vit
fast = lvtp_fx.transform(vit(fused), (picture(),), keep_ratio=0.5)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    ship.save_exported(fast, (picture(),), Path(sys.argv[1]))
except lvtp_fx.LvtpError as refusal:
    print(refusal)
"""


def test_a_full_disk_is_a_refusal_and_leaves_the_old_file(tmp_path: Path) -> None:
    """As a limit on the size of files; PyTorch's own writer ends the process there."""
    (tmp_path / "fast.pt2").write_text("old")
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path / "fast.pt2")], capture_output=True, text=True,
                          check=False, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"LVTP501 cannot-write-file at {tmp_path / 'fast.pt2'}")
    assert "got: OSError: [Errno 27] File too large" in done.stdout
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("fast.pt2", "old")]


def test_a_graph_with_a_fixed_batch_is_written_with_it(tmp_path: Path) -> None:
    class One(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = vit(fused)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.vit(x.reshape(1, 3, 32, 32))  # type: ignore[no-any-return]

    fast = lvtp_fx.transform(One(), (picture(1),), keep_ratio=0.5, sites=(0,), rounds=1)
    assert "the batch size is fixed" in str(fast.report)
    ship.save_exported(fast, (picture(1),), tmp_path / "one.pt2")
    run = torch.export.load(tmp_path / "one.pt2").module()
    assert relative(run(picture(1)), fast(picture(1))) < 1e-6
    with pytest.raises(Exception, match="Guard failed"):
        run(picture(2))


class Ranked(torch.nn.Module):
    """A graph that only ranks: many entries are equal."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.sort(x, dim=1, stable=True, descending=d).indices for d in (True, False)], dim=1)


def test_onnx_keeps_the_order_of_equal_entries(tmp_path: Path) -> None:
    x = torch.randint(3, (4, 100), generator=torch.Generator().manual_seed(0)).float()
    graph = torch.export.export(Ranked(), (x,), strict=False).module()
    assert isinstance(graph, torch.fx.GraphModule)
    ship.save_onnx(graph, (x,), tmp_path / "ranked.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "ranked.onnx")
    assert torch.equal(torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), Ranked()(x))
    backwards = torch.sort(x.flip(1), dim=1, descending=True, stable=True).indices
    assert not torch.equal(99 - backwards, Ranked()(x)[:, :100])  # another order of equal entries would show
