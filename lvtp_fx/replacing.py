"""Files that are written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file of the same name to write to, in a folder of its own beside `path`. At the end it is moved in place, with
    what else was written there; where writing fails or is stopped, what was there before stays. A process that is
    killed meanwhile leaves its folder, hidden and with a name that no other takes, beside `path`.

    Raises:
        OSError: the folder of `path` is missing or cannot be written to.
    """
    with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        yield Path(folder, path.name)
        for file in Path(folder).iterdir():
            file.replace(path.with_name(file.name))
