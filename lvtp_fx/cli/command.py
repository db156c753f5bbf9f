"""What all commands have in common: shared options, and errors in one line."""

from __future__ import annotations

import errno
import inspect
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import typer
from typer.core import TyperGroup

from lvtp_fx.cli.output import json_alone
from lvtp_fx.errors import Code, LvtpError, missing_library, one_line
from lvtp_fx.ranks import own_number

# Of typer, or of click where typer does not bring its own: neither says where it is.
UsageError: Any = typer.BadParameter.__bases__[0]
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a write, which does not say of which file
# Exit codes: what was checked does not hold; what was asked for cannot be done; Ctrl-C, as shells have it.
FAILED, REFUSED, INTERRUPTED = 1, 2, 130


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A function for typer: parameters that are dataclasses become an option a field, and errors a line and a code.

    An `LvtpError`, a file that cannot be read or written, and an ImportError that says what to install are one line on
    stderr; with `as_json` true, an object with an "error" on stdout as well. Ctrl-C is a line, too. Anything else that
    is raised is a bug, and keeps its traceback.
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
            with json_alone(as_json):
                function(**made, **given)
        except LvtpError as error:
            raise _refused(error, as_json) from None
        except OSError as error:
            if error.filename is None and error.errno not in FULL:  # a closed pipe or a lost connection, say
                raise
            raise _refused(_of_file(error), as_json) from None
        except ImportError as error:
            if "pip install" not in str(error):
                raise
            raise _refused(missing_library(error), as_json) from None
        except KeyboardInterrupt:
            if not own_number():
                typer.echo("stopped before it was done", err=True)
            raise typer.Exit(INTERRUPTED) from None

    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


class Commands(TyperGroup):
    """A group of commands whose usage errors are a line and a code, too."""

    def main(self, args: Sequence[str] | None = None, *_: Any, **given: Any) -> Any:
        arguments = list(sys.argv[1:] if args is None else args)
        given |= {"standalone_mode": not arguments}  # without any, the help is shown
        try:
            code = super().main(args=arguments, **given)
        except UsageError as error:
            name = " ".join(["lvtp-fx", *(a for a in arguments[:1] if a in self.commands)])
            refusal = LvtpError(
                Code.WRONG_USAGE, where=name, expected="options and arguments as its help lists them",
                got=error.format_message().rstrip("."), why="nothing is done on a guess", hint=f"{name} --help")
            code = _refused(refusal, "--json" in arguments).exit_code
        except typer.Abort:
            code = INTERRUPTED
        sys.exit(code)


def check_writable(path: Path) -> None:
    """Fail before minutes of work, and not after them. The folder is made where it is missing.

    Raises:
        OSError: the file cannot be written there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    reason = errno.EISDIR if path.is_dir() else errno.EACCES
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise OSError(reason, os.strerror(reason), str(path))


def _of_file(error: OSError) -> LvtpError:
    return LvtpError(
        Code.FILE_NOT_USABLE, where=str(error.filename or "a file that is written"),
        expected="a file or folder that can be used so",
        got=str(error.strerror), why="the command reads or writes it", hint="another path")


def _expanded(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [inspect.Parameter(
        f.name, inspect.Parameter.KEYWORD_ONLY, annotation=hints[f.name],
        default=inspect.Parameter.empty if f.default is MISSING else f.default) for f in fields(group)]


def _refused(error: LvtpError, as_json: bool) -> typer.Exit:
    # Under torchrun all processes may refuse, for the same reason or each on a host of its own: they say who they are.
    number = own_number()
    typer.echo((f"process {number}: " if number else "") + one_line(error), err=True)
    if as_json and not number:
        names = ("code", "slug", "where", "expected", "got", "why", "hint")
        typer.echo(json.dumps({"error": {name: getattr(error, name) for name in names}}))
    return typer.Exit(FAILED if error.code == Code.VERIFY_MISMATCH.number else REFUSED)
