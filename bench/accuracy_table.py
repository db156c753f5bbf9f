"""Figures of a comparison and the table that shows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from lvtp_fx import Report
from lvtp_fx.models.metrics import SegmentationMeter


@dataclass(frozen=True)
class Row:
    """One model, evaluated: shares in [0, 1], GFLOPs an image. The dense model has no config."""

    name: str
    config: dict[str, Any]
    gflops: float
    gflops_encoder: float
    miou: float
    boundary_miou: float
    iou_per_class: list[float]
    pixel_accuracy: float
    agreement: float


def rows(
    meters: Sequence[SegmentationMeter], reports: Sequence[Report], configs: Mapping[str, dict[str, Any]]
) -> list[Row]:
    """The figures of the dense model, then of each variant."""
    first = reports[0]
    costs = [(first.gflops_dense, first.gflops_encoder_dense)]
    costs += [(report.gflops_pruned, report.gflops_encoder_pruned) for report in reports]
    names: dict[str, dict[str, Any]] = {"dense": {}, **configs}
    return [
        Row(name, config, *cost, meter.miou(), meter.boundary_miou(), meter.iou_per_class(),
            meter.pixel_accuracy(), meter.agreement())
        for meter, cost, (name, config) in zip(meters, costs, names.items(), strict=True)
    ]


def table(found: Sequence[Row], class_names: Sequence[str], boundary_px: int, title: str) -> Table:
    """One column a model, the dense one first; differences to it in points, of GFLOPs in percent."""
    dense, result = found[0], Table("", title=title)
    for row in found:
        result.add_column(row.name, justify="right")

    def add(name: str, figure: Callable[[Row], float], show: Callable[[float, float], str]) -> None:
        base = figure(dense)
        changed = (show(figure(row), base) for row in found[1:])
        result.add_row(name, show(base, base).partition(" ")[0], *changed)

    add("GFLOPs, whole model", lambda row: row.gflops, _cost)
    add("GFLOPs, encoder", lambda row: row.gflops_encoder, _cost)
    add("agreement with dense, %", lambda row: row.agreement, lambda share, _: f"{100 * share:.2f}")
    add("pixel accuracy, %", lambda row: row.pixel_accuracy, _points)
    add("mIoU, %", lambda row: row.miou, _points)
    add(f"boundary mIoU ({boundary_px} px), %", lambda row: row.boundary_miou, _points)
    result.add_section()
    for i, name in enumerate(class_names):
        add(f"IoU {name}, %", lambda row, i=i: row.iou_per_class[i], _points)  # type: ignore[misc]
    return result


def _points(share: float, dense: float) -> str:
    return f"{100 * share:.2f} ({100 * (share - dense):+.2f})"


def _cost(gflops: float, dense: float) -> str:
    return f"{gflops:.3f} ({gflops / dense - 1:+.1%})"
