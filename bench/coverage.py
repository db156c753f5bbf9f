"""Which models the pass captures, prunes and proves: one row a model, resumable.

    python bench/coverage.py                              # all groups
    python bench/coverage.py --group timm --jobs 2
    python bench/coverage.py --group transformers --only Dinov2 --again

Rows are kept in coverage.json as they come; a run that was stopped goes on where it was. The table of all rows is
written beside it, as COVERAGE.md.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from coverage_check import GROUPS, Row, check, models
from coverage_table import line, summary, write_table
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lvtp_fx.replacing import replacing

HERE = Path(__file__).parent
CHILD_LIFE = 12  # models a worker runs before a fresh one takes its place: libraries cache what they build


def work(group: str, name: str) -> dict[str, Any]:
    """One model, in a worker process."""
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)  # a kernel of eager mode that no graph can hold
    model = next(m for m in models(group) if m.name == name)
    row = check(model)
    gc.collect()
    scale = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**30
    return as_dict(group, row, round(peak, 2))


def as_dict(group: str, row: Row, peak_gib: float) -> dict[str, Any]:
    """A row as it is kept; what holds for all of a run, `main` adds."""
    return {"group": group, **asdict(row), "proved": row.proved, "peak_gib": peak_gib}


def commit() -> str:
    """Of the checkout, short; rows that are kept from earlier runs say so. "" outside of one."""
    command = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def main(
    group: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(GROUPS)}; repeat for more.")] = None,
    only: Annotated[str, typer.Option(help="Only models with this in their name.")] = "",
    jobs: Annotated[int, typer.Option(min=1, help="Models at a time, one process and one thread each.")] = 1,
    out: Annotated[Path, typer.Option(help="Where the rows are kept.")] = HERE / "coverage.json",
    again: Annotated[bool, typer.Option("--again", help="Run models that have a row already.")] = False,
) -> None:
    """Run the coverage bench."""
    groups = group or list(GROUPS)
    if unknown := [g for g in groups if g not in GROUPS]:
        raise typer.BadParameter(f"{unknown[0]!r}; groups are {', '.join(GROUPS)}", param_hint="--group")
    kept: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    rows: dict[str, dict[str, Any]] = {f"{r['group']} {r['model']}": r for r in kept.get("rows", ())}
    wanted = [(g, model.name) for g in groups for model in models(g) if only in model.name]
    todo = [(g, name) for g, name in wanted if again or f"{g} {name}" not in rows]
    console, here, used = Console(stderr=True), commit(), versions()
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                  console=console) as progress:
        task = progress.add_task("models", total=len(todo))
        for row in run(todo, jobs):
            rows[f"{row['group']} {row['model']}"] = {**row, "commit": here}
            save(out, rows, used)
            progress.advance(task)
            console.print(line(row))
    if rows:
        write_table(out.with_name("COVERAGE.md"), list(rows.values()), used)
        Console().print(summary(list(rows.values())))


def run(todo: list[tuple[str, str]], jobs: int) -> Iterator[dict[str, Any]]:
    """Rows as they come. Where a worker dies (out of memory, a crash), what ran beside it runs again, each alone; the
    model that it dies of has a row that says so."""
    waiting, context = list(reversed(todo)), multiprocessing.get_context("spawn")
    while waiting:
        with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=CHILD_LIFE) as pool:
            running: dict[Future[dict[str, Any]], tuple[str, str]] = {}
            try:
                while waiting or running:
                    while waiting and len(running) < jobs:
                        running[pool.submit(work, *waiting[-1])] = waiting[-1]
                        waiting.pop()
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        row = future.result()
                        del running[future]
                        yield row
            except BrokenProcessPool:
                pass
        yield from (_alone(*item) for item in running.values())


def _alone(group: str, name: str) -> dict[str, Any]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(work, group, name).result()
        except BrokenProcessPool:
            return as_dict(group, Row(name, refusal="DEFECT the process died: a crash, or not enough memory"), 0.0)


def save(out: Path, rows: dict[str, dict[str, Any]], versions: dict[str, str]) -> None:
    """Written whole, then moved in place: a run that is cut leaves the last good file."""
    with replacing(out) as draft:
        draft.write_text(json.dumps({"versions": versions, "rows": list(rows.values())}, indent=1))


def versions() -> dict[str, str]:
    libraries = ("torch", "timm", "transformers", "torchvision", "segmentation-models-pytorch")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in libraries}}


if __name__ == "__main__":
    typer.run(main)
