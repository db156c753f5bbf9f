"""Shared options: how they are read, and how they become one `Config`; what is printed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from lvtp_fx.cli.command import command
from lvtp_fx.cli.options import size_of
from lvtp_fx.cli.output import bar, print_json, step, track
from lvtp_fx.cli.pruning import PruningOptions, Strategy, read_config, write_config
from lvtp_fx.config import Config, resolve
from lvtp_fx.errors import Code, LvtpError, one_line


@pytest.mark.parametrize(("text", "size"), [("224", (224, 224)), ("352x480", (352, 480)), ("32X64", (32, 64))])
def test_size(text: str, size: tuple[int, int]) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize("text", ["", "x", "3x", "0", "1x2x3", "-3", "3.5", "²"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="HEIGHTxWIDTH"):
        size_of(text)


@pytest.mark.parametrize(("options", "config"), [
    ({}, Config()),
    ({"flops_cut": 0.5, "sites": "0,-2", "strategy": Strategy("grid")},
     Config(flops_cut=0.5, sites=(0, -2), strategy="grid")),
    ({"keep_ratio": "0.8,0.7", "sites": "every"}, Config(keep_ratio=(0.8, 0.7), sites="every")),
    ({"keep_ratio": "0.8", "sites": "3"}, Config(keep_ratio=0.8, sites=(3,))),
    ({"latency_cut": 0.2}, Config(latency_cut=0.2)),
    ({"set_": ["cell=[3,3]", "restore=copy", "proportional_attention=false", "rounds=2"]},
     Config(cell=(3, 3), restore="copy", proportional_attention=False, rounds=2)),
])
def test_options_become_a_config(options: dict[str, Any], config: Config) -> None:
    assert PruningOptions(**options).load() == config


@pytest.mark.parametrize("options", [
    {"keep_ratio": "much"}, {"sites": "1,b"}, {"set_": ["rounds"]}, {"flops_cut": 0.3, "keep_ratio": "0.5"},
    {"flops_cut": 0.3, "set_": ["keep_ratio=0.5"]}, {"set_": ["keep_ratio=0.5", "latency_cut=0.2"]},
])
def test_unreadable_values_are_wrong_usage(options: dict[str, Any]) -> None:
    with pytest.raises(typer.BadParameter):
        PruningOptions(**options).load()


@pytest.mark.parametrize("options", [{"flops_cut": 1.5}, {"set_": ["colour=red"]}, {"set_": ["rounds=0"]}])
def test_values_out_of_range_have_a_code(options: dict[str, Any]) -> None:
    with pytest.raises(LvtpError, match="LVTP201"):
        PruningOptions(**options).load()


def test_config_file_is_read_back_and_single_options_lie_on_top(tmp_path: Path) -> None:
    config = Config(flops_cut=0.4, keep_ratio=(0.9, 0.8), sites=(1, 3), strategy="grid", cell=(3, 2))
    path = tmp_path / "new" / "config.json"
    write_config(path, config)
    assert read_config(path) == config
    assert PruningOptions(config=path).load() == config
    cut = PruningOptions(config=path, flops_cut=0.2).load()  # the file's keep_ratio would win
    assert (cut.flops_cut, cut.keep_ratio, cut.sites) == (0.2, None, (1, 3))
    kept = PruningOptions(config=path, keep_ratio="0.5").load()
    assert (kept.keep_ratio, kept.strategy) == (0.5, "grid")
    cut = PruningOptions(config=path, set_=["flops_cut=0.3"]).load()
    assert (cut.flops_cut, cut.keep_ratio, cut.sites) == (0.3, None, (1, 3))


def test_what_is_asked_for_anew_is_not_hidden_by_what_was_asked_for_before() -> None:
    kept, timed = Config(flops_cut=0.4, keep_ratio=0.7, align=8), Config(latency_cut=0.2, align=8)
    assert resolve(kept, {"flops_cut": 0.6}) == Config(flops_cut=0.6, align=8)
    assert resolve(kept, {"latency_cut": 0.2}) == Config(flops_cut=0.4, latency_cut=0.2, align=8)
    assert resolve(timed, {"keep_ratio": 0.5}) == Config(keep_ratio=0.5, align=8)
    assert resolve(timed, {"flops_cut": 0.5}) == Config(flops_cut=0.5, align=8)
    assert resolve(kept, {"flops_cut": 0.6, "keep_ratio": 0.5}) == Config(flops_cut=0.6, keep_ratio=0.5, align=8)
    assert resolve(kept, {"align": 4}) == Config(flops_cut=0.4, keep_ratio=0.7, align=4)
    assert resolve(kept, {"latency_cut": None}) == kept


def test_config_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'{"strategy": "gr\xfc\xdf"}')
    with pytest.raises(LvtpError, match=r"(?s)LVTP201 .*config\.json.*a JSON object of fields.*can't decode byte 0xfc"):
        read_config(path)


@pytest.mark.parametrize(("text", "message"), [
    ("{", "JSON object"), ("[1]", "it holds a list"), ('{"colour": 1}', r"Config\.colour"),
    ('{"flops_cut": 2}', r"Config\.flops_cut"),
])
def test_config_file_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(LvtpError, match=f"(?s)LVTP201 .*{message}"):
        read_config(path)


@dataclass(frozen=True)
class Pair:
    """Two options."""

    first: Annotated[int, typer.Argument()]
    second: Annotated[str, typer.Option("--other")] = "b"


def run(function: Any, *arguments: str) -> Any:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(command(function))
    return CliRunner().invoke(app, arguments)


def test_dataclass_becomes_an_option_a_field() -> None:
    def show(pair: Pair, flag: bool = False, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
        """Shown."""
        typer.echo(f"{pair} {flag}")

    assert run(show, "3").stdout == f"{Pair(3)} False\n"
    assert run(show, "3", "--other", "c", "--flag").stdout == f"{Pair(3, 'c')} True\n"
    assert "Shown." in run(show, "--help").stdout
    assert run(show, "word").exit_code == 2
    assert run(show).exit_code == 2


@pytest.mark.parametrize(("code", "exit_code"), [(Code.VERIFY_MISMATCH, 1), (Code.ATTENTION_NOT_MATCHED, 2)])
def test_refusal_is_a_line_and_an_exit_code(code: Code, exit_code: int) -> None:
    error = LvtpError(code, where="here", expected="a\n  b", got="c", why="d", hint="e")

    def fail(as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
        raise error

    assert one_line(error) == f"{code.number} {code.slug} at here: expected a b; got c; try e"
    outer = LvtpError(code, where="there", expected="no error", got=str(error), why="f", hint="g")
    inner = " ".join(str(error).split())
    assert one_line(str(outer)) == f"{code.number} {code.slug} at there: expected no error; got {inner}; try g"
    plain, as_json = run(fail), run(fail, "--json")
    assert (plain.exit_code, plain.stdout, plain.stderr) == (exit_code, "", one_line(error) + "\n")
    assert (as_json.exit_code, as_json.stderr) == (exit_code, plain.stderr)
    assert json.loads(as_json.stdout)["error"] == {
        "code": code.number, "slug": code.slug, "where": "here", "expected": "a\n  b", "got": "c", "why": "d",
        "hint": "e"}


def test_a_refusal_under_torchrun_says_of_which_process_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    error = LvtpError(Code.BAD_EXAMPLE, where="here", expected="a", got="b", why="c", hint="d")

    def fail(as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
        raise error

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")  # what torchrun sets
    for rank, who in (("0", ""), ("1", "process 1: ")):
        monkeypatch.setenv("RANK", rank)
        found = run(fail, "--json")
        assert found.stderr == f"{who}{one_line(error)}\n"
        assert bool(found.stdout) is (rank == "0")  # one object, whoever else refuses


@pytest.mark.parametrize(("error", "caught"), [
    (ImportError("x needs more: pip install 'lvtp_fx[models]'"), True), (ImportError("no module x"), False),
    (ValueError("a bug"), False), (OSError(28, "No space left on device", "/data/x"), True),
    (OSError(28, "No space left on device"), True),  # as a write says it
    (OSError(5, "Input/output error"), False), (ConnectionResetError(104, "Connection reset by peer"), False),
])
def test_only_a_missing_extra_and_files_are_told_without_a_traceback(error: Exception, caught: bool) -> None:
    def fail() -> None:
        raise error

    result = run(fail)
    assert (result.exit_code == 2) is caught
    assert isinstance(result.exception, SystemExit if caught else type(error))


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": (1, "x", None)}})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [1.5, None], "c": {"d": [1, "x", None]}}


def test_progress_is_silent_without_a_terminal_and_shown_on_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> None:
        with step("think of a[/b]"):
            pass
        assert list(track(iter("ab"), "count", 2)) == ["a", "b"]
        with bar("search", 4) as show:
            show(4, 4)

    work()
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    work()
    captured = capsys.readouterr()
    assert captured.out == ""
    for part in ("think of a[/b]", "count", "2/2", "search", "4/4"):
        assert part in captured.err
