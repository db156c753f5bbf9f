"""A part of the coverage bench, small enough for every change: each analysis rule is applied at least once."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lvtp_fx.passes.axes import complex_pairs
from lvtp_fx.passes.label_axes import RULES

BENCH = Path(__file__).parents[1] / "bench"
sys.path.append(str(BENCH))  # at the end: a package called coverage may be installed

from coverage_check import GROUPS, TOLERANCE, Row, check, error, largest, models  # noqa: E402
from coverage_table import line, write_table  # noqa: E402

pytestmark = pytest.mark.xdist_group("coverage")  # one process: the rows are made once

PROVED = {  # name: attention blocks
    ("timm", "naflexvit_base_patch16_parfac_gap final"): 4,
    ("timm", "vit_small_patch16_18x2_224 taps"): 8,
    ("timm", "vit_dwee_patch16_reg1_gap_256 final"): 8,
    ("timm", "vit_relpos_small_patch16_rpn_224 taps"): 4,
    ("transformers", "BeitForSemanticSegmentation sdpa"): 3,
    ("transformers", "CLIPSegForImageSegmentation sdpa"): 7,  # three of them in the decoder
    ("transformers", "EomtForUniversalSegmentation sdpa"): 4,
    ("transformers", "Sapiens2ForSemanticSegmentation sdpa"): 4,
    ("other", "1x1 convolutions, repeated keys"): 4,
    ("other", "batch norms, a scaled and clamped stream"): 4,
    ("other", "a returned attention map"): 4,
    ("other", "einsum and einops"): 4,
    ("other", "keyword inputs, a dataclass out"): 4,
    ("other", "nn.TransformerEncoder, token-major, post-norm"): 4,
    ("other", "patches by F.unfold, GLU"): 4,
    ("other", "smp.DPT on timm"): 12,
}
REFUSED = {  # name: why the nearest miss is none
    ("not_flat", "timm edgenext_xx_small: attention over channels"): "attention runs over channels",
    ("not_flat", "timm mobilevit_xxs: attention between unfolded patches"):
        "no residual stream [batch, tokens, channels] leads through it",
    ("not_flat", "timm cait_xxs24_224: talking heads"): "its queries are not the tokens of the grid",
}


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, str], Row]:
    made = {}
    for group, name in (*PROVED, *REFUSED):
        made[group, name] = check(next(model for model in models(group) if model.name == name))
    return made


@pytest.mark.parametrize(("group", "name"), PROVED)
def test_proved(rows: dict[tuple[str, str], Row], group: str, name: str) -> None:
    row = rows[group, name]
    assert row.refusal == ""
    assert row.blocks == PROVED[group, name]
    assert row.identity
    assert row.cut is not None
    assert row.cut > 0.01
    assert row.error is not None
    assert row.error < 2e-5
    assert row.batch_error is not None
    assert row.batch_error < TOLERANCE
    assert row.graphs == 1
    assert row.proved


@pytest.mark.parametrize(("group", "name"), REFUSED)
def test_refused(rows: dict[tuple[str, str], Row], group: str, name: str) -> None:
    row = rows[group, name]
    assert row.refusal.startswith("LVTP102 attention-not-matched at ")
    assert REFUSED[group, name] in row.refusal
    assert row.captured
    assert not row.proved


def test_every_rule_is_applied(rows: dict[tuple[str, str], Row]) -> None:
    rules = {rule.__name__ for table in RULES if table is not complex_pairs.RULES for rule in table.values()}
    assert rules == {rule for row in rows.values() for rule in row.rules}


def test_the_groups_hold_what_they_promise() -> None:
    names = {group: [model.name for model in models(group)] for group in GROUPS}
    assert len({name.rsplit(" ", 1)[0] for name in names["timm"]}) >= 60  # each with final tokens and with taps
    assert len({name.rsplit(" ", 1)[0] for name in names["transformers"]}) >= 20  # each fused and spelled out
    assert len(names["not_flat"]) >= 20
    for group in GROUPS:
        assert len(set(names[group])) == len(names[group])


def test_the_bench_goes_on_where_it_was(tmp_path: Path) -> None:
    def run() -> tuple[dict[str, object], str]:
        command = [sys.executable, str(BENCH / "coverage.py"), "--group", "other", "--only", "softmax spelled out",
                   "--out", str(tmp_path / "coverage.json")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        (row,) = json.loads((tmp_path / "coverage.json").read_text())["rows"]
        return row, done.stderr

    first, told = run()
    assert first["proved"]
    assert first["attention"] == first["blocks"] == 4
    assert "softmax spelled out, dropout: 4 blocks, -20." in told
    again, told = run()
    assert again == first
    assert "4 blocks" not in told
    assert "| softmax spelled out, dropout | 0.2 | 4 | 4 | 2 | 64 |" in (tmp_path / "COVERAGE.md").read_text()


def test_failures_are_in_the_table_too(tmp_path: Path) -> None:
    good = Row("a", captured=True, cut=0.2, identity=True, error=1e-6, batch_error=0.0, graphs=1)
    bad = Row("b", refusal="LVTP102 no\n  expected: this\n  got: that | other", missed=["why"])
    both = [{"group": "g", **vars(row), "proved": row.proved, "peak_gib": 1.5, "commit": "abc"} for row in (good, bad)]
    write_table(tmp_path / "t.md", both, {"torch": "2.14"})
    text = (tmp_path / "t.md").read_text()
    assert "| g | 2 | 1 | 1 | 1 | 0 | 1.5 |" in text
    assert "| b | 0.0 |  |  |  |  |  |  |  |  |  | 0 | abc | LVTP102 no; got: that \\| other (not used: why) |" in text
    assert line(both[0]) == "a: None blocks, -20.0%, error 1.0e-06"
    assert line(both[1]) == "b: LVTP102 no; got: that \\| other (not used: why)"


def test_what_is_not_a_number_is_an_error() -> None:
    ones = torch.ones(2)
    assert error((ones, ones * 1.5), (ones, ones)) == 0.5
    assert math.isnan(error((ones, ones * torch.nan), (ones, ones)))
    assert math.isnan(largest([0.1, math.nan, 0.2]))
    assert largest([]) == 0


def dies(group: str, name: str) -> dict[str, object]:
    """In the place of `coverage.work`."""
    if name == "dies":
        time.sleep(1)
        os._exit(1)
    time.sleep(3)
    return {"model": name}


def test_a_worker_that_dies_costs_no_other_model_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("coverage_bench", BENCH / "coverage.py")
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    monkeypatch.setattr(bench, "work", dies)
    rows = list(bench.run([("g", name) for name in ("a", "dies", "b", "c")], jobs=2))
    assert sorted(row["model"] for row in rows) == ["a", "b", "c", "dies"]
    assert [row["refusal"] for row in rows if row["model"] == "dies"] == [
        "DEFECT the process died: a crash, or not enough memory"]
    assert not any(row.get("refusal") for row in rows if row["model"] != "dies")


@pytest.mark.parametrize("change", [
    {"captured": False}, {"cut": 0.0}, {"cut": None}, {"identity": False}, {"error": None}, {"batch_error": 1e-3},
    {"graphs": 2},
])
def test_what_fails_one_law_is_not_proved(change: dict[str, object]) -> None:
    good = {"captured": True, "cut": 0.2, "identity": True, "error": 1e-6, "batch_error": 0.0, "graphs": 1}
    assert Row("a", **good).proved  # type: ignore[arg-type]
    assert not Row("a", **{**good, **change}).proved  # type: ignore[arg-type]
