"""`unweave search`, on a small network that is shipped."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
from PIL import Image

import unweave
from stores import remembered
from unweave.alignment import Recipe, align
from unweave.extraction import extractor, job

pytestmark = pytest.mark.xdist_group("store verbs")


@pytest.fixture(scope="module", autouse=True)
def plans_are_made_once(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNWEAVE_CACHE", str(tmp_path_factory.mktemp("cache")))
        for module in (job, extractor):
            patch.setattr(module, "plans_of", remembered)
        yield


@pytest.fixture(scope="module")
def stores(tmp_path_factory, plans_are_made_once):
    folder = tmp_path_factory.mktemp("search")
    unweave.extract("pocket/clip", unweave.open_images("pocket/evaluation", limit=40), folder / "clip")
    store = unweave.extract("pocket/deit", unweave.open_images("pocket/evaluation", limit=200), folder / "deit")
    align(store, unweave.text_space("pocket/clip"), Recipe(rounds=0, random_images=0)).save(folder / "aligner")
    Image.effect_noise((64, 64), 60).convert("RGB").save(folder / "new.png")
    (folder / "broken.png").write_bytes((folder / "new.png").read_bytes()[:300])
    return folder


@pytest.fixture
def asked(stores, run):
    def ask(*arguments, store="deit"):
        options = ("--space", stores / "aligner", "-o", "out", "--samples", 20)
        places = {name: stores / name for name in ("new.png", "broken.png", "clip", "deit")}
        return run("search", stores / store, *(places.get(one, one) for one in arguments), *options)

    return ask


def said(result):
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_by_text(asked, tmp_path):
    found = said(asked("--text", "something red", "--feature", "colour", "--count", 5, "--json"))
    assert found["text"] == "something red" and found["images"] == 200 and found["centred"]
    assert [row["feature"] for row in found["rows"]] == ["colour"] * 5 + [None] * 5
    one = found["features"]["colour"]
    assert one["by"] == "score" and one["rule"] == "interval"
    assert len(one["components"]) == found["rows"][0]["components"]
    assert pq.read_table(tmp_path / "out/search.parquet").to_pylist() == found["rows"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"search.{suffix}" for suffix in ("json", "md", "parquet", "png", "safetensors")
    ]
    colours = dict(zip(*(unweave.open_store(found["source"]).field(name) for name in ("id", "colour")), strict=True))
    assert sum(colours[row["id"]] == "red" for row in found["rows"][:5]) >= 4


def test_by_an_image_of_the_store(asked, stores):
    ids = unweave.open_store(stores / "deit").ids
    arguments = ("--image", ids[3], "--feature", "colour", "--feature", "location", "--count", 3)
    found = said(asked(*arguments, "--no-figure", "--json"))
    assert [row["feature"] for row in found["rows"]] == ["colour"] * 3 + ["location"] * 3 + [None] * 3
    assert ids[3] not in {row["id"] for row in found["rows"]} and "figure" not in found["files"]
    assert {own["by"] for own in found["features"].values()} == {"margin"}
    result = asked(*arguments)
    assert result.exit_code == 0 and "location: " in result.stdout and "whole: all components" in result.stdout


def test_by_a_new_image(asked):
    found = said(asked("--image", "new.png", "--feature", "location", "-k", 3, "--uncentred", "--json"))
    assert found["image"].endswith("new.png") and not found["centred"] and found["rows"][0]["components"] == 3
    assert "figure" in found["files"]


def test_only_some_images_are_searched(asked, stores):
    store = unweave.open_store(stores / "deit")
    condition = ("--where", "location=sea")
    found = said(asked("--text", "a bird", "--feature", "category", "-k", 9, "--count", 99, *condition, "--json"))
    assert {row["id"] for row in found["rows"]} == set(store.view().where(location="sea").ids)


def test_components_can_be_chosen_elsewhere_and_by_what_retrieves_best(asked):
    arguments = ("--text", "something at sea", "--feature", "location", "--no-figure", "--json")
    found = said(asked(*arguments, "--scored-on", "deit", "--best", "location=location"))
    one = found["features"]["location"]
    assert one["rule"] == "best"
    assert 1 <= len(one["components"]) < 40


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ((), "one of `text` and `image`"),
        (("--text", "a bird", "--image", "x"), "one of `text` and `image`"),
        (("--text", "a hamburger"), "no word 'hamburger'"),
        (("--image", "nowhere.png"), "neither among the contributions nor as a file"),
        (("--image", "broken.png"), "cannot be decoded"),
        (("--text", "a bird", "-k", 99), "99 components cannot be chosen"),
        (("--text", "a bird", "--feature", "smell"), "no feature 'smell'"),
        (("--text", "a bird", "--best", "colour"), "NAME=VALUE"),
        (("--text", "a bird", "--best", "location=location"), "No components are chosen for 'location'"),
        (("--text", "a bird", "--best", "colour=smell"), "no field 'smell'"),
        (("--text", "a bird", "--where", "id=nobody"), "No image has the id"),
        (("--text", "a bird", "--scored-on", "clip"), "of another model"),
    ],
)
def test_bad_input_is_an_error_in_words(asked, arguments, what):
    result = asked("--feature", "colour", *arguments)
    assert result.exit_code == 2 and what in result.stderr, result.output
    assert "Traceback" not in result.stderr


def test_one_image_is_too_few(asked, stores):
    first = unweave.open_store(stores / "deit").ids[0]
    for probe in (("--text", "a bird"), ("--image", first)):
        result = asked(*probe, "--feature", "colour", "-k", 2, "--where", f"id={first}", "--scored-on", "deit")
        assert result.exit_code == 2 and "one image only" in result.stderr


def test_a_feature_without_components_above_chance(asked, tmp_path):
    (tmp_path / "f.toml").write_text('[a]\nphrases = ["something red"]\n[b]\nphrases = ["something red"]\n')
    result = asked("--image", "new.png", "--feature", "a", "--features", "f.toml")
    assert result.exit_code == 2 and "each scores higher for another feature" in result.stderr


def test_an_aligner_of_another_model_and_none_at_all(asked, run, stores):
    result = asked("--text", "a bird", "--feature", "colour", store="clip")
    assert result.exit_code == 2 and "of another model" in result.stderr
    result = run("search", stores / "deit", "--text", "a bird", "--feature", "colour", "-o", "out")
    assert result.exit_code == 2 and "Words need a text space" in result.stderr and "aligner" in result.stderr


def test_a_place_that_cannot_be_written(run, stores, tmp_path):
    (tmp_path / "file").touch()
    arguments = ("--text", "a bird", "--feature", "colour", "-k", 2, "--space", stores / "aligner", "--samples", 20)
    result = run("search", stores / "deit", *arguments, "-o", "file/out")
    assert result.exit_code == 2 and "cannot be written" in result.stderr
