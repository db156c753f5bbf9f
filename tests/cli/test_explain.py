"""`lvtp-fx explain`, and what help says of all commands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import lvtp_fx
from tests.cli.helpers import COMMANDS, MODEL, Call, found, named, only_line


def test_help_names_the_commands_and_each_explains_itself(call: Call) -> None:
    listed = call("--help").stdout
    for name in COMMANDS:
        assert f" {name} " in listed
        own = call(name, "--help").stdout
        assert own.count("--") > 5
        assert name == "demo" or "Example: lvtp-fx" in own
    assert "Exit codes: 0 done" in listed
    call("dmo", code=2)


def test_explain_says_what_the_api_says(call: Call) -> None:
    report = lvtp_fx.explain(named().model, named().inputs(1), keep_ratio=0.8)
    text = call("explain", MODEL, "--keep-ratio", "0.8")
    assert text.stdout == f"{report}\n"
    assert text.stderr == ""  # no terminal: no progress
    value = found(call("explain", MODEL, "--keep-ratio", "0.8", "--json"))
    assert value == {"model": MODEL, **json.loads(json.dumps(report.to_dict())), "notes": []}


def test_explain_of_what_is_refused_explains_and_exits_with_2(call: Call) -> None:
    result = call("explain", MODEL, "--flops-cut", "0.99", code=2)
    assert "blocks.0" in result.stdout
    assert only_line(result.stderr).startswith("LVTP202 flops-cut-unreachable at Config.flops_cut")
    value = found(call("explain", "users_own:convolution", "--size", "8", "--json", code=2))
    assert value["refused"].startswith("LVTP102")


def test_explain_writes_a_page(call: Call, folder: Path) -> None:
    page = folder / "out/page.html"
    bare = call("explain", MODEL, "--keep-ratio", "0.8", "--html", "out/page.html", "--rounds", "0")
    assert "blocks.0" in bare.stdout
    size = len(page.read_text())
    assert "Latency was not measured" in page.read_text()
    call("explain", MODEL, "--keep-ratio", "0.8", "--html", "out/page.html", "--images", "photos", "--limit", "2",
         "--rounds", "2")
    assert len(page.read_text()) > size + 1000
    assert "measured, median, ms" in page.read_text()
    assert re.search(r"<p>Latency: (torch.compile, fullgraph|eager).*, cpu, \d+ threads, torch 2", page.read_text())
    call("explain", MODEL, "--html", "out/page.html", "--rounds", "1", code=2)
    call("explain", MODEL, "--flops-cut", "0.99", "--html", "refused.html", code=2)
    assert "LVTP202" in (folder / "refused.html").read_text()
    call("explain", MODEL, "--images", "photos", code=2)


def test_explain_writes_the_graph(call: Call, folder: Path) -> None:
    call("explain", MODEL, "--keep-ratio", "0.8", "--graph", "out/after.dot", "--graph-before", "out/before.gv")
    before = (folder / "out/before.gv").read_text()
    assert "lvtp.merge" in (folder / "out/after.dot").read_text()
    assert "scaled_dot_product_attention" in before
    assert "lvtp." not in before
    # What is refused has a graph before, and none after.
    call("explain", MODEL, "--flops-cut", "0.99", "--graph", "out/none.dot", "--graph-before", "out/dense.dot", code=2)
    assert (folder / "out/dense.dot").read_text() == before
    assert not (folder / "out/none.dot").exists()
    for option in ("--graph", "--graph-before"):
        refused = call("explain", MODEL, "--keep-ratio", "0.8", option, "out/graph.png", code=2)
        assert ".dot, .gv or .svg" in " ".join(refused.stderr.split())
        assert option in refused.stderr


def test_explain_needs_no_data(call: Call) -> None:
    text = ("explain", MODEL, "--keep-ratio", "0.8")
    assert call(*text, "--device", "meta").stdout == call(*text).stdout
