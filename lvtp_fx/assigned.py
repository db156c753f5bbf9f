"""Tensors that forward assigns to attributes of the model: the graph computes them, but leaves the model as it is."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_WARNING = re.compile(r"The tensor attributes? (.*) (?:was|were) assigned during export")


@contextmanager
def noting_assigned() -> Iterator[list[str]]:
    """While torch.export traces: names as `self.last_map`, filled in at the end, in the place of torch's warning, which
    advises what is not needed here. Other warnings go their way."""
    names: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield names
    for warning in caught:
        if found := _WARNING.match(str(warning.message)):
            names.extend(sorted(found[1].split(", ")))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
