"""Rows of the coverage bench as a table."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from rich.table import Table

COLUMNS = ("model", "parameters, M", "attention maps", "blocks", "sites", "tokens", "FLOPs", "identity", "oracle error",
           "batch error", "graphs", "seconds", "commit", "outcome")
SUMMARY = ("group", "models", "captured", "pruned and proved", "refused with a code", "defects", "peak memory, GiB")


def summary(rows: list[dict[str, Any]]) -> Table:
    """One line a group."""
    table = Table(*SUMMARY)
    for group in dict.fromkeys(row["group"] for row in rows):
        table.add_row(group, *_counts([row for row in rows if row["group"] == group]))
    return table


def _counts(rows: list[dict[str, Any]]) -> list[str]:
    proved, refused = (sum(test(row) for row in rows) for test in (_proved, _refused))
    return [str(len(rows)), str(sum(row["captured"] for row in rows)), str(proved), str(refused),
            str(len(rows) - proved - refused), f"{max(row['peak_gib'] for row in rows):.1f}"]


def _proved(row: dict[str, Any]) -> bool:
    return bool(row["proved"])


def _refused(row: dict[str, Any]) -> bool:
    return str(row["refusal"]).startswith("LVTP")


def write_table(path: Path, rows: list[dict[str, Any]], versions: dict[str, str]) -> None:
    """The table as Markdown: a summary, then a section a group."""
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = ["# Coverage", "",
             "Written by `python bench/coverage.py`; the columns are explained in [README.md](README.md#coverage).",
             f"Random weights, float32, CPU ({platform.machine()}), {shown}.", "",
             "| " + " | ".join(SUMMARY) + " |", "|" + "---|" * len(SUMMARY)]
    groups = list(dict.fromkeys(row["group"] for row in rows))
    for group in groups:
        lines.append(f"| {group} | " + " | ".join(_counts([r for r in rows if r["group"] == group])) + " |")
    for group in groups:
        lines += ["", f"## {group}", "", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
        lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows if row["group"] == group]
    path.write_text("\n".join(lines) + "\n")


def _cells(row: dict[str, Any]) -> list[str]:
    def shown(value: Any, form: str = "") -> str:
        return "" if value is None else format(value, form)

    identity = {None: "", True: "bit for bit", False: "differs"}[row["identity"]]
    return [row["model"], f"{row['parameters_m']:.1f}", shown(row["attention"]), shown(row["blocks"]),
            shown(row["sites"]), shown(row["tokens"]), "" if row["cut"] is None else f"-{row['cut']:.1%}", identity,
            shown(row["error"], ".1e"), shown(row["batch_error"], ".1e"), shown(row["graphs"]),
            f"{row['seconds']:.0f}", row["commit"], _outcome(row)]


def _outcome(row: dict[str, Any]) -> str:
    """Proved, or the first lines of the refusal; and the reasons why attention was left out."""
    if row["proved"]:
        text = "proved"
    elif row["refusal"]:
        lines = [line.strip() for line in row["refusal"].splitlines()]
        text = "; ".join([lines[0], *(line for line in lines[1:] if line.startswith("got:"))])
    else:
        text = "NOT PROVED: a law does not hold"
    missed = sorted(set(row["missed"]))
    return (text + (f" (not used: {'; '.join(missed)})" if missed else "")).replace("|", "\\|")


def line(row: dict[str, Any]) -> str:
    """A row in a line, as it comes."""
    if row["proved"]:
        return f"{row['model']}: {row['blocks']} blocks, -{row['cut']:.1%}, error {row['error']:.1e}"
    return f"{row['model']}: {_outcome(row)}"
