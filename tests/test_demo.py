"""The demonstration on fewer scenes: what it finds is true, and its report is whole."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from typer.testing import CliRunner

import unweave
import unweave.demo
from unweave.cli import app
from unweave.demo import demonstrate
from unweave.errors import ModelError
from unweave.pocket.shipped import evaluation


@pytest.fixture
def few(monkeypatch):
    """The first 160 scenes alone."""
    scenes = evaluation()
    fewer = dataclasses.replace(
        scenes,
        images=scenes.images[:160],
        masks=scenes.masks[:160],
        factors=scenes.factors[:160],
        captions=scenes.captions[:160],
    )
    monkeypatch.setattr(unweave.demo, "evaluation", lambda: fewer)
    return fewer


def test_the_demonstration_says_what_the_model_computes(few, tmp_path):
    name, seen = "pocket/swin", []
    found = demonstrate(tmp_path / "report.html", model=name, on_progress=lambda *told: seen.append(told[1:]))
    assert seen == [(100, 160), (160, 160)]
    model = unweave.load_model(name)
    images = unweave.demo._inputs(model, few, range(5))
    assert torch.allclose(found.contributions.representation[:5], model.readout(images), atol=1e-4)
    assert float(found.contributions.error.max()) <= 1e-5
    assert set(found.carried) == {"object", "category", "colour", "pattern", "location"}
    assert all(len(values) == len(found.contributions.components) for values in found.carried.values())
    for factor, place in found.carriers.items():
        assert found.contributions.components[place].kind != "bias"
        assert found.carried[factor][place] >= found.carried[factor][0]
    report = found.report.read_text("utf-8")
    assert report.count("<figure>") == 4 and "http" not in report
    assert name in report


def test_maps_of_coarse_and_fine_layers_keep_their_sum(few):
    """Swin's layers have grids of several sizes: what a token scores is spread over the cells it covers."""
    model = unweave.load_model("pocket/swin")
    plan = unweave.plan(model, level="token", select="kind:head")
    assert len({grid.height for grid in plan.grids.values()}) > 1
    images = unweave.demo._inputs(model, few, range(2))
    scores = plan.project(images, torch.randn(1, plan.dim, generator=torch.Generator().manual_seed(0))).values[:, :, 0]
    placed = [place for place, part in enumerate(plan.components) if part.row is not None]
    for cells, row in zip(unweave.demo._maps(plan, scores), scores, strict=True):
        assert cells.sum() == pytest.approx(float(row[placed].double().sum()), rel=1e-6)


def test_the_verb_writes_the_report_and_speaks_json(few, tmp_path):
    result = CliRunner().invoke(app, ["demo", "-o", str(tmp_path / "report.html"), "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["images"] == 160 and said["largest_error"] <= 1e-5
    assert said["files"] == {"report": str(tmp_path / "report.html")}
    assert {part["name"] for part in said["carried"]["object"]} >= {"embed", "blocks.0.attn.head.0"}


def test_a_model_that_is_not_in_the_zoo_is_refused(tmp_path):
    with pytest.raises(ModelError):
        demonstrate(tmp_path / "report.html", model="pocket/resnet")
    assert not list(tmp_path.iterdir())
