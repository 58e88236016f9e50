"""`unweave align`, `unweave score` and `unweave label`, on a small network that is shipped."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
from PIL import Image

import unweave
from stores import remembering
from unweave.alignment import Recipe, align, solvers

pytestmark = pytest.mark.xdist_group("store verbs")

SPACE = ("--space", "pocket/clip")
QUICK = (*SPACE, "--rounds", 0, "--random-images", 0)


@pytest.fixture(scope="module", autouse=True)
def once(tmp_path_factory):
    with remembering(tmp_path_factory.mktemp("cache")):
        yield


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    for name in ("deit", "clip"):
        unweave.extract(f"pocket/{name}", unweave.open_images("pocket/evaluation", limit=80), folder / name)
    return folder


@pytest.fixture(scope="module")
def aligner(stores):
    space = unweave.text_space("pocket/clip")
    found = align(unweave.open_store(stores / "deit"), space, Recipe(rounds=0, random_images=0))
    found.save(stores / "aligner")
    return stores / "aligner"


def size(path):
    with Image.open(path) as image:
        return image.size


def said(result, status=0):
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def test_align_says_how_good_it_is_and_beside_what(run, stores, tmp_path):
    arguments = ("align", stores / "deit", *SPACE, "--rounds", 1, "-o", "a", "--random-images", 80)
    found = said(run(*arguments, "--classes", "colour", "--classes", "label", "--json"))
    measured = found["measured"]
    assert found["model"] == "pocket/deit" and found["space"] == "pocket/clip" and found["level"] == "head"
    assert set(measured["controls"]) == {"one map for all", "shuffled targets", "the mean target", "random model"}
    random = measured["controls"]["random model"]
    assert random["images"] >= 8 and random["random weights"] > random["this model"]
    assert measured["controls"]["shuffled targets"] > measured["objective"]["held out"]
    assert measured["objective"]["held out"] < measured["controls"]["one map for all"]
    assert measured["zero-shot"]["colour"]["classes"] >= 9
    assert 0 < measured["zero-shot"]["colour"]["aligned"] <= measured["zero-shot"]["colour"]["space"] <= 1
    assert len(measured["defects"]) == 44 and measured["cosine percentiles"]["50"] > 0.5
    kinds = {path.suffix for path in (tmp_path / "a").iterdir() if path.stem == "aligner"}
    assert kinds == {".json", ".safetensors", ".parquet", ".md", ".png"}
    result = run(*arguments)
    assert result.exit_code == 0 and "control: one map for all" in result.stdout and "44 maps" in result.stdout
    assert "zero-shot label, " in result.stdout and "descent 1" in result.stderr


def test_an_interrupted_alignment_goes_on(run, stores, tmp_path, monkeypatch):
    swept, calls = solvers._sweep, []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        swept(*arguments)

    monkeypatch.setattr(solvers, "_sweep", stopping)
    result = run("align", stores / "deit", *QUICK, "-o", "a")
    assert result.exit_code == 130 and "goes on from there" in result.stderr
    assert [path.name for path in (tmp_path / "a").iterdir()] == [".unfinished.safetensors"]
    result = run("align", stores / "deit", *QUICK, "-o", "a")
    assert result.exit_code == 0 and "blocks 1" not in result.stderr and "blocks 2" in result.stderr
    assert len(calls) == 3 + 2  # the control with shuffled targets sweeps, too
    assert not (tmp_path / "a/.unfinished.safetensors").exists()


def test_a_clip_in_its_own_space_needs_no_alignment(run, stores):
    found = said(run("align", stores / "clip", *SPACE, "-o", "a", "--json"))["measured"]
    assert found["identity"] and found["zero-shot"]["label"]["aligned"] == found["zero-shot"]["label"]["space"]
    result = run("align", stores / "clip", *SPACE, "-o", "a")
    assert "nothing had to be aligned" in result.stdout
    by_aligner = said(run("score", stores / "clip", "--space", "a", "-o", "s", "--no-figure", "--json"))
    without = said(run("score", stores / "clip", *SPACE, "-o", "s", "--no-figure", "--json"))
    assert [row["score"] for row in by_aligner["rows"]] == [row["score"] for row in without["rows"]]


def test_score_writes_tables_and_a_figure(run, stores, aligner, tmp_path):
    arguments = ("score", stores / "deit", "--space", aligner, "-o", "out", "--samples", 20)
    found = said(run(*arguments, "--json"))
    assert set(found["features"]) == {"colour", "pattern", "location", "category"} == set(found["above_chance"])
    assert found["model"] == "pocket/deit" and found["space"] == "pocket/clip" and found["images"] == 80
    rows = pq.read_table(tmp_path / "out/scores.parquet").to_pylist()
    assert rows == found["rows"]
    assert len(rows) == 4 * 44
    lines = (tmp_path / "out/scores.md").read_text().splitlines()
    assert len(lines) == 2 + len(rows) and lines[0].startswith("| component | kind")
    assert size(tmp_path / "out/scores.png")[0] > 500
    result = run(*arguments, "--feature", "colour", "--phrase", "an owl")
    assert "colour: " in result.stdout and "an owl: " in result.stdout and "location: " not in result.stdout


def test_score_features_of_ones_own(run, stores, aligner, tmp_path):
    (tmp_path / "f.toml").write_text('[night]\nphrases = ["something black", "something blue"]\n')
    arguments = ("score", stores / "deit", "--space", aligner, "-o", "out", "--no-figure", "--samples", 20)
    found = said(run(*arguments, "--features", "f.toml", "--each", "--json"))
    assert list(found["features"]) == ["night", "something black", "something blue"]
    result = run(*arguments, "--features", "f.toml", "--feature", "day")
    assert result.exit_code == 2 and "no feature 'day'" in result.stderr and "night" in result.stderr


def test_label_writes_tables_and_a_figure(run, stores, aligner, tmp_path):
    found = said(run("label", stores / "deit", "--space", aligner, "-o", "out", "--phrases", 2, "--top", 3, "--json"))
    assert found["vocabulary"] == "shipped" and found["phrases"] > 90
    rows = pq.read_table(tmp_path / "out/names.parquet").to_pylist()
    assert rows == found["rows"] and {row["rank"] for row in rows} == {
        None,
        1,
        2,
    }  # the embedding of a class token writes nothing
    assert size(tmp_path / "out/names.png")[1] > 400
    (tmp_path / "v.txt").write_text("# mine\na bird\nan owl\n")
    result = run("label", stores / "deit", "--space", aligner, "-o", "out", "--vocabulary", "v.txt", "--top", 1)
    assert result.exit_code == 0 and "a bird (" in result.stdout and "an owl (" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("align", "{deit}", "--space", "timm/vit_tiny_patch16_224", "-o", "a"), "no text encoder"),
        (("align", "{deit}", "--space", "pocket/dino", "-o", "a"), "no text tower"),
        (("align", "nowhere", *SPACE, "-o", "a"), "no store here"),
        (("align", "{deit}", *SPACE, "-o", "a", "--held-out", "0.999"), "too few on one side"),
        (("align", "{deit}", *SPACE, "-o", "a", "--level", "token"), "no level"),
        (("score", "{deit}", "-o", "a"), "Words need a text space"),
        (("score", "{deit}", "-o", "a", *SPACE), "not the image encoder"),
        (("score", "{deit}", "-o", "a", "--space", "nowhere/aligner"), "no text encoder"),
        (("score", "{clip}", "-o", "a", *SPACE, "--features", "no.toml"), "cannot be read"),
        (("score", "{clip}", "-o", "a", *SPACE, "--phrase", "a hamburger"), "no word 'hamburger'"),
        (("score", "{clip}", "-o", "a", *SPACE, "--where", "label=hamburger"), "No image has the label"),
        (("label", "{clip}", "-o", "a", *SPACE, "--vocabulary", "no.txt"), "cannot be read"),
        (("label", "{clip}", "-o", "a", *SPACE, "--where", "x=1"), "no field"),
    ],
)
def test_bad_input_is_an_error_in_words(run, stores, arguments, what):
    result = run(*(str(own).format(deit=stores / "deit", clip=stores / "clip") for own in arguments))
    assert result.exit_code == 2 and what in result.stderr, result.output
    assert "Traceback" not in result.stderr


def test_an_aligner_of_another_model_is_refused(run, stores, aligner):
    result = run("score", stores / "clip", "--space", aligner, "-o", "a")
    assert result.exit_code == 2 and "of another model" in result.stderr and "field `model`" in result.stderr


def test_a_place_that_cannot_be_written(run, stores, aligner, tmp_path):
    (tmp_path / "file").touch()
    for verb in ("score", "label"):
        result = run(verb, stores / "deit", "--space", aligner, "-o", "file/out", "--no-figure")
        assert result.exit_code == 2 and "cannot be written" in result.stderr
    result = run("align", stores / "deit", *QUICK, "-o", "file/out")
    assert result.exit_code == 2 and "cannot be" in result.stderr
