"""`bench/train.py` on a made-up folder: resumes, writes what the loader reads, starts from other weights, refuses."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

BENCH = Path(__file__).parents[1] / "bench"
sys.path.append(str(BENCH))

import train_models  # noqa: E402
from train import Recipe, Run  # noqa: E402
from train_images import Draws, class_weights  # noqa: E402
from train_models import IMAGENET, Kind, warm_start  # noqa: E402

from lvtp_fx.models.camvid import CamVid  # noqa: E402
from lvtp_fx.models.checkpoint import TimmLinear, build, load_checkpoint  # noqa: E402
from lvtp_fx.models.segmenter import Segmenter, SegmenterConfig  # noqa: E402
from lvtp_fx.models.training import progress_bar  # noqa: E402
from tests.test_train import same  # noqa: E402

WIDTH = {"depth": 2, "embed_dim": 32, "num_heads": 2}
MASK = {"img_size": [32, 48], "reg_tokens": 4, "no_embed_class": True, "init_values": 1.0, **WIDTH}
TINY = {
    "mask": Kind(MASK, "mask", (32, 48)),
    "patch8": Kind({"img_size": [16, 24], "patch_size": 8, **WIDTH}, "linear", (32, 48)),
}
SOURCE = {"img_size": (32, 48), "num_classes": 0, **WIDTH}
EPOCHS, STEPS = 3, 6
Command = Callable[..., tuple[int, str, str]]  # arguments to exit code, stdout, stderr


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kind in TINY.items():
        monkeypatch.setitem(train_models.KINDS, name, kind)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images to train on and two to validate, of 36 x 50 px: classes 0 and 1 in rectangles, 2 is ignored."""
    folder, rng = tmp_path_factory.mktemp("camvid"), np.random.default_rng(0)
    meta = {"classes": ["low", "high", "void"], "num_classes": 2, "ignore_index": 2}
    (folder / "meta.json").write_text(json.dumps(meta))
    for split, count in (("train", 5), ("val", 2)):
        names = [f"{split}{i}" for i in range(count)]
        (folder / f"{split}.txt").write_text("\n".join(names))
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for name in names:
            Image.fromarray(rng.integers(0, 256, (36, 50, 3), np.uint8)).save(folder / f"images/{split}/{name}.jpg")
            label = np.zeros((36, 50), np.uint8)
            label[18:], label[:, :5] = 1, 2
            Image.fromarray(label).save(folder / f"labels/{split}/{name}.png")
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint as others were trained: patches of 16 px, a class token, a linear head."""
    folder = tmp_path / "source"
    folder.mkdir()
    torch.manual_seed(1)
    model = TimmLinear("vit_tiny_patch16_224", SOURCE, (32, 48), 2)
    described = {"what": "a test", "timm_name": "vit_tiny_patch16_224", "timm_kwargs": {**SOURCE, "img_size": [32, 48]},
                 "img_size": [32, 48], "classes": 2, "ignore_index": 2, "normalize": {**IMAGENET, "std": [50, 60, 70]}}
    (folder / "model.json").write_text(json.dumps(described))
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def recipe(model: str = "mask", **changed: Any) -> Recipe:
    fields = {"epochs": EPOCHS, "batch": 2, "lr": 1e-3, "average": 0.9, "balance": 0.5, "scale_min": 0.5, "seed": 0,
              "device": "cpu", "bf16": False}
    return Recipe(model, **{**fields, **changed})


def fitted(data: Path, out: Path, *arguments: Any) -> Run:
    run = Run(data, out, *arguments or (recipe(), None))
    with progress_bar() as progress:
        run.fit(progress)
    return run


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """The run is killed where it asks for the loss of one step."""
    whole = Run.loss

    def at(step: int) -> None:
        def loss(self: Run, *arguments: Any) -> torch.Tensor:
            if self.trainer.step == step:
                raise KeyboardInterrupt
            return whole(self, *arguments)

        monkeypatch.setattr(Run, "loss", loss)

    return at


@pytest.mark.parametrize("model", TINY)
def test_killed_run_ends_with_the_same_bits(
    tmp_path: Path, data: Path, source: Path, model: str, stops: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fitted(data, tmp_path / "whole", recipe(model), source)
    monkeypatch.setattr("train.SAVE_EVERY", 1)  # within an epoch too
    for step in (1, 4):
        stops(step)
        with pytest.raises(KeyboardInterrupt):
            fitted(data, tmp_path / "run", recipe(model), source)
        torch.rand(step)  # another process would stand elsewhere in the global generator
    stops(-1)
    again = fitted(data, tmp_path / "run", recipe(model), source)
    assert again.trainer.step == STEPS
    assert same(again.trainer.state(), whole.trainer.state())
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    for line, other in zip(lines, whole.log, strict=True):
        assert {**line, "seconds": 0} == {**other, "seconds": 0}
    stops(STEPS)  # it is done: no further step
    assert same(fitted(data, tmp_path / "run", recipe(model), source).trainer.state(), whole.trainer.state())


@pytest.mark.parametrize("changed", [{"seed": 1}, {"epochs": 4}, {"balance": 0.0}])
def test_another_run_is_refused(tmp_path: Path, data: Path, changed: dict[str, Any]) -> None:
    fitted(data, tmp_path, recipe(epochs=1), None)
    with pytest.raises(ValueError, match=rf"is of another run, its {next(iter({'epochs': 0, **changed}))} was"):
        Run(data, tmp_path, recipe(**changed), None)


def test_written_checkpoint_is_the_averaged_model(tmp_path: Path, data: Path, source: Path) -> None:
    run = fitted(data, tmp_path / "run", recipe(), source)
    figures = run.export("a licence")
    model, spec = load_checkpoint(tmp_path / "run")
    x = spec.preprocess(torch.rand(2, 3, 32, 48))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {t.dtype for t in load_file(tmp_path / "run/model.safetensors").values()} == {torch.float16}
    assert same(dict(model.state_dict()), dict(run.stored().state_dict()))
    with torch.inference_mode():
        out, mean, last = model(x), run.trainer.mean.eval()(x), run.trainer.model.eval()(x)
    assert torch.allclose(out, mean, atol=5e-3)
    assert (out - mean).abs().mean() < 0.1 * (out - last).abs().mean()
    assert (spec.img_size, spec.classes, spec.ignore_index, spec.std) == ((32, 48), 2, 2, (50, 60, 70))
    written = json.loads((tmp_path / "run/model.json").read_text())
    assert "3 epochs on 5 images" in spec.what
    assert "from source (a test)" in spec.what
    assert written["licence"] == "a licence"
    assert written["val"] == figures == {"images": 2, "miou": run.log[-1]["val_miou"],
                                         "boundary_miou": run.log[-1]["val_boundary_miou"]}
    assert (written["trained"]["epochs"], written["trained"]["steps"]) == (EPOCHS, STEPS)
    assert warm_start(build(written)[0], model) == []  # it is a start in its turn


def card(kind: Kind, **changed: Any) -> dict[str, Any]:
    return {"timm_name": kind.timm_name, "timm_kwargs": {**kind.kwargs, **changed}, "head": kind.head, "what": "",
            "img_size": kind.kwargs["img_size"], "classes": 2, "ignore_index": 2, "normalize": IMAGENET}


def start(kind: Kind, source: Path, **changed: Any) -> tuple[Any, list[str]]:
    """A model of that kind that starts from the checkpoint, and what it did not find there."""
    model, _ = build(card(kind, **changed))
    return model, warm_start(model, load_checkpoint(source)[0])


@torch.inference_mode()
def test_encoder_starts_as_the_source(source: Path) -> None:
    """The class token's row of the position embedding goes into the token; LayerScale of one changes nothing."""
    x, theirs = torch.rand(2, 3, 32, 48), cast(Any, load_checkpoint(source)[0])
    expected = theirs.enc.forward_features(x)[:, 1:]
    model, said = start(TINY["mask"], source, reg_tokens=0)
    assert torch.allclose(model.encoder.tokens(x), expected, atol=1e-5)
    assert said[:2] == ["encoder.model.blocks.*.ls1.gamma", "encoder.model.blocks.*.ls2.gamma"]
    assert all(name.startswith("head.") for name in said[2:])
    registers, said = start(TINY["mask"], source)  # four more keys in the attention
    assert torch.allclose(registers.encoder.tokens(x), expected, atol=0.5)
    assert not torch.allclose(registers.encoder.tokens(x), expected, atol=1e-3)
    assert "encoder.model.reg_token" in said


@torch.inference_mode()
def test_smaller_patches_see_a_smaller_image_alike(source: Path) -> None:
    theirs, (model, said) = cast(Any, load_checkpoint(source)[0]), start(TINY["patch8"], source)
    small = torch.rand(2, 3, 16, 24)
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert said == []
    assert torch.allclose(model.encoder.tokens(small), theirs.enc.forward_features(large)[:, 1:], atol=1e-5)
    assert torch.equal(model.head.proj.weight, theirs.head.weight)


def test_draws_depend_on_their_number_alone(data: Path) -> None:
    spec = build(card(TINY["mask"]))[1]
    draws = Draws(CamVid(data, "train", (32, 48)), spec, 2, 3, 0, 0.5)
    assert len(draws) == 12  # of 15: an epoch leaves the fifth image out
    image, label = draws[7]
    assert (image.shape, image.dtype, label.shape, label.dtype) == (
        (3, 32, 48), torch.float32, (32, 48), torch.int64)
    assert type(image) is type(label) is torch.Tensor
    before = torch.get_rng_state()
    assert same([*draws[7]], [image, label])
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(torch.equal(draws[i][0], image) for i in range(12) if i != 7)
    assert set(torch.cat([draws[i][1] for i in range(12)]).unique().tolist()) == {0, 1, 2}


def test_class_weights_balance_without_changing_the_mean() -> None:
    labels = [(torch.zeros(1), torch.tensor([[0, 0, 0, 1, 2]]))]  # 2 is ignored
    assert class_weights(labels, 2, 0).tolist() == [1, 1]  # type: ignore[arg-type]
    assert class_weights(labels, 2, 1).tolist() == pytest.approx([2 / 3, 2])  # type: ignore[arg-type]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`python bench/train.py` in this process: another one would load torch again, for seconds."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(BENCH / "train.py"), run_name="__main__")
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return run


def test_command_line_trains_from_random_weights(tmp_path: Path, data: Path, command: Command) -> None:
    code, out, err = command("--data", data, "--model", "mask", "--out", tmp_path / "run", "--epochs", 2, "--batch", 2,
                             "--eval-every", 2, "--bf16", "--device", "cpu")
    assert code == 0, err
    assert "mask, epoch 2, loss" in err
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert ["val_miou" in line for line in lines] == [False, True]
    assert json.loads(out)["miou"] == lines[-1]["val_miou"]
    written = json.loads((tmp_path / "run/model.json").read_text())
    assert (written["init"], "from random weights" in written["what"]) == (None, True)


@pytest.mark.parametrize(("arguments", "message"), [
    (("--data", "nowhere"), "nowhere is missing: expected a folder with meta.json"),
    (("--model", "resnet"), "--model must be one of mask, patch8, got 'resnet'"),
    (("--init", "nowhere"), "nowhere is no checkpoint: it has no model.json"),
    (("--batch", 6), "a batch of 6 needs as many images"),
    (("--device", "tpu"), "--device must be auto, cpu or cuda, got 'tpu'"),
    (("--epochs", 0), "Invalid value for '--epochs'"),
])
def test_what_the_user_can_put_right_is_no_traceback(
    tmp_path: Path, data: Path, command: Command, arguments: tuple[object, ...], message: str
) -> None:
    code, out, err = command("--data", data, "--model", "mask", "--out", tmp_path / "run", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "run").exists()


def test_start_that_is_no_timm_encoder_is_refused(tmp_path: Path) -> None:
    config = SegmenterConfig(img_size=32, C=8, depth=1, heads=2)
    described = {"what": "", "segmenter": vars(config), "img_size": [32, 32], "classes": 7, "ignore_index": None,
                 "normalize": IMAGENET}
    (tmp_path / "model.json").write_text(json.dumps(described))
    save_file(Segmenter(config).state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="holds no weights that fit: it must be a timm encoder"):
        start(TINY["mask"], tmp_path)
