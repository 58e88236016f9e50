"""Every model of the table, measured anew: `pytest -m sweep tests/test_sweep.py`, which takes hours.

`python -m benchmarks.models` measures, and writes a row for each model into a file; here the rows are judged. With
`UNWEAVE_SWEEP` naming that file, models that it holds are not measured again. `tests/models/test_measurement.py` judges
the rows that are published.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
BOUNDS = {"float32": 1e-5, "float64": 1e-10}

pytestmark = [pytest.mark.sweep, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    """Imports a file of the benchmarks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield import_module


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    file = Path(os.environ.get("UNWEAVE_SWEEP") or tmp_path_factory.mktemp("sweep") / "rows.jsonl")
    subprocess.run([sys.executable, str(BENCHMARKS / "models.py"), "--rows", str(file)], check=True)
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_what_is_not_decomposed_is_refused_by_name(rows):
    assert not [row["failure"] for row in rows if "failure" in row and not row["named"]]


def test_every_sum_is_exact(rows):
    assert not [row["id"] for row in rows if "error" in row and not row["error"] <= BOUNDS[row["dtype"]]]
    assert not [row["id"] for row in rows if row.get("regions", "").startswith(("inexact", "fails"))]


def test_every_model_is_resolved_or_says_why_not(rows):
    for row in rows:
        if "error" in row and row["resolved"] < row["attention"]:
            assert row["lumps"] or row["unresolved"], row["id"]


def test_modules_of_timm_are_as_far_resolved_as_is_known(rows, benchmark):
    known = {f"timm/{name}" for name in benchmark("catalogue").FAMILIES.values()}
    reason = benchmark("reasons").reason
    for row in rows:
        if "error" in row and row["id"] in known:
            whole = row["resolved"] == row["attention"] and not row["lumps"]
            assert whole != bool(reason(row["id"])), [row["id"], *row["unresolved"], *row["lumps"]]


def test_every_module_of_timm_has_a_model(benchmark):
    import timm

    assert set(timm.list_modules()) <= set(benchmark("catalogue").FAMILIES)
