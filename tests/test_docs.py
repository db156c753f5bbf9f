"""The Python of each page in docs/ runs, as it stands there, and prints what is shown; its links lead to files."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

from lvtp_fx.errors import Code, catalogue

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(page.name for page in DOCS.glob("*.md"))
# A block, and the indented lines below it, which are what it prints.
FENCE = re.compile(r"^```python\n(.*?)^```$(?:\n\n((?: {4}[^\n]*\n)+))?", flags=re.DOTALL | re.MULTILINE)


def run(text: str, name: str) -> int:
    """Run a page's blocks in order, in one namespace; returns how many there were."""
    names: dict[str, object] = {"__name__": "__page__"}
    blocks = FENCE.findall(text)
    for i, (block, shown) in enumerate(blocks):
        with redirect_stdout(io.StringIO()) as out:
            exec(compile(block, f"{name}, block {i + 1}", "exec"), names)
        if shown:
            assert out.getvalue() == re.sub("^ {4}", "", shown, flags=re.MULTILINE)
    return len(blocks)


@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_run_in_order(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # what a page writes goes here
    torch.manual_seed(0)
    torch._dynamo.reset()
    run((DOCS / page).read_text(), page)


def test_a_block_that_fails_is_seen() -> None:
    with pytest.raises(AssertionError):
        run("```python\nx = 1\n```\ntext\n```python\nassert x == 2\n```\n", "page")
    with pytest.raises(AssertionError):
        run("```python\nprint(1)\n```\n\n    2\n\ntext\n", "page")
    assert run("```python\nprint(1)\n```\n\n    1\n\ntext\n", "page") == 1
    assert run("```python\nx = 1\n```\n```cpp\nint x;\n```\n```python\nassert x == 1\n```\n", "page") == 2


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (DOCS / page).read_text()):
        assert target.startswith("https://") or (DOCS / target).exists(), target


def test_the_two_examples_of_extending_are_short() -> None:
    blocks = [block for block, _ in FENCE.findall((DOCS / "extend.md").read_text())]
    for what in ("strategy=Checkerboard()", "= cumulative\n"):
        (example,) = (block for block in blocks if what in block)
        assert len(example.splitlines()) < 40


def test_measured_figures_are_those_of_the_benches() -> None:
    """Each row, so that the page cannot drift from what the benches wrote."""
    root = DOCS.parent
    sources = [root / "README.md", *sorted((root / "bench").glob("*.md"))]
    written = {line for source in sources for line in source.read_text().splitlines()}
    rows = [line for line in (DOCS / "measured.md").read_text().splitlines() if line.startswith("|")]
    assert len(rows) > 30
    assert [row for row in rows if row not in written] == []


def test_the_index_names_every_page() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", (DOCS / "README.md").read_text())
    assert sorted([*targets, "README.md"]) == PAGES


def test_the_error_catalogue_is_the_codes() -> None:
    assert (DOCS / "errors.md").read_text() == catalogue()
    for code in Code:
        assert f"## {code.number} {code.slug}\n" in catalogue()
        assert code.meaning.endswith(".")
        assert not code.remedy.endswith(".")
