"""`unweave heatmap` and `unweave segment`, on small networks that are shipped."""

import json

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import unweave
from unweave.alignment import Recipe, align
from unweave.components import Component

pytestmark = pytest.mark.xdist_group("store verbs")


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNWEAVE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def aligner(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps")
    store = unweave.extract("pocket/dino", unweave.open_images("pocket/evaluation", limit=60), folder / "store")
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
    found = said(run(*arguments, "--text", "a duck", "--text", "an owl", "--json"))
    assert found["targets"] == ["a duck", "an owl"] and found["space"] == "pocket/clip" and len(found["rows"]) == 4
    for row in found["rows"]:
        beside = [value for name, value in row.items() if name not in ("id", "target", "score", "error")]
        assert row["score"] == pytest.approx(sum(beside), abs=1e-4)
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {
        ".json", ".md", ".parquet", ".png", ".safetensors",
    }  # fmt: skip
    assert unweave.Heatmaps.load(tmp_path / "out").summed().shape == (2, 2, 8, 8)


def test_maps_of_a_class_and_of_what_scores_for_a_feature(run, tmp_path):
    components = tuple(Component("blocks.3.attn", "head", 3, head) for head in range(4))
    values, zeros = torch.arange(4)[:, None] / 4, torch.zeros(4, 1)
    p = torch.tensor([[1.0], [0.0], [0.0], [0.0]])
    features = {"category": ("a bird",)}
    scores = unweave.Scores(components, features, values, zeros, zeros, zeros, zeros, p, 9, card={"model": "made up"})
    scores.save(tmp_path, figure=False)
    common = ("heatmap", "pocket/deit", "pocket/evaluation", "--limit", 1, "--class", "duck", "-o", "out")
    found = said(run(*common, "--feature", "category", "--scores", tmp_path, "--components", 2, "--json"))
    assert sorted(found["components"]) == ["blocks.3.attn.head.2", "blocks.3.attn.head.3"]
    plain = run(*common, "--against", "owl", "--select", "last:1")
    assert plain.exit_code == 0 and "duck" in plain.stdout and "constant" in plain.stdout


def test_a_broken_image_is_left_out(run, tmp_path):
    Image.new("RGB", (70, 64), "red").save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    arguments = ("heatmap", "pocket/deit", "good.png", "bad.png", "--class", "duck", "-o", "out")
    found = said(run(*arguments, "--json"))
    assert len(found["ids"]) == 1 and "bad.png" in found["skipped"][0]["id"]
    refused(run("heatmap", "pocket/deit", "bad.png", "--class", "duck", "-o", "out"), "None of the images")


def test_heatmap_refuses_what_cannot_be(run, aligner, tmp_path):
    def heatmap(*arguments, model="pocket/deit", output="out"):
        return run("heatmap", model, "pocket/evaluation", "--limit", 1, *arguments, "-o", output)

    refused(heatmap(), "one of `texts` and `classes`")
    refused(heatmap("--class", "duck", "--text", "a duck"), "one of `texts` and `classes`")
    refused(heatmap("--class", "unicorn"), "unicorn", "40 classes")
    refused(heatmap("--text", "a duck"), "Texts need a text space")
    refused(heatmap("--text", "a duck", "--space", aligner), "The aligner is of another model")
    refused(heatmap("--text", "a duck", "--space", "pocket/clip"), "not the image encoder")
    refused(heatmap("--class", "duck", model="pocket/dino"), "no classifier")
    refused(heatmap("--class", "duck", "--feature", "colour"), "--scores")
    refused(heatmap("--class", "duck", "--feature", "colour", "--scores", tmp_path / "none"), "a file is missing")
    refused(heatmap("--class", "duck", "--select", "kind:bias"), "tokens at known places")
    (tmp_path / "file").write_text("")
    refused(heatmap("--class", "duck", output="file/below"), "cannot be written")
    assert not (tmp_path / "out").exists()


def test_segment_prints_and_writes_a_row_for_each_method(run, tmp_path):
    methods = [word for name in ("components", "raw attention", "rollout") for word in ("--method", name)]
    arguments = ("segment", "pocket/swin", "pocket/evaluation", "--limit", 6, *methods, "--shown", 2, "-o", "out")
    guessed = said(run(*arguments[:-1], "guessed", "--predicted", "--no-figure", "--json"))
    assert guessed["label"] is None and guessed["rows"][0]["images"] == 6
    found = said(run(*arguments, "--json"))
    ours, raw, rolled = found["rows"]
    assert ours["method"] == "components" and ours["images"] == raw["images"] == 6 and rolled["images"] == 0
    assert "windows" in rolled["reason"] and rolled["average_precision"] is None
    assert {"foreground_iou", "mean_iou"} <= set(ours) and ours["average_precision"] > 0.5
    names = {f"segmentation.{kind}" for kind in ("parquet", "json", "md", "png", "safetensors")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert pq.read_table(tmp_path / "out" / "segmentation.parquet").to_pylist() == found["rows"]


def test_segment_by_text_on_a_folder_of_masks(run, aligner, tmp_path):
    scenes = unweave.open_images("pocket/evaluation", limit=3)
    for picture in scenes:
        for kind, image in (("images", picture.read()), ("masks", Image.fromarray(picture.mask()))):
            place = tmp_path / "set" / kind / str(picture.fields["label"])
            place.mkdir(parents=True, exist_ok=True)
            image.save(place / f"{picture.row}.png")
    common = ("segment", "pocket/dino", "masks:set", "--space", aligner, "-o", "out")
    found = said(run(*common, "--method", "components", "--method", "raw attention", "--no-figure", "--json"))
    assert found["space"] == "pocket/clip" and [row["images"] for row in found["rows"]] == [3, 3]
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
    (tmp_path / "file").write_text("")
    refused(segment(output="file"), "cannot be written")
    assert not (tmp_path / "out").exists()
