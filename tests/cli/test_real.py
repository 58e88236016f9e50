"""The verbs on a real model of the smallest kind, from its id to the files on disk."""

import json

import pytest
import torch

from unweave import Contributions

MODEL = ("timm/test_vit", "--random-weights")


def test_decompose_adds_up_on_disk(run):
    result = run("decompose", *MODEL, "-o", "out")
    assert result.exit_code == 0, result.output
    contributions = Contributions.load("out")
    z = contributions.representation
    assert contributions.values.shape[0] == 8 and contributions.values.dtype == torch.float32
    assert ((contributions.values.sum(1) - z).norm(dim=-1) / z.norm(dim=-1)).max() <= 1e-5
    assert contributions.error.max() <= contributions.tolerance == 1e-5
    assert contributions.origin.model == MODEL[0] and len(contributions.origin.weights_hash) == 64
    assert "100.00 %" in result.stdout


def test_selection_keeps_the_rest(run):
    result = run("decompose", *MODEL, "-o", "out", "--select", "kind:head", "--limit", 2, "--no-figure", "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    contributions = Contributions.load("out")
    assert {component.kind for component in contributions.components} == {"head", "rest"}
    assert said["total_share"] == pytest.approx(1, abs=1e-4) and contributions.origin.selection == "kind:head"


@pytest.mark.parametrize("level", ["layer", "token", "neuron"])
def test_levels(run, level):
    result = run("decompose", *MODEL, "-o", "out", "--level", level, "--limit", 2, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["total_share"] == pytest.approx(1, abs=1e-4)
    assert Contributions.load("out").origin.level == level
    assert ("warning" in result.stderr) == (level != "layer")


@pytest.mark.parametrize("dtype, stored", [("float64", torch.float64), ("bfloat16", torch.float32)])
def test_dtypes(run, dtype, stored):
    result = run("decompose", *MODEL, "-o", "out", "--dtype", dtype, "--limit", 2, "--no-figure")
    assert result.exit_code == 0, result.output
    contributions = Contributions.load("out")
    assert contributions.values.dtype == stored and contributions.origin.computed_in == dtype


def test_explain(run):
    found = json.loads(run("explain", *MODEL, "--json").stdout)
    assert found["model"] == MODEL[0] and found["coverage"]["resolved"] == found["coverage"]["attention_layers"] > 0
    result = run("explain", *MODEL)
    assert result.exit_code == 0 and "aten.linear" in result.stdout and "per image" in result.stdout


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("timm/test_vitt",), "test_vit"),
        (("timn/test_vit",), "timm/test_vit"),
        ((*MODEL, "--select", "nothing"), "matches none"),
        ((*MODEL, "--select", "kind:cat"), "kind 'cat'"),
        ((*MODEL, "--image-size", "33"), "33"),
    ],
)
def test_what_cannot_be_done_is_said(run, tmp_path, arguments, said):
    result = run("decompose", *arguments)
    assert result.exit_code == 2 and said in result.stderr and "Traceback" not in result.stderr
    assert result.stdout == "" and list(tmp_path.iterdir()) == []
