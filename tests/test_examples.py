"""Every example runs by itself, in a folder of its own, on what is shipped, and is no longer than it should be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import unweave

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
LINES = 12

OFFLINE = """
import contextlib, io, json, os, runpy, socket, sys, traceback

def refused(*args, **kwargs):
    raise AssertionError(f"the example asked the network: {args}")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refused
here = os.getcwd()
for example in sys.argv[1:]:
    folder = os.path.join(here, os.path.basename(example))
    os.mkdir(folder)
    os.chdir(folder)
    printed, failed = io.StringIO(), ""
    try:
        with contextlib.redirect_stdout(printed):
            runpy.run_path(example, run_name="__main__")
    except BaseException:
        failed = traceback.format_exc()
    print(json.dumps([example, printed.getvalue(), failed]), flush=True)
"""

pytestmark = pytest.mark.xdist_group("examples")  # one process runs them all, for most of the time goes into imports


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """What each example printed, and how it failed if it did."""
    here = str(Path(unweave.__file__).parents[1])  # the package under test, whichever is installed
    cache = str(tmp_path_factory.mktemp("cache"))
    environment = {**os.environ, "PYTHONPATH": here, "UNWEAVE_CACHE": cache, "MPLBACKEND": "agg"}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", OFFLINE, *map(str, EXAMPLES)],
        cwd=tmp_path_factory.mktemp("examples"),
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    return {example: (printed, failed) for example, printed, failed in rows}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_runs_offline(example: Path, done: dict[str, tuple[str, str]]) -> None:
    printed, failed = done[str(example)]
    assert not failed, failed
    assert printed.strip()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_is_short_and_says_what_it_is_for(example: Path) -> None:
    lines = example.read_text().splitlines()
    assert len(lines) <= LINES
    assert lines[0].startswith('"""') and lines[0].endswith('"""')
    assert max(map(len, lines)) <= 120


def test_there_are_ten_examples() -> None:
    assert len(EXAMPLES) == 10
