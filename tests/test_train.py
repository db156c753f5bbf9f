"""Training: resumes as if it had never stopped, learns, writes what the loader reads, refuses in words."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lvtp_fx.models import train as module
from lvtp_fx.models.checkpoint import load_checkpoint
from lvtp_fx.models.scenes import make_batch
from lvtp_fx.models.segmenter import Segmenter, SegmenterConfig
from lvtp_fx.models.train import HELD_OUT, Stage, Trainer, evaluate, export, learning_rate, loss_of, resized, train

TINY = SegmenterConfig(img_size=32, C=16, depth=1, heads=2)
STAGES = (Stage(32, 4, 0.003), Stage(48, 3, 0.002))  # the second one resizes
STEPS = 7
twice = pytest.mark.filterwarnings("ignore:.*found in sys.modules")  # what runs as __main__ is imported above


def run(out: Path, stages: tuple[Stage, ...] = STAGES, config: SegmenterConfig = TINY, **options: Any) -> Any:
    return train(config, stages, out, **{"batch": 2, **options})


def same(a: Any, b: Any) -> bool:
    """Bit by bit, through dictionaries and lists."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, same_bits: None) -> Trainer:
    """A run that nothing stopped."""
    trainer: Trainer = run(tmp_path_factory.mktemp("whole"))
    return trainer


@pytest.mark.parametrize("stops", [(0,), (2,), (4,), (6,), (1, 3, 5)])
def test_resumed_run_ends_with_the_same_bits(tmp_path: Path, whole: Trainer, stops: tuple[int, ...]) -> None:
    """Within a stage, between two (4), and more than once."""
    for stop in stops:
        assert run(tmp_path, stop_after=stop) is None
        torch.rand(stop + 1)  # another process would stand elsewhere in the global generator
    resumed = run(tmp_path)
    assert resumed.step == STAGES[-1].steps
    assert same(resumed.state(), whole.state())


def test_bits_depend_on_every_step_seed_and_rate(tmp_path: Path, whole: Trainer) -> None:
    assert not same(run(tmp_path / "seed", seed=1).state(), whole.state())
    assert not same(run(tmp_path / "rate", (STAGES[0], Stage(48, 3, 0.001))).state(), whole.state())
    assert not same(whole.mean.state_dict(), whole.model.state_dict())


def test_stage_begins_with_the_averaged_weights_of_the_one_before(tmp_path: Path) -> None:
    first = run(tmp_path, STAGES[:1])
    assert run(tmp_path, stop_after=4) is None
    begun = Trainer(replace(TINY, img_size=48), None, 0.998)
    begun.load(torch.load(tmp_path / "last.pt")["trainer"])
    expected = resized(first.mean.state_dict(), begun.model.config)
    assert begun.step == 0
    assert same(dict(begun.model.state_dict()), expected)
    assert same(dict(begun.mean.state_dict()), expected)
    assert not same(dict(begun.model.state_dict()), resized(first.model.state_dict(), begun.model.config))


@pytest.mark.parametrize(("average", "kept"), [(0.998, 0.1), (0.05, 0.05), (0.0, 0.0)])
def test_average_forgets_the_random_start_sooner(average: float, kept: float) -> None:
    """The first step keeps a tenth of it, whatever is asked for."""
    trainer = Trainer(TINY, None, average)
    start = trainer.mean.head.weight.clone()
    trainer.train_step(STAGES[0], 2, 0)
    now = trainer.model.head.weight.detach()
    assert torch.allclose(trainer.mean.head.weight, kept * start + (1 - kept) * now, atol=1e-7)


def test_killed_run_resumes_from_its_last_save(
    tmp_path: Path, whole: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.train_step

    def dies(self: Trainer, stage: Stage, batch: int, first_seed: int) -> float:
        if stage == STAGES[1] and self.step == 2:
            raise KeyboardInterrupt
        return step(self, stage, batch, first_seed)

    monkeypatch.setattr(Trainer, "train_step", dies)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, save_every=2)
    monkeypatch.undo()
    assert same(run(tmp_path).state(), whole.state())


def test_finished_run_is_not_trained_again(tmp_path: Path, whole: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path)
    monkeypatch.setattr(Trainer, "train_step", None)
    assert same(run(tmp_path).state(), whole.state())


def test_stages_to_come_may_change_but_no_other_setting(tmp_path: Path) -> None:
    run(tmp_path, STAGES[:1])
    assert run(tmp_path, STAGES).step == 3
    for changed, message in (
        ({"batch": 3}, "its batch was 2, not 3"), ({"seed": 5}, "its seed was 0, not 5"),
        ({"average": 0.5}, r"its average was 0\.998, not 0\.5"),
        ({"config": replace(TINY, depth=2)}, "its config was"), ({"stages": STAGES[:1]}, "its stages was"),
        ({"stages": (Stage(32, 5, 0.003), STAGES[1])}, "its stages was"),
    ):
        with pytest.raises(ValueError, match=rf"last\.pt is of another run, {message}.*: name another folder"):
            run(tmp_path, **changed)


@pytest.mark.parametrize("content", [b"", b"no pickle", b"PK\x03\x04"])
def test_broken_state_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "last.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"last\.pt cannot be resumed from"):
        run(tmp_path)


def test_no_step_sees_a_scene_twice_or_one_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def spy(seeds: range, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        seen.extend(seeds)
        return make_batch(seeds, size)

    monkeypatch.setattr(module, "make_batch", spy)
    run(tmp_path, seed=10)
    assert seen == list(range(10, 10 + 2 * STEPS))
    seen.clear()
    evaluate(Segmenter(TINY), 32, 5, batch=2)
    assert seen == list(range(HELD_OUT, HELD_OUT + 5))


@pytest.mark.parametrize(("options", "message"), [
    ({"batch": 0}, "batch must be >= 1, got 0"),
    ({"save_every": 0}, "save_every must be >= 1, got 0"),
    ({"stages": ()}, "stages must be >= 1, got 0"),
    ({"stages": (Stage(32, 1, 1.0), Stage(36, 1, 1.0))}, "img_size 36 is no multiple of patch_size 8"),
    ({"stages": (Stage(32, 1, 1.0), Stage(24, 1, 1.0))}, "at least 32 pixels a side, got 24"),
    ({"seed": -1}, "seed -1 is negative"),
    ({"seed": HELD_OUT - 2 * STEPS + 1}, "would reach the held-out scenes"),
    ({"config": replace(TINY, classes=8)}, "scenes have 7 classes, the config has 8"),
])
def test_refused_before_the_first_step(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_last_seed_below_the_held_out_ones_is_taken(tmp_path: Path) -> None:
    assert run(tmp_path, seed=HELD_OUT - 2 * STEPS, stop_after=0) is None


def test_evaluation_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="scenes must be >= 1, got 0"):
        evaluate(Segmenter(TINY), 32, 0)
    with pytest.raises(ValueError, match="batch must be >= 1, got 0"):
        evaluate(Segmenter(TINY), 32, 1, batch=0)


def test_evaluation_does_not_depend_on_its_batches() -> None:
    model = Segmenter(TINY)
    one, three = evaluate(model, 32, 5, batch=1), evaluate(model, 32, 5, batch=3)
    assert int(one.confusion.sum()) == 5 * 32 * 32
    assert torch.equal(one.confusion, three.confusion)


def test_stage_parses_what_it_says() -> None:
    assert Stage.parse("128:3000:0.0015") == Stage(128, 3000, 0.0015)


@pytest.mark.parametrize("text", ["nonsense", "", "1:2", "1:2:3:4", "32:4:fast", "32.5:4:0.1", "32:4.0:0.1"])
def test_stage_refuses_other_text(text: str) -> None:
    with pytest.raises(ValueError, match=f"a stage is size:steps:lr, as in 128:1200:0.001, got '{text}'"):
        Stage.parse(text)


@pytest.mark.parametrize(("text", "name"), [
    ("0:1:1", "size"), ("32:-1:1", "steps"), ("32:1:0", "lr"), ("32:1:nan", "lr"), ("32:1:inf", "lr"),
])
def test_stage_refuses_what_is_not_positive(text: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} of a stage must be positive"):
        Stage.parse(text)


def test_learning_rate_warms_up_then_falls_to_a_hundredth() -> None:
    stage = Stage(32, 200, 2.0)
    rates = [learning_rate(stage, step) for step in range(stage.steps)]
    assert rates[:10] == pytest.approx([0.2 * i for i in range(1, 11)])
    assert rates[10] == max(rates) == 2.0
    assert rates[105] == pytest.approx(2.0 * 0.505)  # half of the way down
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.02, rel=0.02)
    assert learning_rate(Stage(32, 1, 2.0), 0) == 2.0


def test_position_embedding_is_resized_over_the_grid() -> None:
    state = Segmenter(TINY).state_dict()
    assert torch.equal(resized(state, TINY)["pos_embed"], state["pos_embed"])
    ramp = torch.arange(4.0).view(4, 1).expand(4, 4).reshape(1, 16, 1)  # grows from row to row
    wider = replace(TINY, img_size=64)
    rows = resized({**state, "pos_embed": ramp.expand(1, 16, 16)}, wider)["pos_embed"][0, :, 0].view(8, 8)
    assert torch.allclose(rows, rows[:, :1].expand(8, 8), atol=1e-6)
    assert (rows[1:, 0] > rows[:-1, 0]).all()
    bigger = Segmenter(wider)
    bigger.load_state_dict(resized(state, wider))
    assert torch.equal(bigger.head.weight, state["head.weight"])
    with pytest.raises(RuntimeError, match="size mismatch for pos_embed"):
        bigger.load_state_dict(state)


def test_loss_is_low_for_the_label_and_high_for_another() -> None:
    label = make_batch([1], 32)[1]
    right = torch.nn.functional.one_hot(label, 7).movedim(-1, 1) * 20.0
    assert loss_of(right, label) < 0.5
    assert loss_of(right.roll(1, 1), label) > 10


def test_loss_falls(tmp_path: Path) -> None:
    stage = Stage(32, 60, 0.004)
    trainer = Trainer(TINY, None, 0.9)
    losses = [trainer.train_step(stage, 4, 0) for _ in range(stage.steps)]
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])
    assert evaluate(trainer.mean, 32, 8).miou() > 2 * evaluate(Segmenter(TINY), 32, 8).miou()


@torch.inference_mode()
def test_export_is_a_checkpoint_that_predicts_the_same(tmp_path: Path, whole: Trainer) -> None:
    spec = export(whole, STAGES, tmp_path / "new" / "folder", 3, 2)
    loaded, read = load_checkpoint(tmp_path / "new" / "folder")
    images = make_batch(range(2), 48)[0]
    x = read.preprocess(images)
    assert torch.equal(loaded(x), whole.mean(x))
    assert not torch.equal(loaded(x), whole.model(x))
    assert (read.img_size, read.classes, read.ignore_index) == ((48, 48), 7, None)
    assert spec["trained"] == {"stages": [vars(stage) for stage in STAGES], "batch": 2}
    meter = evaluate(loaded, 48, 3)
    assert spec["held_out"] == {
        "scenes": 3, "first_seed": HELD_OUT, "miou": round(100 * meter.miou(), 2),
        "boundary_miou": round(100 * meter.boundary_miou(), 2),
    }


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """`python -m lvtp_fx.models.train` in this process: another one would load torch again, for seconds."""

    def run_module(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as end:
            runpy.run_module("lvtp_fx.models.train", run_name="__main__")
        captured = capsys.readouterr()
        return Done(int(end.value.code or 0), captured.out, captured.err)

    return run_module


@twice
def test_command_line_trains_resumes_and_shows_progress(tmp_path: Path, start: Callable[..., Done]) -> None:
    out = tmp_path / "run"
    command = ("--out", out, "--stage", "32:1:0.001", "--stage", "40:1:0.001", "--batch", 1, "--scenes", 2)
    done = start(*command)
    assert done.code == 0, done.err
    for part in ("stage 1, 32 px, loss", "stage 2, 40 px, loss", "2 held-out scenes", "1/1"):
        assert part in done.err
    figures = json.loads(done.out)
    assert (figures["scenes"], figures["first_seed"]) == (2, HELD_OUT)
    assert sorted(path.name for path in out.iterdir()) == ["last.pt", "model.json", "model.safetensors"]
    assert load_checkpoint(out)[1].img_size == (40, 40)
    again = start(*command)
    assert (again.code, json.loads(again.out)) == (0, figures)
    assert "stage 1" not in again.err  # it was done


@twice
@pytest.mark.parametrize(("arguments", "message"), [
    (("--stage", "nonsense"), "error: a stage is size:steps:lr"),
    (("--stage", "33:1:0.001"), "error: img_size 33 is no multiple of patch_size 8"),
    (("--stage", "24:1:0.001"), "error: a scene needs at least 32 pixels"),
    (("--batch", 0), "Invalid value for '--batch'"),
    (("--scenes", 0), "Invalid value for '--scenes'"),
])
def test_command_line_refuses_in_words(
    tmp_path: Path, start: Callable[..., Done], arguments: tuple[object, ...], message: str
) -> None:
    done = start("--out", tmp_path / "run", *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert not (tmp_path / "run").exists()


@twice
def test_command_line_refuses_a_file_as_folder_and_another_run(tmp_path: Path, start: Callable[..., Done]) -> None:
    (tmp_path / "file").touch()
    done = start("--out", tmp_path / "file", "--stage", "32:1:0.001")
    assert (done.code, "is a file" in done.err) == (2, True)
    (tmp_path / "last.pt").write_bytes(b"")
    done = start("--out", tmp_path, "--stage", "32:1:0.001")
    assert (done.code, "last.pt cannot be resumed from" in done.err) == (2, True)
