"""docs/command_line.md: every command line in it parses, every command has one, and every option in it exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from lvtp_fx.cli.main import app

PAGE = (Path(__file__).parents[1] / "docs" / "command_line.md").read_text()
LINES = re.findall(r"^ *\$ (lvtp-fx .*)$", PAGE, flags=re.MULTILINE)
COMMANDS = {"demo", "explain", "transform", "verify", "bench", "eval", "calibrate"}


def parse(line: str) -> None:
    """Check that the options are the command's, and their values of the right kind; usage errors have `exit_code`."""
    _, name, *arguments = shlex.split(line, comments=True)
    group = get_command(app)
    command = group.commands[name]  # type: ignore[attr-defined]
    command.make_context(name, arguments)


@pytest.mark.parametrize("line", LINES)
def test_line_parses(line: str) -> None:
    parse(line)


@pytest.mark.parametrize("line", [
    "lvtp-fx explain bundled --no-such-option", "lvtp-fx explain", "lvtp-fx bench bundled --rounds many",
    "lvtp-fx verify bundled --head unet",
])
def test_line_that_is_wrong_does_not_parse(line: str) -> None:
    with pytest.raises(Exception, match=r".") as caught:
        parse(line)
    assert getattr(caught.value, "exit_code", None) == 2


def test_every_command_has_a_line_and_no_other_is_named() -> None:
    assert len(LINES) >= 10
    named = {shlex.split(line, comments=True)[1] for line in LINES}
    assert named == COMMANDS
    assert set(get_command(app).commands) == COMMANDS  # type: ignore[attr-defined]


def test_every_option_in_the_text_exists() -> None:
    known = {option for command in COMMANDS
             for parameter in get_command(app).commands[command].params  # type: ignore[attr-defined]
             for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    in_text = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE))
    assert in_text
    assert in_text <= known


@pytest.mark.parametrize("command", sorted(COMMANDS - {"demo"}))
def test_example_in_the_help_parses(command: str) -> None:
    text = " ".join(CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).stdout.split())
    example = re.search(r"Example: (lvtp-fx .*?) ╭", text)
    assert example is not None
    parse(example[1])
