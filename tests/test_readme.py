"""The README's Python runs, as it stands there; its links and commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_code_blocks_run_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(BLOCKS) >= 2
    names: dict[str, object] = {}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)
    assert "GFLOPs an image, whole model" in capsys.readouterr().out


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_make_targets_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    pages = [README, *(page.read_text() for folder in ("docs", "bench") for page in (ROOT / folder).glob("*.md"))]
    named = set(re.findall(r"(?:^ *|`)make ([a-z-]+)", "\n".join(pages), flags=re.MULTILINE))
    assert {"demo", "test", "test-matrix", "bench-gpu"} <= named <= set(targets)
