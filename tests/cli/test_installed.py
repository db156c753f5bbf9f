"""The command as it is installed, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.helpers import MODEL, only_line


def installed(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lvtp-fx")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=folder,
                          env={**os.environ, **environment})


def test_installed_command_prints_one_object_and_nothing_else(folder: Path) -> None:
    """Without a C++ compiler: that way is short, and says that it is another one."""
    done = installed(folder, "bench", MODEL, "--keep-ratio", "0.6", "--rounds", "2", "--json",
                     CXX=str(folder / "no-compiler"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["how"].startswith("eager (torch.compile fails: InvalidCxxCompiler")


def test_installed_command_fails_with_a_line_and_a_code(folder: Path) -> None:
    done = installed(folder, "explain", "nothing", "--json")
    assert done.returncode == 2
    assert only_line(done.stderr).startswith("LVTP106 not-a-model-to-transform at nothing: expected bundled")
    assert json.loads(done.stdout)["error"]["slug"] == "not-a-model-to-transform"


def test_installed_command_without_its_libraries_is_a_line(folder: Path) -> None:
    (folder / "typer.py").write_text("raise ImportError('no typer')")
    done = installed(folder, "explain", "bundled", PYTHONPATH=str(folder))
    assert (done.returncode, done.stdout) == (2, "")
    assert only_line(done.stderr) == (
        "LVTP504 library-missing at lvtp-fx: expected the libraries that this needs; got the command line needs more "
        "than torch; try pip install 'lvtp_fx[cli]'")


def test_on_a_terminal_what_takes_time_is_shown(folder: Path) -> None:
    """The real command under a pseudo-terminal; without one nothing is shown."""
    pty = pytest.importorskip("pty", reason="Windows has no pseudo-terminals")
    ours, theirs = pty.openpty()
    arguments = ["eval", MODEL, "--data", "camvid:set", "--keep-ratio", "0.8"]
    command = [str(Path(sys.executable).with_name("lvtp-fx")), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, cwd=folder,
                          env={**os.environ, "TERM": "xterm", "COLUMNS": "100"}) as process:
        os.close(theirs)
        shown = b""
        while chunk := _read(ours):
            shown += chunk
        assert process.stdout is not None
        assert b"mIoU" in process.stdout.read()
    os.close(ours)
    assert process.returncode == 0, shown
    for text in (b"find images", f"load {MODEL}".encode(), b"transform", b"score 4 of 4 images", b"4/4"):
        assert text in shown
    assert installed(folder, *arguments).stderr == ""


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # how Linux says that the other side is closed
        return b""


def test_installed_command_shows_bugs(folder: Path) -> None:
    (folder / "sabotage.py").write_text(
        "import lvtp_fx.api\nfrom users_own import model\n"
        "def makes_a_bug():\n    lvtp_fx.api.prepare = lambda *_: 1 / 0\n    return model()\n")
    done = installed(folder, "explain", "sabotage:makes_a_bug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError: division by zero" in done.stderr
