"""A progress bar where there is somebody to see it, and rich to draw it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lvtp_fx.ranks import current


@contextmanager
def progress_bar(description: str, total: int, report: Callable[[int, int], None] | None) -> Iterator[
    Callable[[int], None]
]:
    """Gives a function to call with how much is done; it calls `report(done, total)`, or without one moves a bar."""
    if report is not None:
        yield lambda done: report(done, total)
        return
    if not sys.stderr.isatty() or not current().first:
        yield lambda done: None
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield lambda done: None
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda done: bar.update(task, completed=done)
