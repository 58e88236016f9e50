"""Every python block of the README and the documentation runs, in order, one file after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_runs(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = page.read_text()
    names: dict[str, object] = {"__name__": page.stem}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(0)
        for block in BLOCK.finditer(text):
            # blank lines before it, so that a traceback shows the line of the page
            above = text.count("\n", 0, block.start(1))
            exec(compile("\n" * above + block[1], str(page), "exec"), names)
    capsys.readouterr()


def test_there_are_blocks_to_run() -> None:
    assert all(BLOCK.search(page.read_text()) for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]
