"""Classifiers: the model's own classifier, words, and linear probes, each against the long way round."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import unweave
from stores import SMALL, draw, model, space_of, stored
from unweave.alignment import Aligner
from unweave.components import Component
from unweave.contributions import Contributions
from unweave.errors import ArgumentError, DataError, ModelError
from unweave.extraction import extract
from unweave.loading import Loading
from unweave.models import Model
from unweave.tasks import classifier as module
from unweave.tasks.classifier import (
    Classification,
    Classifier,
    class_names,
    model_classifier,
    model_of,
    probe,
    zero_shot,
)

NAMES = tuple(Component("blocks.0.attn", "head", 0, head) for head in range(3))


def made_up(place, images=60, classes=3):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(images, len(NAMES), 6, generator=generator)
    labels = [f"class_{number % classes}" for number in range(images)]
    values[:, 0, :classes] += 3 * torch.eye(classes)[torch.arange(images) % classes]
    return stored(place, values, NAMES, fields={"label": labels, "some": [None, *labels[1:]]}), values


def test_the_classifier_says_what_the_model_says(tmp_path):
    store = extract(model(), draw(tmp_path / "images", 9), tmp_path / "store", SMALL)
    classifier = model_classifier(store.view(), model=model())
    predicted = classifier.predicted(store.view().representation)
    assert np.array_equal(predicted, store.view().logits.argmax(1).numpy())
    assert classifier.classes == ("0", "1", "2")
    assert model_classifier(store.view(), model=model(), classes=["a", "b", "c"]).classes == ("a", "b", "c")
    with pytest.raises(ArgumentError, match="2 names are given for 3"):
        model_classifier(store.view(), model=model(), classes=["a", "b"])


def test_a_model_without_a_classifier(tmp_path):
    headless = Model.from_module(model().readout, input_size=model().input_size, id="tiny")
    view = stored(tmp_path / "s", torch.randn(3, 3, 8), NAMES, weights_hash=headless.weights_hash).view()
    with pytest.raises(ModelError, match="no classifier"):
        model_classifier(view, model=headless)


def test_the_model_of_contributions(tmp_path, monkeypatch):
    store, values = made_up(tmp_path / "s")
    with pytest.raises(ModelError, match="not those that the contributions were made with"):
        model_of(store.view(), model())
    same = stored(
        tmp_path / "t", values, NAMES, weights_hash=model().weights_hash, loading=Loading("tiny", seed=3)
    ).view()
    assert model_of(same, model()) is model()
    asked = []
    monkeypatch.setattr(module, "opened", lambda loading: asked.append(loading) or model())
    assert model_of(same) is model() and asked == [Loading("tiny", seed=3)]
    nameless = Contributions(values, NAMES, tuple(store.ids), values.sum(1), torch.zeros(60)).view()
    with pytest.raises(ModelError, match="do not say of which model"):
        model_of(nameless)
    assert model_of(nameless, model()) is model()


@pytest.mark.parametrize("classes", [2, 3])
def test_a_probe_is_scikit_learns(tmp_path, classes):
    view = made_up(tmp_path, classes=classes)[0].view()
    fitted = probe(view.rows(slice(0, 40)), "label", regularisation=0.5)
    z = view.representation.numpy()
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.5, max_iter=1000)).fit(
        z[:40], view.field("label")[:40]
    )
    assert [fitted.classes[code] for code in fitted.predicted(torch.from_numpy(z))] == theirs.predict(z).tolist()
    if classes == 3:
        assert np.abs(fitted.logits(torch.from_numpy(z)).numpy() - theirs.decision_function(z)).max() < 1e-5


def test_a_probe_of_one_class_is_refused(tmp_path):
    with pytest.raises(DataError, match="two classes at least"):
        probe(made_up(tmp_path)[0].view().where(label="class_0"), "label")


def test_images_without_a_class_do_not_count(tmp_path):
    view = made_up(tmp_path)[0].view()
    assert probe(view, "some").codes(view, "some")[:2].tolist() == [-1, 1]
    without, with_all = probe(view.rows(slice(1, None)), "some"), probe(view, "some")
    assert torch.equal(without.logits(view.representation), with_all.logits(view.representation))


def test_zero_shot_is_the_nearest_phrase(tmp_path, monkeypatch):
    monkeypatch.setenv("UNWEAVE_CACHE", str(tmp_path / "cache"))
    space = space_of(5)
    maps = torch.randn(3, 6, 5)
    classifier = zero_shot(space, {"one": ("a", "b"), "two": ("c",)}, Aligner(maps, torch.zeros(5), NAMES, {}))
    sums = torch.randn(20, 5)
    first = torch.nn.functional.normalize(space.encode(["a", "b"]).mean(0), dim=0)
    expected = [int(sums[row] @ space.encode(["c"])[0] > sums[row] @ first) for row in range(20)]
    assert classifier.predicted(sums).tolist() == expected and classifier.classes == ("one", "two")


def test_classes_by_name_and_number(tmp_path):
    view = made_up(tmp_path / "s")[0].view()
    classifier = Classifier("probe", (("class 0", "n1"), ("Class_1",), ("class 2", "x")), lambda sums: sums)
    assert classifier.codes(view.rows(slice(0, 4)), "label").tolist() == [0, 1, 2, 0]
    numbers = stored(tmp_path / "n", torch.randn(3, 3, 6), NAMES, fields={"label": [2, 0, None]})
    assert classifier.codes(numbers.view(), "label").tolist() == [2, 0, -1]
    for wrong in (["cat", "n1", "x"], [0, 1, 3]):
        other = stored(tmp_path / f"{wrong}", torch.randn(3, 3, 6), NAMES, fields={"label": wrong})
        with pytest.raises(DataError, match="none of the 3 classes"):
            classifier.codes(other.view(), "label")
    with pytest.raises(DataError, match="no field"):
        classifier.codes(view, "colour")


def words_of(space):
    identity = {"model": "tiny", "weights_hash": "hash", "preprocessing": {"size": 1}, "level": "head"}
    maps = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(3))
    identity |= {"space": "tiny", "space_hash": space.weights_hash, "space_loading": {}}
    return Aligner(maps, torch.ones(5), NAMES, identity)


def test_how_classes_are_told_is_said_once(tmp_path, monkeypatch):
    monkeypatch.setenv("UNWEAVE_CACHE", str(tmp_path / "cache"))
    view, space = made_up(tmp_path / "s")[0].view(), space_of(5)
    by_probe = Classification("probe", regularisation=0.5).fitted(view)
    assert by_probe.by == "probe" and by_probe.seen(view) is view
    z = view.representation
    assert torch.equal(by_probe.logits(z), probe(view, "label", regularisation=0.5).logits(z))
    aligner = words_of(space)
    monkeypatch.setattr("unweave.alignment.spaces.text_space", lambda name, **options: space)
    for classification, source in (
        (Classification("zero-shot", space=aligner), view),
        (Classification("zero-shot", space=space), view.through(aligner)),
        (Classification("zero-shot"), view.through(aligner)),
    ):
        classifier = classification.fitted(source.rows([0]))  # classes are those of the source, seen or not
        assert classifier.by == "zero-shot" and classifier.classes == ("class_0", "class_1", "class_2")
        assert torch.equal(classifier.seen(view).values(), view.through(aligner).values())
        expected = (
            torch.nn.functional.normalize(view.through(aligner).representation, dim=1)
            @ space.encode(["class 0", "class 1", "class 2"]).T
        )
        assert torch.allclose(classifier.logits(classifier.seen(view).representation), expected, atol=1e-5)
    said = Classification("zero-shot", space=aligner, phrases={"x": ("a", "b"), "y": ("c",)}).fitted(view)
    assert said.classes == ("x", "y")


def test_ways_to_tell_classes_that_there_are_not(tmp_path):
    with pytest.raises(ArgumentError, match="regularisation must be above 0"):
        Classification("probe", regularisation=0.0)
    with pytest.raises(ArgumentError, match="Words need a text space"):
        Classification("zero-shot").fitted(made_up(tmp_path)[0].view())


def test_what_classes_are_called():
    deit = unweave.load_model("pocket/deit")
    assert ("owl",) in class_names(deit, 40)
    tiny = Model.from_module(model().module, classifier="head", input_size=model().input_size)
    known = class_names(tiny, 1000)
    assert known[0] == ("tench", "Tinca tinca", "n01440764") and len(known) == 1000
    assert class_names(tiny, 3) == (("0",), ("1",), ("2",))
