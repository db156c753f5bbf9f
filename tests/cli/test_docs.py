"""Command lines of the docs parse, every command has one, every option named exists; what they print is printed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from lvtp_fx.cli.main import app

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "command_line.md").read_text()
LINES = re.findall(r"^ *\$ (lvtp-fx .*)$", PAGE, flags=re.MULTILINE)
# With continued lines; torchrun starts the module that the command is.
ELSEWHERE = [
    re.sub(r".*-m lvtp_fx\.cli\.main", "lvtp-fx", line)
    for page in ("README.md", "docs/deploy.md", "docs/tutorial.md", "docs/finetune.md", "bench/README.md")
    for line in (ROOT / page).read_text().replace("\\\n", " ").splitlines()
    if re.match(r" {4}(\$ )?(lvtp-fx |.*-m lvtp_fx\.cli\.main )", line)
]
COMMANDS = {"demo", "explain", "transform", "verify", "bench", "predict", "eval", "calibrate"}


def parse(line: str) -> None:
    """Check that the options are the command's, and their values of the right kind; usage errors have `exit_code`."""
    _, name, *arguments = shlex.split(line, comments=True)
    group = get_command(app)
    command = group.commands[name]  # type: ignore[attr-defined]
    command.make_context(name, arguments)


@pytest.mark.parametrize("line", LINES + ELSEWHERE)
def test_line_parses(line: str) -> None:
    parse(line.strip().removeprefix("$ "))


def test_lines_of_the_other_pages_are_found() -> None:
    assert {line.split()[1] for line in ELSEWHERE} >= {"explain", "predict", "calibrate"}


@pytest.mark.parametrize("line", [
    "lvtp-fx explain bundled --flops-cut 0.35", "lvtp-fx explain timm:resnet18",
])
def test_line_prints_what_the_page_shows(line: str) -> None:
    """Of those whose figures are counted: what is measured differs by machine."""
    shown = re.search(rf"^    \$ {re.escape(line)}\n((?:    [^$\n].*\n)+)", PAGE, flags=re.MULTILINE)
    assert shown is not None
    result = CliRunner().invoke(app, shlex.split(line)[1:])
    wanted = "".join(text.removeprefix("    ") for text in shown[1].splitlines(keepends=True))
    assert result.stdout + result.stderr == wanted


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
