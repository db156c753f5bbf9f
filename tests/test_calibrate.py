"""`calibrate`: schedules no worse than the default, found within the passes, and refusals."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import lvtp_fx
from lvtp_fx.api import prepare
from lvtp_fx.calibration.likeness import likeness, miou, reference, tally
from lvtp_fx.calibration.schedules import Schedule, default_schedule, neighbours, spread_schedules
from lvtp_fx.capture import Capture, capture
from lvtp_fx.config import Config
from lvtp_fx.models.metrics import SegmentationMeter
from lvtp_fx.models.random_weights import randomise
from lvtp_fx.models.segmenter import Segmenter, SegmenterConfig
from tests.draws import integers, normal

CLASSES = 3
IMAGES = normal(1, 6, 3, 64, 64, dtype=torch.float32)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    config = SegmenterConfig(img_size=64, patch_size=8, C=16, depth=6, heads=2, classes=CLASSES)
    return randomise(Segmenter(config), 0).eval()


@pytest.fixture(scope="module")
def captured(model: nn.Module) -> Capture:
    return capture(model, (IMAGES[:2],), {})


def agreement(captured: Capture, config: Config, images: torch.Tensor = IMAGES) -> float:
    with torch.no_grad():
        dense = captured.module(images).argmax(1)
        pruned = lvtp_fx.transform(captured, config=config)(images).argmax(1)
    return float((dense == pruned).double().mean())


class Calls:
    """Counts what the progress callback is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.seen.append((done, total))


@pytest.fixture(scope="module")
def found(captured: Capture) -> tuple[Config, Calls]:
    calls = Calls()
    return lvtp_fx.calibrate(captured, IMAGES, flops_cut=0.25, passes=90, progress=calls), calls


def test_the_cut_is_met_and_the_default_not_lost_to(captured: Capture, found: tuple[Config, Calls]) -> None:
    config, _ = found
    assert config.sites != "auto"
    assert isinstance(config.keep_ratio, tuple)
    assert len(config.keep_ratio) == len(config.sites)
    report = lvtp_fx.transform(captured, config=config).report
    assert 0.25 <= report.flops_cut < 0.27
    assert agreement(captured, config) >= agreement(captured, Config(flops_cut=0.25))


def test_it_stays_within_its_passes_and_says_how_far_it_is(found: tuple[Config, Calls]) -> None:
    seen = found[1].seen
    assert [total for _, total in seen] == [90] * len(seen)
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert 4 * len(IMAGES) < len(seen) <= 90


@pytest.mark.parametrize(("images", "passes", "wanted"), [
    (IMAGES, 24, {"flops_cut": 0.2}), (IMAGES, 24, {"max_drop": 0.2}), ([IMAGES], 24, {"flops_cut": 0.2}),
    (list(IMAGES.split(4)), 30, {"max_drop": 0.2}),
], ids=["fewest", "fewest of a drop", "one batch", "batches"])
def test_it_stays_within_few_passes(captured: Capture, images: Any, passes: int, wanted: dict[str, Any]) -> None:
    calls = Calls()
    config = lvtp_fx.calibrate(captured, images, passes=passes, progress=calls, **wanted)
    assert calls.seen[-1][0] <= passes
    assert lvtp_fx.transform(captured, config=config).report.flops_cut > 0.05


def test_images_of_another_size_are_refused(captured: Capture) -> None:
    with pytest.raises(lvtp_fx.LvtpError, match="LVTP401 input-does-not-fit"):
        lvtp_fx.calibrate(captured, [IMAGES[:1], IMAGES[:1, :, :56]], flops_cut=0.2)


def test_images_without_labels_among_labelled_ones_do_not_confuse_it(captured: Capture) -> None:
    labels = torch.full((6, 64, 64), 255)
    with torch.no_grad():
        labels[5] = captured.module(IMAGES[5:]).argmax(1)[0]
    config = lvtp_fx.calibrate(captured, IMAGES, labels=labels, flops_cut=0.2, passes=40)
    assert lvtp_fx.transform(captured, config=config).report.flops_cut >= 0.2


def test_a_strategy_that_merges_half_at_most_is_calibrated_too(captured: Capture) -> None:
    config = lvtp_fx.calibrate(captured, IMAGES, flops_cut=0.2, passes=30, strategy="bipartite", align=8)
    assert lvtp_fx.transform(captured, config=config).report.flops_cut >= 0.19


def test_the_same_images_give_the_same_config(model: nn.Module, found: tuple[Config, Calls]) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    again = lvtp_fx.calibrate(model, list(IMAGES.split(1)), flops_cut=0.25, passes=90)
    assert model.training
    model.eval()
    assert again == found[0]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Stopped(Exception):
    """What a user's Ctrl-C is."""


def test_a_run_that_was_stopped_goes_on(captured: Capture, found: tuple[Config, Calls], tmp_path: Path) -> None:
    """With what it finds otherwise; also where its last line was cut off."""
    late = len(found[1].seen) * 4 // 5

    def stop(done: int, total: int) -> None:
        if done == late:
            raise Stopped

    journal, options = tmp_path / "new" / "scores.jsonl", {"flops_cut": 0.25, "passes": 90}
    with pytest.raises(Stopped):
        lvtp_fx.calibrate(captured, IMAGES, **options, progress=stop, journal=journal)
    whole = journal.read_text()
    for text, fewest in ((whole, late - 10), (whole[:-5], late - 16)):
        journal.write_text(text)
        calls = Calls()
        assert lvtp_fx.calibrate(captured, IMAGES, **options, progress=calls, journal=journal) == found[0]
        assert len(calls.seen) <= len(found[1].seen) - fewest + len(IMAGES)  # the dense model is run again
        assert calls.seen[-1] == found[1].seen[-1]


@pytest.mark.parametrize("other", [{"images": IMAGES.flip(0)}, {"align": 4}, {"labels": torch.zeros(6, 64, 64).long()}])
def test_a_journal_of_something_else_is_begun_anew(captured: Capture, tmp_path: Path, other: dict[str, Any]) -> None:
    journal, options = tmp_path / "scores.jsonl", {"flops_cut": 0.25, "passes": 24}
    lvtp_fx.calibrate(captured, IMAGES, **options, journal=journal)
    before = journal.read_text().splitlines()
    fresh, again = Calls(), Calls()
    changed: dict[str, Any] = {"images": IMAGES, **options, **other}
    wanted = lvtp_fx.calibrate(captured, **changed, progress=fresh)
    assert lvtp_fx.calibrate(captured, **changed, journal=journal, progress=again) == wanted
    assert again.seen == fresh.seen
    assert journal.read_text().splitlines()[0] != before[0]


def test_labels_are_what_counts_where_they_are_given(captured: Capture) -> None:
    """Labels that a late, deep schedule gets right must win over agreement with the dense model."""
    target = Config(sites=(4,), keep_ratio=0.5)
    with torch.no_grad():
        labels = lvtp_fx.transform(captured, config=target)(IMAGES).argmax(1)
    options: dict[str, Any] = {"flops_cut": 0.1, "passes": 150}
    config = lvtp_fx.calibrate(captured, IMAGES, labels=labels, **options)
    blind = lvtp_fx.calibrate(captured, IMAGES, **options)

    def right(config: Config) -> float:
        meter = SegmentationMeter(CLASSES)
        with torch.no_grad():
            meter.update(lvtp_fx.transform(captured, config=config)(IMAGES).argmax(1), labels)
        return meter.miou()

    assert right(config) >= right(blind)
    assert right(config) >= right(Config(flops_cut=0.1))


@pytest.mark.parametrize("max_drop", [0.05, 0.4])
def test_a_drop_is_kept_to(captured: Capture, max_drop: float) -> None:
    config = lvtp_fx.calibrate(captured, IMAGES, max_drop=max_drop, passes=90)
    assert 1 - agreement(captured, config) <= max_drop
    assert lvtp_fx.transform(captured, config=config).report.flops_cut > 0.05


def test_a_larger_drop_buys_a_larger_cut(captured: Capture) -> None:
    cuts = [lvtp_fx.transform(captured, config=lvtp_fx.calibrate(captured, IMAGES, max_drop=drop, passes=60))
            .report.flops_cut for drop in (0.05, 0.4)]
    assert cuts[0] < cuts[1]


def test_batches_keywords_and_other_options(model: nn.Module) -> None:
    batches = [{"image": IMAGES[:2]}, {"image": IMAGES[2:4]}]
    config = lvtp_fx.calibrate(model, batches, flops_cut=0.2, passes=40, restore="copy")
    assert config.restore == "copy"
    assert lvtp_fx.transform(model, {"image": IMAGES[:1]}, config=config).report.flops_cut >= 0.2


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "neither": ({}, r"(?s)LVTP201.*at calibrate\n.*expected: one of flops_cut and max_drop\n  got: neither"),
    "both": ({"flops_cut": 0.2, "max_drop": 0.1}, r"(?s)LVTP201.*at calibrate\n.*got: both"),
    "drop": ({"max_drop": 1.5}, r"(?s)LVTP201.*at calibrate.max_drop\n  expected: a share in \(0, 1\)\n  got: 1.5"),
    "cut": ({"flops_cut": 1.5}, r"(?s)LVTP201.*at calibrate.flops_cut\n  expected: a share in \(0, 1\)\n  got: 1.5"),
    "nothing": ({"flops_cut": 0}, r"(?s)LVTP201.*at calibrate.flops_cut\n  expected: a share in \(0, 1\)\n  got: 0"),
    "sites": ({"flops_cut": 0.2, "sites": (1,)}, r"(?s)LVTP201.*at calibrate.sites\n  expected: no such argument"),
    "ignored": ({"flops_cut": 0.2, "labels": torch.full((6, 64, 64), 255)},
                r"(?s)LVTP105.*got: labels without a pixel of any class"),
    "unreachable": ({"flops_cut": 0.95}, r"(?s)LVTP202.*at Config.flops_cut\n  expected: at most 0\.\d+ .*got: 0.95"),
    "no drop": ({"max_drop": 1e-9}, r"(?s)LVTP202.*at calibrate.max_drop\n  expected: a cut of 0\.\d+ or more\n"
                                    r"  got: more than 1e-09 lost at 0\.\d+"),
    "passes": ({"flops_cut": 0.2, "passes": 23},
               r"(?s)LVTP201.*at calibrate.passes\n  expected: at least 24\n  got: 23"),
    "labels": ({"flops_cut": 0.2, "labels": torch.zeros(5, 64, 64, dtype=torch.int64)},
               r"(?s)LVTP105.*at calibrate.labels\n  expected: 6, one for each of `images`\n  got: 5"),
    "float labels": ({"flops_cut": 0.2, "labels": torch.zeros(6, 64, 64)},
                     r"(?s)LVTP105.*at calibrate\n.*got: labels need logits .* and integers .*float32"),
    "spelling": ({"flops_cut": 0.2, "restoer": "copy"}, r"(?s)LVTP201.*at Config.restoer"),
}


@pytest.mark.parametrize(("options", "text"), REFUSED.values(), ids=REFUSED)
def test_refusals(captured: Capture, options: dict[str, Any], text: str) -> None:
    with pytest.raises(lvtp_fx.LvtpError, match=text):
        lvtp_fx.calibrate(captured, IMAGES, **options)


def test_no_images_and_no_attention_are_refused(captured: Capture) -> None:
    with pytest.raises(lvtp_fx.LvtpError, match=r"(?s)LVTP105.*at calibrate.images\n  expected: one image or more"):
        lvtp_fx.calibrate(captured, [], flops_cut=0.2)
    with pytest.raises(lvtp_fx.LvtpError, match="LVTP102 attention-not-matched"):
        lvtp_fx.calibrate(nn.Conv2d(3, 4, 3), IMAGES, flops_cut=0.2)


def test_schedules_are_sites_that_can_be_chosen(captured: Capture) -> None:
    prepared = prepare(captured, None, Config())
    trunk = prepared.plan.trunk
    assert trunk is not None
    schedules = spread_schedules(trunk)
    assert schedules[0] == default_schedule(trunk)
    assert len(set(schedules)) == len(schedules) > 6
    for schedule in schedules:
        assert list(schedule.sites) == sorted(set(schedule.sites))
        assert max(schedule.sites) < len(trunk.blocks) - 1
    steps = list(neighbours(Schedule((1, 3)), trunk))
    assert Schedule((0, 3)) in steps
    assert Schedule((1, 2)) in steps
    assert Schedule((3,)) in steps
    assert Schedule((1, 2, 3)) in steps
    assert Schedule((1, 3), 0.75) in steps
    assert Schedule((1, 3)) not in [step for step in steps if step.tilt == 0]


def test_a_tilt_takes_more_from_the_first_sites_at_the_same_cut(captured: Capture) -> None:
    prepared = prepare(captured, None, Config())
    found = {}
    for tilt in (-0.75, 0.0, 0.75):
        schedule = Schedule((0, 2, 4), tilt)
        assert sum(schedule.weights) == pytest.approx(3)
        config = schedule.config(prepared.plan, Config(), prepared.dense_flops, 0.25)
        assert isinstance(config.keep_ratio, tuple)
        found[tilt] = config.keep_ratio
        assert 0.25 <= lvtp_fx.transform(captured, config=config).report.flops_cut < 0.27
    assert found[0.75][0] < found[0.0][0] < found[-0.75][0]
    assert found[0.75][-1] > found[0.0][-1] > found[-0.75][-1]


def test_mean_iou_of_tallies_is_that_of_the_meter() -> None:
    logits, label = normal(3, 4, CLASSES, 8, 8), integers(0, 5, 4, 8, 8)
    label[label == 4] = 255
    meter = SegmentationMeter(CLASSES, ignore_index=3)
    meter.update(logits.argmax(1), torch.where(label == 255, 3, label))
    counts = torch.stack([tally({"logits": logits[i : i + 1]}, label[i : i + 1]) for i in range(4)]).sum(0)
    assert torch.equal(counts, meter.confusion)
    assert miou(counts) == meter.miou()


def test_labels_of_another_size_get_logits_of_their_size() -> None:
    logits = torch.full((1, 2, 2, 2), 0.5)
    logits[0, 1, :, 0] = 0
    logits[0, 1, :, 1] = 1
    label = torch.tensor([[[0, 0, 1, 1]] * 4])
    assert tally(logits, label).tolist() == [[8, 0], [0, 8]]


def test_queries_and_masks_are_tallied_as_classes() -> None:
    queries = SimpleNamespace(class_queries_logits=torch.tensor([[[9.0, 0, 0], [0, 9.0, 0]]]),
                              masks_queries_logits=torch.tensor([[[[5.0, -5]], [[-5.0, 5]]]]))
    assert tally(queries, torch.tensor([[[0, 1]]])).tolist() == [[1, 0], [0, 1]]
    assert reference(queries)[0].tolist() == [[[0, 1]]]
    with pytest.raises(ValueError, match=r"got \[\[1, 2, 3\]\] and"):
        tally(queries.class_queries_logits, torch.tensor([[[0, 1]]]))


def test_likeness_of_logits_and_of_other_outputs() -> None:
    logits = normal(3, 2, CLASSES, 4, 4)
    assert likeness(logits, reference(logits)) == 1
    other = logits.clone()
    other[0, :, 0, 0] = torch.tensor([0.0, 0.0, 9.0]) if logits[0, :, 0, 0].argmax() != 2 else torch.tensor([9.0, 0, 0])
    assert likeness(other, reference(logits)) == pytest.approx(31 / 32)
    assert likeness({"aux": -logits, "out": other}, reference({"aux": logits, "out": logits})) == pytest.approx(31 / 32)
    depth = normal(4, 2, 8, 8)
    assert likeness(depth[:, None] * 1.25, reference(depth[:, None])) == pytest.approx(0.75)  # one plane: no classes
    assert likeness((depth, 3), reference((depth, 3))) == 1
    assert likeness(depth * 1.25, reference(depth)) == pytest.approx(0.75)
    assert likeness(-depth * 9, reference(depth)) == 0
    assert likeness((depth, depth / 0), reference((depth, depth))) == 0  # where a later tensor is lost, too
    assert likeness((depth, depth * torch.nan), reference((depth, depth))) == 0
    with pytest.raises(ValueError, match="no floating-point tensor"):
        reference({"label": torch.zeros(2, dtype=torch.int64)})
