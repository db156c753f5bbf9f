"""Several processes, and two hosts, get what one process gets, to the last digit; a run that is killed goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from lvtp_fx.cli.main import app
from lvtp_fx.ranks import Ranks
from tests.sharded import run
from tests.tiny_checkpoint import write_tiny

pytestmark = pytest.mark.xdist_group("torchrun")  # one at a time: each starts processes of its own
ROOT = Path(__file__).parents[1]
SECONDS = 300  # a limit for what hangs
EVAL = ("eval", "tiny", "--data", "scenes:6", "--keep-ratio", "0.6", "--sites", "0,1", "--save", "maps", "--json")
# With 50 passes another schedule is found: who counts them wrongly, is seen.
PREDICT = ("predict", "tiny", "--keep-ratio", "0.6", "--sites", "0,1", "--images", "photos")
CALIBRATE = ("calibrate", "tiny", "--data", "scenes:5", "--flops-cut", "0.2", "--passes", "40", "--labels")


def test_tests_of_a_group_are_kept_together(request: pytest.FixtureRequest) -> None:
    """They were not, and nothing was said, with a pytest that pytest-xdist did not know."""
    if hasattr(request.config, "workerinput"):
        assert request.node.nodeid.endswith("@torchrun")


def launcher(*options: str, processes: int = 2) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), *options, "-m"]


def environment(**more: str) -> dict[str, str]:
    """Without the last, processes that torchrun starts again look for those that are gone."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more,
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def torchrun(folder: Path, module: str, *arguments: str, processes: int = 2, options: tuple[str, ...] = ()) -> str:
    """What the processes print to stdout; they work in `folder`."""
    command = [*launcher("--standalone", *options, processes=processes), module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS, cwd=folder,
                          env=environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


def alone(folder: Path, *arguments: str) -> str:
    """The same of this process alone."""
    with chdir(folder):
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def label_maps(*folders: Path) -> dict[str, bytes]:
    """Files below the folders, which share none. What a process was writing when it was killed stays in a hidden
    folder, and is no file of the result."""
    found = [(str(path.relative_to(folder)), path.read_bytes()) for folder in folders for path in folder.rglob("*.*")
             if path.is_file() and not path.parent.name.startswith(".")]
    assert len(dict(found)) == len(found)
    return dict(found)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with a checkpoint."""
    (tmp_path / "tiny").mkdir()
    write_tiny(tmp_path / "tiny")
    return tmp_path


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What one process leaves: the folder, and what eval printed."""
    folder = tmp_path_factory.mktemp("one")
    (folder / "tiny").mkdir()
    write_tiny(folder / "tiny")
    alone(folder, *CALIBRATE, "--out", "schedule.json")
    return folder, alone(folder, *EVAL)


@pytest.mark.parametrize("processes", [2, 4])
def test_eval_prints_the_same_scores_once_and_saves_the_same_maps(
    one: tuple[Path, str], folder: Path, processes: int
) -> None:
    assert torchrun(folder, "lvtp_fx.cli.main", *EVAL, processes=processes) == one[1]
    assert len(label_maps(folder / "maps")) == 12
    assert label_maps(folder / "maps") == label_maps(one[0] / "maps")


@pytest.mark.parametrize("processes", [2, 4])
def test_calibrate_finds_the_same_schedule(one: tuple[Path, str], folder: Path, processes: int) -> None:
    text = torchrun(folder, "lvtp_fx.cli.main", *CALIBRATE, "--out", "schedule.json", processes=processes)
    assert text.count("written: schedule.json") == 1
    assert (folder / "schedule.json").read_bytes() == (one[0] / "schedule.json").read_bytes()


def test_predict_writes_the_same_maps(folder: Path) -> None:
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (40, 40 + i, 3), dtype=np.uint8)).save(folder / f"photos/{i}.png")
    alone(folder, *PREDICT, "--out", "one")
    text = torchrun(folder, "lvtp_fx.cli.main", *PREDICT, "--out", "two")
    assert text.count("written: 5 label maps in two") == 1
    assert len(label_maps(folder / "two")) == 5
    assert label_maps(folder / "two") == label_maps(folder / "one")


@pytest.fixture(scope="module")
def wanted() -> dict[str, Any]:
    return run(Ranks(0, 1))


@pytest.mark.parametrize("processes", [2, 4])
def test_data_parallel_training_and_sharded_batches(tmp_path: Path, wanted: dict[str, Any], processes: int) -> None:
    """Also: in a group that the user made, all processes calibrate to what one does, and all hear of a refusal."""
    assert len({quality for quality, _ in wanted["trial"]}) == 4
    assert [left for _, left in wanted["trial"]] == [34, 33, 31, 30]
    assert "LVTP105" in wanted["refused"]
    torchrun(tmp_path, "tests.sharded", str(tmp_path), processes=processes)
    for rank, rows in enumerate(wanted["output"].chunk(processes)):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert torch.equal(found["output"], rows)
        assert torch.equal(found["sharded"], rows)
        for name in ("gradients", "weights"):
            for mine, theirs in zip(wanted[name], found[name], strict=True):
                torch.testing.assert_close(theirs, mine, rtol=1e-10, atol=1e-14)
        for name in ("config", "trial", "refused"):
            assert found[name] == wanted[name]


KILLED_ONCE = """
import os, signal
from pathlib import Path

from lvtp_fx.models.checkpoint import Spec, load_checkpoint


class KilledOnce(Spec):
    def normalised(self, images):
        written = sorted(Path("maps").rglob("scene[13].png"))
        if os.environ.get("RANK") == "1" and len(written) == 4 and not Path("killed").exists():
            Path("killed").write_text(" ".join(str(path.stat().st_mtime_ns) for path in written))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().normalised(images)


def model():
    made, spec = load_checkpoint("tiny")
    return made, KilledOnce(**vars(spec))
"""


def test_a_worker_that_is_killed_is_started_again_and_the_run_goes_on(folder: Path, tmp_path: Path) -> None:
    """By SIGKILL, once its first two images are done, which are not done again. The module has a name of its own, since
    this process keeps what it imports."""
    (folder / "killed_once.py").write_text(KILLED_ONCE)
    arguments = ("eval", "killed_once:model", *EVAL[2:])
    text = torchrun(folder, "lvtp_fx.cli.main", *arguments, "--resume", options=("--max-restarts", "1"))
    written = sorted((folder / "maps").rglob("scene[13].png"))
    assert (folder / "killed").read_text() == " ".join(str(path.stat().st_mtime_ns) for path in written)
    (folder / "maps").rename(folder / "resumed")
    assert text == alone(folder, *arguments)
    assert label_maps(folder / "resumed") == label_maps(folder / "maps")


STOPPED_ONCE = """
import os, signal, threading, time
from pathlib import Path

from lvtp_fx.models.checkpoint import load_checkpoint

killed, smallest = Path("killed"), Path("smallest")


def watch():
    least, first = 1 << 60, not killed.exists()
    while True:
        size = trials.stat().st_size if (trials := Path("schedule.json.trials")).exists() else 1 << 60
        if first and size < 1 << 60 and trials.read_text().count(chr(10)) > 8:
            killed.write_text(str(size))
            os.kill(os.getpid(), signal.SIGKILL)
        if not first and size < least:
            least = size
            smallest.write_text(str(size))
        time.sleep(0.001)


def model():
    if os.environ.get("RANK") == os.environ["KILLED"]:
        threading.Thread(target=watch, daemon=True).start()
    return load_checkpoint("tiny")
"""


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_calibration_whose_worker_is_killed_goes_on(
    one: tuple[Path, str], folder: Path, monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    """By SIGKILL, once some schedules are tried, wherever it is then; rank 0 is the one that writes. What is known then
    is not found again: the file of scores is never smaller afterwards."""
    monkeypatch.setenv("KILLED", rank)
    (folder / "stopped_once.py").write_text(STOPPED_ONCE)
    arguments = ("calibrate", "stopped_once:model", *CALIBRATE[2:], "--out", "schedule.json", "--resume")
    torchrun(folder, "lvtp_fx.cli.main", *arguments, options=("--max-restarts", "1"))
    assert int((folder / "smallest").read_text()) >= int((folder / "killed").read_text())
    assert (folder / "schedule.json").read_bytes() == (one[0] / "schedule.json").read_bytes()
    assert not (folder / "schedule.json.trials").exists()


@pytest.fixture
def hosts() -> Iterator[list[tuple[str, str, str]]]:
    """Two network namespaces with a cable between them: name, address, and the cable's end in each."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command `ip`")
    names = [f"lvtp{os.getpid()}{side}" for side in "ab"]
    made = [(name, f"10.77.0.{number}", name) for name, number in zip(names, count(1))]
    try:
        for name in names:
            if (done := ip("netns", "add", name)).returncode:
                pytest.skip(f"no network namespace can be made here: {done.stderr.strip()}")
        link = ("link", "add", names[0], "netns", names[0], "type", "veth", "peer", "name", names[1], "netns", names[1])
        if (done := ip(*link)).returncode:
            pytest.skip(f"no cable between network namespaces can be made here: {done.stderr.strip()}")
        for name, address, end in made:
            for arguments in (("addr", "add", f"{address}/24", "dev", end), ("link", "set", end, "up"),
                              ("link", "set", "lo", "up")):
                assert ip("-n", name, *arguments).returncode == 0
        yield made
    finally:
        for name in names:
            ip("netns", "del", name)


def ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)


def on_hosts(
    hosts: list[tuple[str, str, str]], parent: Path, *arguments: str, processes: int
) -> tuple[list[Path], str]:
    """So many processes on each, in a folder with a checkpoint that the other does not see: the folders, and what both
    print."""
    folders, started = [parent / name for name, _, _ in hosts], []
    for (name, address, end), folder in zip(hosts, folders, strict=True):
        (folder / "tiny").mkdir(parents=True)
        write_tiny(folder / "tiny")
        command = launcher("--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{hosts[0][1]}:29500",
                           "--rdzv-conf", f"is_host={address == hosts[0][1]}", "--local-addr", address,
                           processes=processes)
        started.append(subprocess.Popen(
            ["ip", "netns", "exec", name, *command, "lvtp_fx.cli.main", *arguments], cwd=folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(GLOO_SOCKET_IFNAME=end)))
    try:
        texts = [process.communicate(timeout=SECONDS) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], texts
    return folders, "".join(out for out, _ in texts)


def test_two_hosts_that_share_no_files(
    one: tuple[Path, str], hosts: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    """Two processes on each score; one on each calibrates."""
    folders, text = on_hosts(hosts, tmp_path / "eval", *EVAL, processes=2)
    assert text == one[1]
    maps = [folder / "maps" for folder in folders]
    assert [len(label_maps(each)) for each in maps] == [8, 4]  # two of the four processes have two of the six images
    assert label_maps(*maps) == label_maps(one[0] / "maps")
    folders, text = on_hosts(hosts, tmp_path / "calibrate", *CALIBRATE, "--out", "schedule.json", processes=1)
    assert text.count("written: schedule.json") == 1
    [schedule] = [file for folder in folders for file in folder.glob("schedule.json*")]  # the first process's alone
    assert schedule.read_bytes() == (one[0] / "schedule.json").read_bytes()
