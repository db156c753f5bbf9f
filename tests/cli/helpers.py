"""What the tests of the commands share: the user's model, and what a command printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from typer.testing import Result

from lvtp_fx.models.named import Named, load_named
from lvtp_fx.models.request import Request

MODEL = "users_own:model"
COMMANDS = ("demo", "explain", "transform", "verify", "bench", "predict", "eval", "calibrate")
Call = Callable[..., Result]
COLOURS = [[10 * i, 3, 200] for i in range(5)]


def named() -> Named:
    return load_named(Request(MODEL))


def only_line(text: str) -> str:
    [line] = text.splitlines()
    return line


def found(result: Result) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(result.stdout)
    return value
