"""The rows of a comparison as tables: for the terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from accuracy_counts import STATISTICS
from accuracy_density import NAMES
from accuracy_rows import Row, aims
from rich.table import Table

DENSITY = "living tokens / wrong pixels in %, by distance to the nearest class boundary in px"


def columns(boundary_px: int) -> dict[str, str]:
    """Headings of `STATISTICS`."""
    return {"miou": "mIoU", "boundary_miou": f"boundary mIoU ({boundary_px} px)",
            "boundary_iou": f"boundary IoU ({boundary_px} px)"}


def dense_line(row: Row, boundary_px: int) -> str:
    """The dense model's own figures."""
    shares = ", ".join(f"{text} {100 * getattr(row, name):.2f} %" for name, text in columns(boundary_px).items())
    return f"dense: {row.gflops:.3f} GFLOPs an image, {shares}"


def tables(title: str, rows: Sequence[Row], boundary_px: int) -> Iterator[Table]:
    """A table for each aim, a line a strategy: changes to the dense model in points, with their intervals."""
    for aim in aims(rows):
        table = Table("", title=f"{title}, {aim}: change to dense in points [95 % interval]")
        for name in ("FLOPs saved", *columns(boundary_px).values(), "agreement"):
            table.add_column(name, justify="right")
        for row in rows:
            if row.aim == aim:
                table.add_row(row.strategy, *_cells(row))
        yield table


def _cells(row: Row) -> list[str]:
    if row.refused:
        return [row.refused.splitlines()[0]]
    return [f"{row.flops_cut:.1%}", *(str(row.change[name]) for name in STATISTICS), f"{row.agreement:.2%}"]


def density_table(title: str, rows: Sequence[Row]) -> Table:
    """A line a model, the dense one first: how many of the tokens live on, how many of the pixels are wrong."""
    table = Table("", title=f"{title}: {DENSITY}")
    for name in NAMES:
        table.add_column(name, justify="right")
    for row in rows:
        if row.density:
            table.add_row(_name(row), *_density_cells(row))
    return table


def _density_cells(row: Row) -> list[str]:
    shares = zip(row.density["kept_share"], row.density["error_share"], strict=True)
    return [f"{100 * kept:.1f} / {100 * wrong:.2f}" for kept, wrong in shares]


def _name(row: Row) -> str:
    return f"{row.strategy}, {row.aim}" if row.aim else row.strategy


def markdown(
    sections: Mapping[str, Sequence[Row]], boundary_px: int, heading: str, with_density: bool
) -> str:
    """All of it as Markdown: a section a checkpoint, and one for their mean where there are several.

    Args:
        sections: rows by title. heading: what holds for all of them.
    """
    lines = ["# Accuracy", "", heading, ""]
    for title, rows in sections.items():
        lines += [f"## {title}", ""]
        lines += [f"{dense_line(row, boundary_px)}.\n" for row in rows if not row.aim]
        for aim in aims(rows):
            own = [row for row in rows if row.aim == aim]
            lines += [f"### {title}, {aim}", "", *_markdown_table(own, boundary_px), ""]
        if with_density and any(row.density for row in rows):
            lines += [f"### {title}: {DENSITY}", "", *_density_lines(rows), ""]
    return "\n".join(lines)


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _markdown_table(rows: Sequence[Row], boundary_px: int) -> Iterator[str]:
    names = columns(boundary_px)
    compared = any(row.minus_lvtp for row in rows)
    apart = [f"{name}, minus lvtp's" for name in names.values() if compared]
    head = ["", "FLOPs saved", *names.values(), "agreement", *apart]
    yield _line(head)
    yield "|" + "---|" * len(head)
    for row in rows:
        apart = [str(row.minus_lvtp[name]) if row.minus_lvtp else "" for name in STATISTICS if compared]
        cells = [row.strategy, *_cells(row)] if row.refused else [row.strategy, *_cells(row), *apart]
        yield _line(cells + [""] * (len(head) - len(cells)))


def _density_lines(rows: Sequence[Row]) -> Iterator[str]:
    yield _line(["", *NAMES])
    yield "|" + "---|" * (1 + len(NAMES))
    for row in rows:
        if row.density:
            yield _line([_name(row), *_density_cells(row)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
