"""Every example runs by itself, in a folder of its own, on what is shipped, and is no longer than it should be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import unweave

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
LINES = 12

OFFLINE = """
import runpy, socket, sys

def refused(*args, **kwargs):
    raise AssertionError(f"the example asked the network: {args}")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refused
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What texts and images were embedded to, which the examples share."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_runs_offline(example: Path, tmp_path: Path, cache: Path) -> None:
    here = str(Path(unweave.__file__).parents[1])  # the package under test, whichever is installed
    environment = {**os.environ, "PYTHONPATH": here, "UNWEAVE_CACHE": str(cache), "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", OFFLINE, str(example)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_is_short_and_says_what_it_is_for(example: Path) -> None:
    lines = example.read_text().splitlines()
    assert len(lines) <= LINES
    assert lines[0].startswith('"""') and lines[0].endswith('"""')
    assert max(map(len, lines)) <= 120


def test_there_are_ten_examples() -> None:
    assert len(EXAMPLES) == 10
