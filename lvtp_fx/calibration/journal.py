"""Scores that trials have found, in a file, so that a calibration that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from lvtp_fx.calibration.schedules import Choice
from lvtp_fx.ranks import Ranks
from lvtp_fx.replacing import replacing


class Journal:
    """Scores by schedule and cut, a list in the order of the inputs. One process writes, all know what was there.

    The first line names what the scores depend on (`origin`), each other one holds scores of one schedule:

        ["9f86d0..."]
        [[[1, 2, 4], 0.0, 0.35], [0.993, 0.997]]

    Args:
        path: of the file, read where it is of the same origin, else begun anew; None: nothing is kept.
    """

    def __init__(self, path: Path | None, origin: str, ranks: Ranks) -> None:
        self._path = path if ranks.first else None
        lines = [] if self._path is None else _read(self._path, origin)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._path) as draft:  # a kill loses no line
                draft.write_text("".join(f"{json.dumps(line)}\n" for line in [[origin], *lines]))
        self._scores: dict[str, list[torch.Tensor]] = {}
        for choice, scores in ranks.share(lines):
            self._scores.setdefault(json.dumps(choice), []).extend(map(torch.tensor, scores))

    def known(self, choice: Choice, inputs: range) -> list[torch.Tensor]:
        """The scores of those of the inputs, from the first on, that are known."""
        return self._scores.get(json.dumps(_plain(choice)), [])[inputs.start : inputs.stop]

    def add(self, choice: Choice, scores: Sequence[torch.Tensor]) -> None:
        """Write the scores of the next inputs."""
        if self._path is not None and scores:
            with self._path.open("a") as file:
                file.write(json.dumps([_plain(choice), [score.tolist() for score in scores]]) + "\n")


def _plain(choice: Choice) -> list[object]:
    return [list(choice.schedule.sites), choice.schedule.tilt, choice.flops_cut]


def _read(path: Path, origin: str) -> list[list[list[object]]]:
    """The lines behind the first, up to one that was not written to its end; none of another origin."""
    found: list[list[list[object]]] = []
    try:
        first, *others = path.read_text().splitlines()
        for line in others if json.loads(first) == [origin] else ():
            found.append(json.loads(line))
    except (OSError, ValueError):
        pass  # no such file, or the line that a kill cut off
    return found
