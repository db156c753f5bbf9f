"""What commands print: tables and JSON to stdout, progress to stderr, and only where somebody watches."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any, TextIO, TypeVar, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from lvtp_fx.ranks import speaks

T = TypeVar("T")


@contextmanager
def step(text: str) -> Iterator[None]:
    """A line with a clock while the work inside goes on."""
    with _progress(SpinnerColumn(finished_text="*"), _text(), TimeElapsedColumn()) as progress:
        task = progress.add_task(text, total=1)
        yield
        progress.update(task, completed=1)


def track(items: Iterable[T], text: str, total: int) -> Iterator[T]:
    """The items, with a bar that moves as they are taken."""
    with _counted() as progress:
        yield from progress.track(items, total=total, description=text)


@contextmanager
def bar(text: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """A bar, and a function that moves it: called with how much is done, and of how much."""
    with _counted() as progress:
        task = progress.add_task(text, total=total)
        yield lambda done, of: progress.update(task, completed=done, total=of)


def _counted() -> Progress:
    return _progress(_text(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


def _text() -> TextColumn:
    return TextColumn("{task.description}", markup=False)  # names of files and models may hold brackets


def _progress(*columns: Any) -> Progress:
    return Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty() or not speaks())


class _Aside:
    """Stands for stdout, and is stderr in all."""

    def __init__(self, stdout: TextIO) -> None:
        self.stdout = stdout

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


@contextmanager
def json_alone(wanted: bool) -> Iterator[None]:
    """Where `wanted`, nothing but `print_json` writes to stdout: a user's model may print, too."""
    with redirect_stdout(cast(TextIO, _Aside(sys.stdout))) if wanted else nullcontext():
        yield


def print_json(found: dict[str, Any]) -> None:
    """One object, on stdout; NaN, which JSON has not, is null."""
    out = sys.stdout
    typer.echo(json.dumps(plain(found)), file=out.stdout if isinstance(out, _Aside) else out)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout; all columns but the first are numbers."""
    table = Table(columns[0], title=Text(title), title_justify="left")
    for name in columns[1:]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    console().print(table)


def console() -> Console:
    """Stdout; where it is no terminal, lines are not broken."""
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False, soft_wrap=True)


def print_notes(notes: Iterable[str]) -> None:
    """Remarks, a line each, on stderr."""
    for note in notes:
        typer.echo(f"note: {note}", err=True)


def plain(value: Any) -> Any:
    """Values as JSON has them: NaN and infinities are None, tuples lists."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
