"""Results stand by themselves: saved and loaded they are equal, and their code makes them again, both ways."""

from __future__ import annotations

import dataclasses
import shlex

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from typer.testing import CliRunner

import unweave
from stores import remembering
from unweave.cli import app
from unweave.errors import StoreError
from unweave.results import Result

pytestmark = pytest.mark.xdist_group("store verbs")


@pytest.fixture(scope="module", autouse=True)
def once(tmp_path_factory):
    with remembering(tmp_path_factory.mktemp("cache")):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    scenes = unweave.extract("pocket/deit", unweave.open_images("pocket/evaluation", limit=80), folder / "scenes")
    for split in ("train", "validation", "test"):
        unweave.extract("pocket/deit", f"pocket/birds/0/{split}/60", folder / split)
    unweave.align(scenes, "pocket/clip", unweave.Recipe(rounds=0, random_images=0)).save(folder / "aligner")
    return folder


def align(folder):
    return unweave.align(f"{folder}/scenes", "pocket/clip", unweave.Recipe(rounds=1, random_images=0))


def score(folder):
    space = f"{folder}/aligner"
    return unweave.score(f"{folder}/scenes", ["colour", "location"], space=space, samples=20)


def label(folder):
    view = unweave.open_store(f"{folder}/scenes").view().where("style=noto")
    return unweave.label(view, space=f"{folder}/aligner", phrases=2, top=2)


def ablate(folder):
    return unweave.ablate(
        f"{folder}/scenes", "first", classification=unweave.Classification("probe", "category"), to="zero"
    )


def search(folder):
    choice = unweave.Choice(("colour",), k=3, samples=20)
    return unweave.search(f"{folder}/scenes", text="something red", choice=choice, space=f"{folder}/aligner", count=4)


def search_by_image(folder):
    return unweave.search(f"{folder}/scenes", image="evaluation/000003", count=3)


def heatmap(folder):
    images = unweave.open_images("pocket/evaluation", limit=2)
    return unweave.heatmap("pocket/deit", images, texts=["a pig", "snow"], space=f"{folder}/aligner")


def segment(folder):
    images = unweave.open_images("pocket/evaluation", limit=4)
    return unweave.segment("pocket/deit", images, methods=["components", "rollout"], shown=1)


def explain(folder):
    return unweave.explain("pocket/swin", level="layer")


def debias(folder):
    sides = unweave.Sides(*(f"{folder}/{split}" for split in ("train", "validation", "test")))
    classification = unweave.Classification("probe", space=f"{folder}/aligner")
    ranking = unweave.Ranking(most=3)
    return unweave.debias(sides, "background", classification=classification, ranking=ranking, k=2, draws=1)


def score_of_some(folder):
    view = unweave.open_store(f"{folder}/scenes").view().where(style="noto").rows(slice(30)).select(["last:2"])
    return unweave.score(view, ["colour"], space=f"{folder}/aligner", samples=20)


def score_of_a_side(folder):
    store = unweave.open_store(f"{folder}/scenes")
    view, words = unweave.aligned(store.view().split(0.4, 3)[1].select([9, 12]), f"{folder}/aligner")
    return unweave.score(view, ["colour"], space=words, samples=20)


def ablate_with_others(folder):
    whole = unweave.open_store(f"{folder}/scenes").view()
    fitted = whole.where(location="sea")
    probe = unweave.Classification("probe", "category")
    return unweave.ablate(whole.without(fitted), ["last:1"], fitted=fitted, classification=probe)


MADE = (align, score, label, ablate, search, search_by_image, heatmap, segment, explain, debias)
MADE += (score_of_some, score_of_a_side, ablate_with_others)


@pytest.fixture(scope="module", params=MADE, ids=lambda make: make.__name__)
def result(request, folder):
    return request.param(folder)


def alike(first, second):
    """Whether two values are equal, however they are nested."""
    if isinstance(first, (torch.Tensor, np.ndarray)):
        return type(first) is type(second) and np.array_equal(np.asarray(first), np.asarray(second), equal_nan=True)
    if dataclasses.is_dataclass(first):
        return type(first) is type(second) and all(
            alike(getattr(first, part.name), getattr(second, part.name)) for part in dataclasses.fields(first)
        )
    if isinstance(first, dict):
        return list(first) == list(second) and all(alike(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(alike, first, second))
    return first == second or (first != first and second != second)


def rows_of(result):
    """The table, without how long something took."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in result.table().to_pylist()]


def test_a_loaded_result_equals_the_saved_one(result, tmp_path):
    files = result.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.rpartition("/")[2] for path in files.values()}
    loaded = type(result).load(tmp_path)
    for part in dataclasses.fields(result):
        assert alike(getattr(loaded, part.name), getattr(result, part.name)), part.name
    assert alike(rows_of(loaded), rows_of(result)) and repr(loaded) == repr(result)
    assert isinstance(loaded.figure(), Figure)


def test_it_shows_itself(result):
    assert isinstance(result, Result) and len(repr(result)) > 100 and "object at 0x" not in repr(result)
    page = result._repr_html_()
    assert page.startswith("<pre") and "object at 0x" not in page
    assert result.card["model" if "model" in result.card else "call"] and "unweave" in result.card["versions"]


def test_its_python_makes_it_again(result):
    names = {}
    exec(result.code(), names)
    assert alike(rows_of(names["result"]), rows_of(result))


def test_its_command_makes_it_again(result, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if type(result) is unweave.Debiasing:
        assert result.code().endswith("# no command line makes it: No option says `most`.\n")
        return
    command = shlex.split(result.code().rpartition("# on the command line: unweave ")[2])
    explains = command[0] == "explain"
    ran = CliRunner().invoke(app, [*command, *(["--json"] if explains else ["-o", "out", "--no-figure"])])
    assert ran.exit_code == 0, ran.output
    if not explains:
        again = type(result).load(tmp_path / "out")
        assert alike(rows_of(again), rows_of(result))
        # What the command line made says how to make it, too.
        assert shlex.split(again.code().rpartition("# on the command line: unweave ")[2])[:2] == command[:2]


def test_another_kind_of_result_is_refused(result, tmp_path):
    result.save(tmp_path, figure=False)
    other = unweave.Names if type(result) is not unweave.Names else unweave.Scores
    with pytest.raises(StoreError, match="a file is missing"):
        other.load(tmp_path)
    (tmp_path / f"{result.name}.json").write_text("{}")
    with pytest.raises(unweave.errors.UnweaveError, match="cannot be read"):
        type(result).load(tmp_path)
