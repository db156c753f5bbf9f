"""`lvtp-fx verify` and `lvtp-fx bench`."""

from __future__ import annotations

import pytest

from tests.cli.helpers import MODEL, Call, found, only_line


def test_verify_passes_and_a_difference_is_code_1(call: Call) -> None:
    assert "verified on 2 images" in call("verify", MODEL, "--keep-ratio", "0.8").stdout
    value = found(call("verify", MODEL, "--keep-ratio", "0.8", "--images", "photos", "--json"))
    assert (value["images"], value["verified"]) == (3, True)
    assert 0 < value["output_error"] <= value["tolerance"]
    result = call("verify", MODEL, "--keep-ratio", "0.8", "--tolerance", "1e-12", "--json", code=1)
    assert only_line(result.stderr).startswith("LVTP301 verify-mismatch at blocks.")
    assert found(result)["error"]["code"] == "LVTP301"


def test_bench_times_both(call: Call) -> None:
    value = found(call("bench", MODEL, "--keep-ratio", "0.6", "--batch", "3", "--rounds", "4", "--eager", "--dtype",
                       "float64", "--json"))
    assert (value["batch"], value["size"], value["dtype"], value["how"]) == (3, "32x32", "float64", "eager")
    for name in ("dense", "pruned"):
        assert 0 < value[name]["low_ms"] <= value[name]["median_ms"] <= value[name]["high_ms"]
    assert value["speedup"] == pytest.approx(value["dense"]["median_ms"] / value["pruned"]["median_ms"])
    table = call("bench", MODEL, "--keep-ratio", "0.6", "--rounds", "2", "--eager").stdout
    assert "ms, quartiles" in table
    assert "a batch of 4 at 32x32, float32, eager, 2 rounds" in table
    call("bench", MODEL, "--rounds", "1", code=2)
