"""What all commands have in common: shared options, and errors in one line."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints

import typer

from lvtp_fx.errors import Code, LvtpError
from lvtp_fx.ranks import speaks

FAILED, REFUSED = 1, 2  # exit codes: what was checked does not hold; what was asked for cannot be done


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A function for typer: parameters that are dataclasses become an option a field, and errors a line and a code.

    An `LvtpError`, or an ImportError that says what to install, is one line on stderr; with `as_json` true, an object
    with an "error" on stdout as well. Anything else that is raised is a bug, and keeps its traceback.
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in groups:
            parameters += _expanded(groups[parameter.name])
        else:
            parameters.append(parameter.replace(
                kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[parameter.name]))

    def run(**given: Any) -> None:
        made = {name: group(**{f.name: given.pop(f.name) for f in fields(group)}) for name, group in groups.items()}
        as_json = bool(given.get("as_json"))
        try:
            function(**made, **given)
        except LvtpError as error:
            raise _refused(error, as_json) from None
        except ImportError as error:
            if "pip install" not in str(error):
                raise
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(REFUSED) from None

    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _expanded(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [inspect.Parameter(
        f.name, inspect.Parameter.KEYWORD_ONLY, annotation=hints[f.name],
        default=inspect.Parameter.empty if f.default is MISSING else f.default) for f in fields(group)]


def _refused(error: LvtpError, as_json: bool) -> typer.Exit:
    typer.echo(one_line(error), err=True)
    if as_json and speaks():
        names = ("code", "slug", "where", "expected", "got", "why", "hint")
        typer.echo(json.dumps({"error": {name: getattr(error, name) for name in names}}))
    return typer.Exit(FAILED if error.code == Code.VERIFY_MISMATCH.number else REFUSED)


def one_line(error: LvtpError) -> str:
    """Code, place, what was expected and found, and what to try."""
    text = f"{error.code} {error.slug} at {error.where}: expected {error.expected}; got {error.got}; try {error.hint}"
    return " ".join(text.split())
