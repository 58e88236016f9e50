"""The benchmark runs from end to end, and its baselines, which know nothing of pending maps, find the plan's heads."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from families import FAMILIES, Family
from plans import plan_of
from unweave.errors import UnweaveError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODEL = "timm/test_vit"


@pytest.fixture
def benchmark_module(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.mark.parametrize(
    "family",
    [family for family in FAMILIES if family.name in ("timm/deit", "timm/swin", "timm/maxvit", "hf/vit")],
    ids=lambda family: family.name,
)
def test_pushing_forward_finds_the_heads_of_the_plan(benchmark_module, family: Family) -> None:
    images, plan = family.images(3), plan_of(family)
    pushed = benchmark_module("baselines").Pushing(plan._walk)(images)
    heads = [place for place, component in enumerate(plan.components) if component.kind == "head"]
    assert pushed.error < 1e-12
    assert torch.allclose(pushed.heads.transpose(0, 1), plan.run(images).values[:, heads], atol=1e-12)


def test_a_quick_run_measures_every_method_and_goes_on_where_it_stopped(
    benchmark_module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, record = benchmark_module("decompose"), tmp_path / "decompose.json"
    readme = script.README.read_text()
    arguments = ["--models", MODEL, "--tokens", MODEL, "--quick", "--image-size", "64", "--json", str(record)]
    arguments += ["--threads", str(torch.get_num_threads())]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "decompose.py"), *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert MODEL.removeprefix("timm/") in done.stdout
    rows = json.loads(record.read_text())["rows"]
    assert [row["method"] for row in rows] == [
        "unweave",
        "forward hooks",
        "pushing forward",
        "unweave",
        "unweave, scores",
        "unweave, scores",
        "pushing forward, last 1 layers",
    ]
    assert all(len(row["plain"]) == 2 and row["batch"] and row["components"] for row in rows)
    assert all(row["error"] < 1e-5 for row in rows if row["error"] is not None)
    assert all(row["difference"] < 1e-5 for row in rows if row["difference"] is not None)
    monkeypatch.setattr(script.Bench, "measured", lambda *_: pytest.fail("everything was measured already"))
    assert script.main(arguments) == 0
    assert script.README.read_text() == readme


def test_what_fails_is_said(benchmark_module, tmp_path: Path) -> None:
    script, record = benchmark_module("decompose"), tmp_path / "decompose.json"
    assert script.main(["--models", "timm/no_such_model", "--quick", "--json", str(record)]) == 1
    (row,) = json.loads(record.read_text())["rows"]
    assert row["failed"] and "no_such_model" in row["note"]


def test_the_table_goes_between_its_markers(benchmark_module, tmp_path: Path) -> None:
    script: ModuleType = benchmark_module("decompose")
    row = script.Row("timm/a", "head", "unweave", 8, 3, [2.0, 1.0, 4.0], [2.2, 1.2, 4.0], 10**6, 0, 1e-7)
    assert row.ratio == pytest.approx((1.1, 1.0, 1.2))
    text = script.markdown([row], "python benchmarks/decompose.py", "a machine")
    assert "| a | unweave | 3 | 8 | **1.1** | 1 to 1.2 | 3 | 2.00 | 2.20 | 1 | 1e-07 |  |" in text
    path = tmp_path / "README.md"
    path.write_text("before\n<!-- decompose:cpu:begin -->\nold\n<!-- decompose:cpu:end -->\nafter\n")
    for _ in range(2):
        script.write(text, path, "cpu")
    assert path.read_text() == f"before\n<!-- decompose:cpu:begin -->\n{text}\n<!-- decompose:cpu:end -->\nafter\n"
    with pytest.raises(UnweaveError, match="no place"):
        script.write(text, path, "cuda")
