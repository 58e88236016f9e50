"""Every python block of the README and the documentation runs, and every command has the options that it is given."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.main import get_command

from unweave.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^ *unweave (.+)$|`unweave ([^`\n]+)`", re.MULTILINE)


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


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "CHANGELOG.md", *(ROOT / "benchmarks").glob("*.md")], ids=lambda page: page.name
)
def test_commands_have_the_options_that_they_are_given(page: Path) -> None:
    for line in COMMAND.finditer(page.read_text()):
        words = shlex.split(line[1] or line[2], comments=True)
        command: Any = get_command(app)
        while hasattr(command, "commands") and words and not words[0].startswith("-"):
            assert words[0] in command.commands, line[0]
            command = command.commands[words.pop(0)]
        known = {option for param in command.params for option in param.opts} | {"--help", "--version"}
        assert not [word for word in words if word.startswith("-") and word not in known], line[0]
