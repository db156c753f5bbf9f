"""The parts of `bench/accuracy.py`: what it counts, resamples, keeps and picks."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "bench"))

from accuracy_bootstrap import interval, resampled, weights
from accuracy_counts import STATISTICS, fields, pack, statistics, unpack
from accuracy_density import BINS, EDGES_PX, NAMES, density_counts, distance_bins
from accuracy_gallery import EACH, picks
from accuracy_rows import evaluated, mean
from accuracy_store import Kept, Store, UnreadableError
from accuracy_variants import Variant, variants
from rivals import rivals

from lvtp_fx.models.metrics import SegmentationMeter

CLASSES, SIZE, IGNORE = 3, 24, 3


def scene(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, CLASSES, (1, 1, 3, 4), generator=generator).float()
    return torch.nn.functional.interpolate(coarse, (SIZE, SIZE)).long()[:, 0]


def spoilt(label: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    """The label with a share of its pixels moved on by a class."""
    wrong = torch.rand(label.shape, generator=torch.Generator().manual_seed(seed)) < share
    return torch.where(wrong, (label + 1) % CLASSES, label)


def row(prediction: torch.Tensor, label: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    meter = SegmentationMeter(CLASSES, IGNORE)
    meter.update(prediction, label, dense)
    return pack(meter, density_counts(prediction, label, IGNORE, distance_bins(label, IGNORE), (3, 3), None))


def predicted(images: int, more: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts of a dense model that is wrong on 1 % to 40 % of an image's pixels, and of one with more errors."""
    dense, pruned = [], []
    for seed in range(images):
        label = scene(seed)
        before = spoilt(label, 0.01 + 0.39 * seed / images, 1000 + seed)
        after = spoilt(before, more, 2000 + seed)
        dense.append(row(before, label, before))
        pruned.append(row(after, label, before))
    return torch.stack(dense), torch.stack(pruned)


def test_rows_add_up_to_what_one_meter_counts() -> None:
    whole, rows = SegmentationMeter(CLASSES, IGNORE), []
    for seed in range(4):
        label = scene(seed)
        prediction = spoilt(label, 0.2, seed)
        rows.append(row(prediction, label, label))
        whole.update(prediction, label, label)
    found = statistics(torch.stack(rows).sum(0), CLASSES)
    assert [float(found[name]) for name in STATISTICS] == [whole.miou(), whole.boundary_miou(), whole.boundary_iou()]
    parts = unpack(torch.stack(rows), CLASSES)
    assert [parts[name].shape[1:] for name in parts] == list(fields(CLASSES).values())
    assert int(parts["agreeing"].sum()) == whole.agreeing
    with pytest.raises(ValueError, match="a row of 4 classes has"):
        unpack(torch.stack(rows), 4)


def test_resampling_is_adding_up_the_drawn_images() -> None:
    counts, _ = predicted(6, 0)
    drawn = weights(6, 50)
    assert drawn[0].tolist() == [1] * 6
    assert (drawn.sum(1) == 6).all()
    assert drawn.std() > 0.5
    totals = resampled(counts, drawn)
    for place in (0, 7):
        images = [i for i, often in enumerate(drawn[place].int().tolist()) for _ in range(often)]
        assert torch.equal(totals[place].long(), counts[images].sum(0))
    assert torch.equal(weights(6, 50), drawn)
    with pytest.raises(ValueError, match="a bootstrap needs images"):
        weights(0, 50)


def changed(before: torch.Tensor, after: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    totals = resampled(after, first), resampled(before, second)
    return 100 * (statistics(totals[0], CLASSES)["miou"] - statistics(totals[1], CLASSES)["miou"])


def test_an_interval_is_the_middle_of_the_resamples() -> None:
    series = torch.cat([torch.tensor([1000.0, math.nan]), torch.arange(101.0)]).double()
    found = interval(series)
    assert (found.value, found.low, found.high) == pytest.approx((1000, 2.5, 97.5))


def test_identical_models_differ_by_nothing_under_every_resample() -> None:
    dense, same = predicted(12, 0)
    drawn = weights(12, 200)
    found = interval(changed(dense, same, drawn, drawn))
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_a_loss_is_found_and_pairing_narrows_its_interval() -> None:
    dense, pruned = predicted(24, 0.02)
    drawn, other = weights(24, 500), weights(24, 500, seed=1)
    paired = interval(changed(dense, pruned, drawn, drawn))
    exact = 100 * (statistics(pruned.sum(0), CLASSES)["miou"] - statistics(dense.sum(0), CLASSES)["miou"])
    assert paired.value == pytest.approx(float(exact))
    assert paired.low < paired.value < paired.high < 0
    apart = interval(changed(dense, pruned, drawn, other))
    assert paired.high - paired.low < (apart.high - apart.low) / 4


def test_a_loss_that_all_images_share_has_no_width() -> None:
    """Counts by hand: of 100 pixels of each of two classes the pruned model gets 10 of the first wrong, everywhere."""
    dense, pruned = (torch.tensor([[[100, 0], [0, 100]]]), torch.tensor([[[90, 10], [0, 100]]]))
    length = sum(int(torch.tensor(shape).prod()) for shape in fields(2).values())
    counts = [torch.cat([c.reshape(1, -1), torch.ones(1, length - 4, dtype=torch.int64)], 1).repeat(5, 1)
              for c in (dense, pruned)]
    drawn = weights(5, 100)
    a, b = (statistics(resampled(rows, drawn), 2)["miou"] for rows in counts)
    found = interval(100 * (b - a))
    shift = 100 * ((90 / 100 + 100 / 110) / 2 - 1)
    assert (found.value, found.low, found.high) == pytest.approx((shift, shift, shift))


def test_mean_over_checkpoints_and_the_difference_to_lvtp() -> None:
    models = [Variant("lvtp", "cut 0.2", {}), Variant("random", "cut 0.2", {})]
    ids = [str(i) for i in range(8)]
    cost = {"gflops": 1.0, "gflops_encoder": 1.0, "flops_cut": 0.2, "kept": [1], "grid": [3, 3]}
    dense, good = predicted(8, 0.01)
    bad = predicted(8, 0.2)[1]
    kept = [Kept(cost, dict(zip(ids, rows, strict=True))) for rows in (dense, good, bad)]
    refused = [*kept[:2], Kept({"refused": "LVTP204 too much\n  more"})]
    drawn = weights(8, 100)
    one, other, third = (evaluated(models, entries, ids, CLASSES, drawn)
                         for entries in (kept, [kept[0], kept[2], kept[2]], refused))
    changes = [rows.rows[1].change["miou"].value for rows in (one, other)]
    averaged = mean(models, [one, other])
    assert averaged[0].change["miou"].value == pytest.approx(sum(changes) / 2)
    assert averaged[0].change["miou"].low < averaged[0].change["miou"].value
    assert not averaged[0].minus_lvtp
    apart = one.rows[2].minus_lvtp["miou"].value
    assert apart == pytest.approx(one.rows[2].change["miou"].value - one.rows[1].change["miou"].value)
    assert third.rows[2].refused.startswith("LVTP204")
    assert mean(models, [one, third])[1].refused == "refused on 1 of 2 checkpoints"


def test_distance_bins_are_the_distances_to_the_nearest_line() -> None:
    label = (torch.arange(200) >= 100).long().expand(1, 4, 200).clone()
    bins = distance_bins(label, IGNORE)
    away = [100 - x if x < 100 else x - 99 for x in range(200)]  # the pixels at the line are 1 px from it
    assert bins[0].tolist() == [sum(far > edge for edge in EDGES_PX) for far in away]
    assert (len(NAMES), len(EDGES_PX)) == (BINS, BINS - 1)
    label[label == 1] = IGNORE
    assert (distance_bins(label, IGNORE) == BINS - 1).all()  # nothing is near where nothing ends


def test_density_counts_tokens_where_their_centres_are() -> None:
    label = torch.zeros(1, 32, 64, dtype=torch.int64)
    label[0, :, 20:] = 1
    label[0, 0] = IGNORE
    prediction = torch.zeros_like(label)
    found = density_counts(prediction, label, IGNORE, distance_bins(label, IGNORE), (2, 4), torch.tensor([0, 1, 7]))
    # Centres at x = 8, 24, 40, 56 are 12, 5, 21 and 37 px from the line between 19 and 20.
    assert found["tokens"].tolist() == [2, 2, 2, 2, 0]
    assert found["kept"].tolist() == [1, 1, 0, 1, 0]
    # Columns 0 to 19 are right and 1 to 20 px away, columns 20 to 63 wrong and 1 to 44 px away; a row does not count.
    assert found["wrong"].tolist() == [31 * 8, 31 * 8, 31 * 16, 31 * 12, 0]
    assert (found["pixels"] - found["wrong"]).tolist() == [31 * 8, 31 * 8, 31 * 4, 0, 0]


def test_kept_figures_come_back_and_only_for_their_key(tmp_path: Path) -> None:
    store, counts = Store(tmp_path / "deep"), predicted(2, 0)[0]
    kept = Kept({"gflops": 1.5, "kept": [3]}, {"a": counts[0], "b": counts[1]})
    store.save('{"config": 1}', kept)
    found = store.load('{"config": 1}')
    assert found.cost == kept.cost
    assert list(found.rows) == ["a", "b"]
    assert all(torch.equal(found.rows[name], kept.rows[name]) for name in kept.rows)
    assert store.load('{"config": 2}') == Kept()
    assert len(list((tmp_path / "deep").iterdir())) == 1  # no draft is left
    store.save('{"config": 3}', Kept({"refused": "no"}))
    assert store.load('{"config": 3}') == Kept({"refused": "no"})
    store.path('{"config": 4}').write_bytes(store.path('{"config": 1}').read_bytes())
    with pytest.raises(UnreadableError, match="other figures"):
        store.load('{"config": 4}')
    store.path('{"config": 1}').write_bytes(b"cut off")
    with pytest.raises(UnreadableError, match="delete it"):
        store.load('{"config": 1}')


def test_the_gallery_shows_each_image_once_best_first() -> None:
    label = scene(0)
    dense = row(spoilt(label, 0.3, 1), label, label)
    worse = [row(spoilt(label, 0.1 * i, 1), label, label) for i in range(9)]  # 0 is the best, 3 as dense
    order = [4, 0, 8, 2, 6, 1, 5, 3, 7]
    ids = [str(i) for i in range(9)]
    found = picks(Kept({}, dict.fromkeys(ids, dense)),
                  Kept({}, {name: worse[i] for name, i in zip(ids, order, strict=True)}), ids, CLASSES)
    assert [order[pick.place] for pick in found] == [0, 1, 3, 4, 7, 8]
    kinds = [pick.remark.partition(":")[0] for pick in found]
    assert kinds == ["best"] * EACH + ["median"] * EACH + ["worst"] * EACH
    few = picks(Kept({}, {"0": dense}), Kept({}, {"0": worse[0]}), ["0"], CLASSES)
    assert [pick.place for pick in few] == [0]


def test_variants_are_the_named_strategies_at_every_cut() -> None:
    found = variants([0.2, 0.4], ["all", "lvtp"], {"restore": "copy"})
    by_name = {v.name: v for v in found}
    assert len(by_name) == len(found)
    assert {"lvtp, cut 0.2", "lvtp, cut 0.4", "random, cut 0.2"} < set(by_name)
    assert all(v.config is not None and v.config["restore"] == "copy" for v in found)
    assert by_name["random, cut 0.2"].config == {"flops_cut": 0.2, **rivals()["random"], "restore": "copy"}
    same = variants([0.2, 0.4], ["lvtp"], {"keep_ratio": 0.7})
    assert [v.name for v in same] == ["lvtp, keep 0.7"]
    with pytest.raises(ValueError, match="'best' is unknown; known are all, lvtp"):
        variants([0.2], ["best"], {})
