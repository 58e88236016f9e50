"""`unweave ablate` and `unweave debias`, on a small network that is shipped."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import unweave
from stores import remembering
from unweave.alignment import Recipe, align
from unweave.tasks import checkpoints
from unweave.tasks.classifier import probe

pytestmark = pytest.mark.xdist_group("store verbs")


@pytest.fixture(scope="module", autouse=True)
def once(tmp_path_factory):
    with remembering(tmp_path_factory.mktemp("cache")):
        yield


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    scenes = unweave.extract("pocket/deit", unweave.open_images("pocket/evaluation", limit=160), folder / "deit")
    for split in ("train", "validation", "test"):
        unweave.extract("pocket/deit", f"pocket/birds/0/{split}/80", folder / split)
    found = align(scenes, unweave.text_space("pocket/clip"), Recipe(rounds=0, random_images=0))
    found.save(folder / "aligner")
    return folder


def size(path):
    with Image.open(path) as image:
        return image.size


def said(result, status=0):
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def birds(stores, *more):
    sides = ("--held-out", stores / "validation", "--test", stores / "test")
    return ("debias", stores / "train", *sides, "--space", stores / "aligner", "--draws", 2, "-o", "out", *more)


def test_ablate_layers(run, stores, tmp_path):
    found = said(run("ablate", stores / "deit", "-o", "out", "--json"))
    rows = pq.read_table(tmp_path / "out/ablation.parquet").to_pylist()
    assert rows == found["rows"] and len(rows) == 7
    assert rows[0]["accuracy"] > 0.5 > rows[6]["accuracy"] and rows[1]["ablated"] == "layer 5"
    assert size(tmp_path / "out/ablation.png")[0] > 500
    result = run("ablate", stores / "deit", "-o", "out", "--order", "first", "--to", "zero", "--no-figure")
    assert result.exit_code == 0 and "told by the model's classifier" in result.stdout and "layer 0" in result.stdout


def test_ablate_by_score_by_chance_and_by_name(run, stores):
    words = ("--by", "zero-shot", "--label", "location", "--space", stores / "aligner", "--no-figure")
    found = said(run("ablate", stores / "deit", "-o", "out", "--order", "score:location", *words, "--json"))
    assert len(found["rows"]) == 45 and found["rows"][1]["ablated"].startswith("blocks.")
    linear = ("--by", "probe", "--label", "category", "--no-figure")
    found = said(run("ablate", stores / "deit", "-o", "out", "--order", "random", *linear, "--json"))
    assert len(found["rows"]) == 45
    order = ("--order", "blocks.5.*", "--order", "kind:mlp")
    found = said(run("ablate", stores / "deit", "-o", "out", *order, "--json"))
    assert [row["ablated"] for row in found["rows"]] == ["nothing", "blocks.5.*", "kind:mlp"]


def test_debias_reports_groups_before_and_after_beside_controls(run, stores, tmp_path):
    found = said(run(*birds(stores, "-k", 3, "--json")))
    rows = pq.read_table(tmp_path / "out/debias.parquet").to_pylist()
    assert rows == found["rows"] and {row["components"] for row in rows} == {"ranked", "random", "greedy with groups"}
    assert found["k"] == 3 == len(found["ablated"]) and found["protocol"] == "held-out"
    assert {"group land, land", "group water, land"} <= set(rows[0])
    assert size(tmp_path / "out/debias.png")[0] > 800
    result = run(*birds(stores, "-k", "auto", "--published", "--no-figure"))
    assert result.exit_code == 0 and "worst group" in result.stdout and "ablated: " in result.stdout


def test_the_edit_is_written_into_a_checkpoint_that_is_measured_again(run, stores, tmp_path, monkeypatch):
    found = said(
        run(*birds(stores, "-k", 2, "--export", "debiased.safetensors", "--export-k", 2, "--no-figure", "--json"))
    )
    checkpoint = found["checkpoint"]
    assert checkpoint["k"] == 2 and set(checkpoint["ablated"]) == set(found["ablated"][: checkpoint["k"]])
    assert checkpoint["apart"] < 1e-5 and checkpoint["refused"] == []
    edited = unweave.load_model("pocket/deit", checkpoint=tmp_path / "debiased.safetensors")
    images = torch.stack([edited.preprocess(one.read()) for one in unweave.open_images("pocket/birds/0/test/80")])
    classifier = probe(unweave.open_store(stores / "train").view(), "label")
    told = classifier.predicted(edited.readout(images).detach())
    view = unweave.open_store(stores / "test").view()
    right = told == classifier.codes(view, "label")
    label, place = (np.array(view.field(name)) for name in ("label", "background"))
    for name, accuracy in checkpoint["groups"].items():
        bird, where = name.split(", ")
        assert accuracy == right[(label == bird) & (place == where)].mean()
    result = run(*birds(stores, "-k", 1, "--export", "x.safetensors", "--export-k", 1, "--no-figure"))
    assert result.exit_code == 0 and "The checkpoint, without the first 1" in result.stdout.replace("\n", " ")
    monkeypatch.setattr(checkpoints, "_carried", lambda tried, before: None)
    for more, what in (
        (("--export", "y.safetensors"), "costs more than it brings: with 1 components"),
        (("--export", "x.bin", "--export-k", 1), "safetensors"),
        (("--export", "x.safetensors", "-k", "0"), "nothing to write"),
        (
            ("--export", "x.safetensors", "--by", "zero-shot", "--label", "location", "--attribute", "bird"),
            "cannot read a checkpoint",
        ),
    ):
        result = run(*birds(stores, *more, "--no-figure", *(() if "-k" in more else ("-k", 1))))
        assert result.exit_code == 2 and what in result.stderr, result.output


def test_a_zero_shot_head_goes_by_what_classes_are_called(run, stores):
    call = ("--call", "land=an owl", "--call", "land=a parrot", "--call", "water=a duck", "--call", "water=a swan")
    found = said(run(*birds(stores, "--by", "zero-shot", *call, "-k", 1, "--no-figure", "--json")))
    assert found["by"] == "zero-shot" and found["rows"][0]["average"] > 0.6


def test_debias_of_one_store_with_splits(run, stores, tmp_path):
    (tmp_path / "images").mkdir()
    lines = ["id,path,label,background,split"]
    for split in ("train", "val", "test"):
        for number, picture in enumerate(unweave.open_images("pocket/birds/3/test/40")):
            name = f"{split}{number}.png"
            picture.read().save(tmp_path / "images" / name)
            lines.append(f"{name},{name},{picture.fields['bird']},{picture.fields['background']},{split}")
    (tmp_path / "images/list.csv").write_text("\n".join(lines))
    unweave.extract("pocket/deit", str(tmp_path / "images/list.csv"), tmp_path / "one")
    arguments = ("debias", "one", "--space", stores / "aligner", "--draws", 1, "-o", "out", "--no-figure")
    found = said(run(*arguments, "--json"))
    assert len(found["rows"]) == 3 * 21 and found["k"] == 10
    result = run(*arguments, "--splits", "train,valid,test")
    assert result.exit_code == 2 and "No image has the split 'valid'" in result.stderr
    result = run(*arguments, "--splits", "train,test")
    assert result.exit_code == 2 and "three sides, not 2" in result.stderr


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (("-k", "many"), "-k must be a number or `auto`"),
        (("-k", "900"), "k must be from 0 to"),
        (("--spurious", "sea"), "no feature 'sea'"),
        (("--call", "land"), "not of the form NAME=VALUE"),
        (("--by", "zero-shot", "--call", "land=an owl"), "none of the 1 classes"),
        (("--features", "no.toml"), "cannot be read"),
        (("--label", "kind"), "no field 'kind'"),
        (("--attribute", "kind"), "no field 'kind'"),
        (("--by", "model"), "none of the 40 classes"),
    ],
)
def test_bad_input_to_debias(run, stores, more, what):
    result = run(*birds(stores, *more))
    assert result.exit_code == 2 and what in result.stderr and "Traceback" not in result.stderr, result.output


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (("--by", "zero-shot"), "Words need a text space"),
        (("--order", "score:location"), "Words need a text space"),
        (("--order", "blocks.9.*"), "matches none"),
        (("--label", "kind"), "no field 'kind'"),
        (("--label", "colour"), "none of the 40 classes"),
        (("--fitted-where", "label=nothing"), "No image has the label 'nothing'"),
        (("--where", "location=sea", "--fitted-where", "location=sea"), "fitted to and measured on"),
    ],
)
def test_bad_input_to_ablate(run, stores, more, what):
    result = run("ablate", stores / "deit", "-o", "out", *more)
    assert result.exit_code == 2 and what in result.stderr.replace("\n", " "), result.output
    assert "Traceback" not in result.stderr


def test_an_aligner_of_another_model_and_a_place_that_cannot_be_written(run, stores, tmp_path):
    (tmp_path / "file").touch()
    result = run("ablate", stores / "deit", "-o", "file/out")
    assert result.exit_code == 2 and "cannot be written" in result.stderr
    unweave.extract("pocket/clip", "pocket/birds/0/test/20", tmp_path / "clip")
    result = run("ablate", "clip", "-o", "out", "--by", "zero-shot", "--space", stores / "aligner")
    assert result.exit_code == 2 and "of another model" in result.stderr
