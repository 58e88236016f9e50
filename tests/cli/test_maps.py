"""`unweave heatmap` and `unweave segment`, on small networks that are shipped."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import unweave
from unweave.alignment import Recipe, align

pytestmark = pytest.mark.xdist_group("store verbs")


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNWEAVE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def aligner(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps")
    store = unweave.extract("pocket/dino", "pocket/evaluation", folder / "store", limit=60)
    align(store, unweave.text_space("pocket/clip"), Recipe(rounds=0, random_images=0)).save(folder / "aligner")
    return folder / "aligner"


def said(result, status=0):
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def refused(result, *words):
    assert result.exit_code == 2, result.output
    flat = " ".join(result.stderr.split())
    assert "Traceback" not in flat and "error:" in flat
    for word in words:
        assert word in flat, flat


def test_maps_of_a_text_through_an_aligner(run, aligner, tmp_path):
    arguments = ("heatmap", "pocket/dino", "pocket/evaluation", "--limit", 2, "--space", aligner, "-o", "out")
    forms = [word for form in ("png", "svg", "npz", "safetensors") for word in ("--format", form)]
    found = said(run(*arguments, "--text", "a duck", "--text", "an owl", *forms, "--json"))
    assert found["targets"] == ["a duck", "an owl"] and found["space"] == "pocket/clip" and len(found["rows"]) == 4
    for row in found["rows"]:
        assert row["score"] == pytest.approx(row["in the maps"] + sum(row["beside"].values()), abs=1e-4)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"heatmap.{form}" for form in ("png", "svg", "npz", "safetensors")
    }
    with np.load(tmp_path / "out" / "heatmap.npz", allow_pickle=False) as file:
        assert file["sum"].shape == (2, 2, 8, 8)


def test_maps_of_a_class_and_of_what_scores_for_a_feature(run, tmp_path):
    rows = [
        {"component": f"blocks.3.attn.head.{head}", "feature": "category", "score": head / 4, "above_chance": head > 0}
        for head in range(4)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "scores.parquet")
    common = ("heatmap", "pocket/deit", "pocket/evaluation", "--limit", 1, "--class", "duck", "-o", "out")
    found = said(run(*common, "--feature", "category", "--scores", tmp_path, "--count", 2, "--json"))
    assert [own["name"] for own in found["components"]] == ["blocks.3.attn.head.2", "blocks.3.attn.head.3"]
    plain = run(*common, "--against", "owl", "--select", "last:1", "--format", "png")
    assert plain.exit_code == 0 and "duck" in plain.stdout and "constant" in plain.stdout


def test_a_broken_image_is_left_out(run, tmp_path):
    Image.new("RGB", (70, 64), "red").save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    arguments = ("heatmap", "pocket/deit", "good.png", "bad.png", "--class", "duck", "-o", "out", "--format", "npz")
    found = said(run(*arguments, "--json"))
    assert len(found["ids"]) == 1 and "bad.png" in found["skipped"][0]["id"]
    refused(run("heatmap", "pocket/deit", "bad.png", "--class", "duck", "-o", "out"), "None of the images")


def test_heatmap_refuses_what_cannot_be(run, aligner, tmp_path):
    def heatmap(*arguments, model="pocket/deit", output="out"):
        return run("heatmap", model, "pocket/evaluation", "--limit", 1, *arguments, "-o", output)

    refused(heatmap(), "--text or --class")
    refused(heatmap("--class", "duck", "--text", "a duck"), "--text or --class")
    refused(heatmap("--class", "unicorn"), "unicorn", "40 classes")
    refused(heatmap("--text", "a duck"), "--space")
    refused(heatmap("--text", "a duck", "--space", aligner), "The aligner is of another model")
    refused(heatmap("--text", "a duck", "--space", "pocket/clip"), "not the image encoder")
    refused(heatmap("--class", "duck", model="pocket/dino"), "no classifier")
    refused(heatmap("--class", "duck", "--format", "gif"), "no format 'gif'")
    refused(heatmap("--class", "duck", "--feature", "colour"), "--scores")
    refused(heatmap("--class", "duck", "--feature", "colour", "--scores", tmp_path / "none"), "scores cannot be read")
    refused(heatmap("--class", "duck", "--select", "kind:bias"), "tokens at known places")
    (tmp_path / "file").write_text("")
    refused(heatmap("--class", "duck", output="file/below"), "cannot be written")
    assert not (tmp_path / "out").exists()


def test_segment_prints_and_writes_a_row_for_each_method(run, tmp_path):
    methods = [word for name in ("components", "raw attention", "rollout") for word in ("--method", name)]
    arguments = ("segment", "pocket/swin", "pocket/evaluation", "--limit", 6, *methods, "--shown", 2, "-o", "out")
    guessed = said(run(*arguments[:-1], "guessed", "--predicted", "--no-figure", "--json"))
    assert guessed["class"] == "predicted" and guessed["rows"][0]["images"] == 6
    found = said(run(*arguments, "--json"))
    ours, raw, rolled = found["rows"]
    assert ours["method"] == "components" and ours["images"] == raw["images"] == 6 and rolled["images"] == 0
    assert "windows" in rolled["reason"] and rolled["average_precision"] is None
    assert {"foreground_iou", "mean_iou"} <= set(ours) and ours["average_precision"] > 0.5
    names = {"segmentation.parquet", "segmentation.json", "segmentation.md", "segmentation.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert pq.read_table(tmp_path / "out" / "segmentation.parquet").to_pylist() == found["rows"]


def test_segment_by_text_on_a_folder_of_masks(run, aligner, tmp_path):
    scenes = unweave.open_images("pocket/evaluation", limit=3)
    for picture in scenes:
        for kind, image in (("images", picture.read()), ("masks", Image.fromarray(picture.mask()))):
            place = tmp_path / "set" / kind / str(picture.fields["label"])
            place.mkdir(parents=True, exist_ok=True)
            image.save(place / f"{picture.row}.png")
    common = ("segment", "pocket/dino", "masks:set", "--space", aligner, "--phrase", "a {}", "-o", "out")
    found = said(run(*common, "--method", "components", "--method", "raw attention", "--no-figure", "--json"))
    assert found["target"] == "pocket/clip" and [row["images"] for row in found["rows"]] == [3, 3]
    plain = run(*common, "--method", "components")
    assert plain.exit_code == 0 and "foreground IoU" in plain.stdout and "mean IoU" in plain.stdout


def test_segment_refuses_what_cannot_be(run, aligner, tmp_path):
    def segment(*arguments, model="pocket/deit", data="pocket/evaluation", output="out"):
        return run("segment", model, data, "--limit", 2, "--method", "components", *arguments, "-o", output)

    folder = tmp_path / "plain" / "duck"
    folder.mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    refused(segment(data="plain"), "no masks")
    for name, size in (("images", (64, 64)), ("masks", (32, 64))):
        place = tmp_path / "other" / name / "duck"
        place.mkdir(parents=True)
        Image.new("RGB", size, "white").save(place / "a.png")
    refused(segment(data="masks:other"), "The mask has 32 x 64 pixels")
    refused(segment("--label", "breed"), "Nothing is known of the breed")
    refused(segment("--label", "location"), "none of the 40 classes")
    refused(segment("--space", aligner), "The aligner is of another model")
    refused(segment("--space", aligner, "--predicted"), "Only a classifier predicts")
    refused(segment("--method", "magic"), "no method 'magic'")
    refused(segment("--feature", "category"), "--scores")
    refused(segment("--phrase", "a thing"), "no place for the class")
    (tmp_path / "file").write_text("")
    refused(segment(output="file"), "cannot be written")
    assert not (tmp_path / "out").exists()
