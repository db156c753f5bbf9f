"""Figures of a comparison: a row a model, each with its change and the interval of the change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from accuracy_bootstrap import Interval, interval, resampled
from accuracy_counts import STATISTICS, statistics, unpack
from accuracy_density import density
from accuracy_store import Kept
from accuracy_variants import DENSE, Variant

from lvtp_fx.models.metrics import iou

BASE = "lvtp"  # the strategy that the others are compared with
Series = dict[str, torch.Tensor]  # a statistic in points, [1 + R]: on the images as they are, on every resample


@dataclass(frozen=True)
class Row:
    """One model on one checkpoint, or the mean over checkpoints. NaN and empty where a cut is refused.

    Attributes:
        strategy, aim, config: as in `Variant`. refused: why there are no figures, or "".
        gflops, gflops_encoder: an image. flops_cut: share that was saved, measured.
        kept: tokens that live on after each site.
        miou, boundary_miou, boundary_iou, pixel_accuracy, agreement, iou_per_class: shares in [0, 1].
        change: of each of `STATISTICS` to the dense model, in points. minus_lvtp: to lvtp at the same aim.
        density: by distance to the nearest boundary (`accuracy_density`).
    """

    strategy: str
    aim: str
    config: dict[str, Any] = field(default_factory=dict)
    refused: str = ""
    gflops: float = float("nan")
    gflops_encoder: float = float("nan")
    flops_cut: float = float("nan")
    kept: list[int] = field(default_factory=list)
    miou: float = float("nan")
    boundary_miou: float = float("nan")
    boundary_iou: float = float("nan")
    pixel_accuracy: float = float("nan")
    agreement: float = float("nan")
    iou_per_class: list[float] = field(default_factory=list)
    change: dict[str, Interval] = field(default_factory=dict)
    minus_lvtp: dict[str, Interval] = field(default_factory=dict)
    density: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluated:
    """One checkpoint: its rows, the dense model's first, and what each differs by under every resample."""

    rows: list[Row]
    changes: dict[str, Series]  # to the dense model, by the variant's name; refused ones are not in it


def evaluated(
    variants: Sequence[Variant], kept: Sequence[Kept], ids: Sequence[str], classes: int, drawn: torch.Tensor
) -> Evaluated:
    """The rows of the dense model and of each variant.

    Args:
        kept: of the dense model, then of each variant, with a row of counts for each of `ids`.
        drawn: weights of the bootstrap, [1 + R, images].
    """
    models = (DENSE, *variants)
    counts = {model.name: torch.stack([entry.rows[name] for name in ids])
              for model, entry in zip(models, kept, strict=True) if "refused" not in entry.cost}
    series = {name: {key: 100 * value for key, value in statistics(resampled(rows, drawn), classes).items()}
              for name, rows in counts.items()}
    changes = {name: minus(own, series[DENSE.name]) for name, own in series.items()}
    rows = []
    for model, entry in zip(models, kept, strict=True):
        if "refused" in entry.cost:
            rows.append(Row(model.strategy, model.aim, model.config or {}, entry.cost["refused"]))
            continue
        figures = _figures(counts[model.name].sum(0), classes)
        cost = {name: entry.cost[name] for name in ("gflops", "gflops_encoder", "flops_cut", "kept")}
        rows.append(Row(model.strategy, model.aim, model.config or {}, **cost, **figures, **_intervals(model, changes)))
    return Evaluated(rows, changes)


def mean(variants: Sequence[Variant], checkpoints: Sequence[Evaluated]) -> list[Row]:
    """The mean over checkpoints of each variant's change: the same images are drawn for all of them.

    A variant that some checkpoint refuses has no mean: it would be one over other models than the others'.
    """
    names = [v.name for v in variants if all(v.name in one.changes for one in checkpoints)]
    changes = {name: {key: torch.stack([one.changes[name][key] for one in checkpoints]).mean(0) for key in STATISTICS}
               for name in names}
    rows = []
    for i, model in enumerate(variants, 1):
        own = [one.rows[i] for one in checkpoints]
        if model.name not in changes:
            refused = f"refused on {sum(bool(row.refused) for row in own)} of {len(own)} checkpoints"
            rows.append(Row(model.strategy, model.aim, model.config or {}, refused))
            continue
        shares = {name: fmean(getattr(row, name) for row in own)
                  for name in ("flops_cut", "miou", "boundary_miou", "boundary_iou", "pixel_accuracy", "agreement")}
        rows.append(Row(model.strategy, model.aim, model.config or {}, **shares, **_intervals(model, changes)))
    return rows


def minus(a: Series, b: Series) -> Series:
    return {name: a[name] - b[name] for name in STATISTICS}


def aims(rows: Iterable[Row]) -> list[str]:
    """What was asked for, in order, without the dense model's."""
    return list(dict.fromkeys(row.aim for row in rows if row.aim))


def _intervals(model: Variant, changes: dict[str, Series]) -> dict[str, dict[str, Interval]]:
    """Of the change to the dense model, and to lvtp at the same aim where that is there."""
    if model.config is None:
        return {}
    found = {"change": {name: interval(series) for name, series in changes[model.name].items()}}
    base = Variant(BASE, model.aim, {}).name
    if model.strategy != BASE and base in changes:
        apart = minus(changes[model.name], changes[base])
        found["minus_lvtp"] = {name: interval(series) for name, series in apart.items()}
    return found


def _figures(total: torch.Tensor, classes: int) -> dict[str, Any]:
    parts = unpack(total, classes)
    right, all_ = parts["confusion"].trace(), parts["confusion"].sum()
    return {**{name: float(value) for name, value in statistics(total, classes).items()},
            "pixel_accuracy": float(right.double() / all_),
            "agreement": float(parts["agreeing"].double() / parts["compared"]),
            "iou_per_class": iou(parts["confusion"]).tolist(), "density": density(parts)}
