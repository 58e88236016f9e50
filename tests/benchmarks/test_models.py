"""The table of models is measured in processes of their own, within limits, and goes on where it was interrupted."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import json, sys
sys.path.insert(0, "benchmarks")
from models import Rows, measured
rows = Rows(__import__("pathlib").Path(sys.argv[1]))
found = [rows.of("timm/test_vit"), measured("timm/test_vit", seconds=0), measured("timm/test_vit", gigabytes=0.01)]
print(json.dumps([*found, measured("timm/no_such_model")]))
"""


@pytest.fixture
def benchmark_module(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return import_module


def run(*command: str) -> str:
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_a_row_says_how_far_or_why_not(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"id": "torn')
    row, late, large, unknown = json.loads(run("-c", PROGRAM, str(file)))
    assert row["error"] <= 1e-5 and row["resolved"] == row["attention"] > 0 and row["regions"] == "yes"
    assert late["failure"] == "loading is not done after 0 seconds"
    assert large["failure"] == "it does not build in 0.01 GB"
    assert unknown["named"] and "no_such_model" in unknown["failure"]
    *_, kept = file.read_text().splitlines()
    assert json.loads(kept) == row


def test_a_row_that_is_known_is_not_measured_again(tmp_path, benchmark_module):
    file, rows = tmp_path / "rows.jsonl", benchmark_module("models").Rows
    file.write_text(json.dumps({"id": "timm/no_such_model", "error": 0.0}) + "\n")
    assert rows(file).of("timm/no_such_model") == {"id": "timm/no_such_model", "error": 0.0}


def test_a_configuration_is_cut_where_it_is_long_and_says_so(benchmark_module):
    from transformers import Sam2VisionConfig, ViTConfig

    cut = benchmark_module("cutting").cut
    config = ViTConfig(image_size=1024, out_indices=[3, 6, 9, 12])
    small, told = cut(config, 256)
    assert told == "layers 12 -> 2; images 1024 -> 256 px"
    assert (small.num_hidden_layers, small.image_size, list(small.out_indices)) == (2, 256, [1, 2])
    assert small.hidden_size == config.hidden_size
    assert cut(small, 256) == (small, "")
    assert "blocks" not in cut(Sam2VisionConfig(), 512)[1]
