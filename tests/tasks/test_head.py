"""Heads: the model's own classifier, words, and linear probes, each against the long way round."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from unweave.tasks.head import Head, classifier, probe, zero_shot

import unweave
from stores import SMALL, draw, model, space_of, stored
from unweave.alignment import Aligner
from unweave.components import Component
from unweave.errors import StoreError
from unweave.extraction import extract

NAMES = tuple(Component("blocks.0.attn", "head", 0, head) for head in range(3))


def made_up(place, images=60, classes=3):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(images, len(NAMES), 6, generator=generator)
    labels = [f"class_{number % classes}" for number in range(images)]
    values[:, 0, :classes] += 3 * torch.eye(classes)[torch.arange(images) % classes]
    return stored(place, values, NAMES, fields={"label": labels, "some": [None, *labels[1:]]}), values


def test_the_classifier_says_what_the_model_says(tmp_path):
    store = extract(model(), draw(tmp_path / "images", 9), tmp_path / "store", SMALL)
    head = classifier(store, model=model())
    found = head.predicted(store.representation())
    assert np.array_equal(found, store.logits().argmax(1).numpy())
    assert head.classes == ("0", "1", "2")
    assert classifier(store, model=model(), classes=["a", "b", "c"]).classes == ("a", "b", "c")
    with pytest.raises(StoreError, match="2 names are given for 3"):
        classifier(store, model=model(), classes=["a", "b"])


def test_a_model_without_a_classifier(tmp_path):
    with pytest.raises(StoreError, match="no classifier"):
        classifier(made_up(tmp_path)[0])


@pytest.mark.parametrize("classes", [2, 3])
def test_a_probe_is_scikit_learns(tmp_path, classes):
    store, _ = made_up(tmp_path, classes=classes)
    rows = np.arange(40)
    head = probe(store, "label", rows, softness=0.5)
    z = store.representation().numpy()
    own = make_pipeline(StandardScaler(), LogisticRegression(C=0.5, max_iter=1000)).fit(
        z[:40], store.field("label")[:40]
    )
    assert [head.classes[code] for code in head.predicted(torch.from_numpy(z))] == own.predict(z).tolist()
    if classes == 3:
        assert np.abs(head.logits(torch.from_numpy(z)).numpy() - own.decision_function(z)).max() < 1e-5


def test_a_probe_of_one_class_is_refused(tmp_path):
    store, _ = made_up(tmp_path)
    with pytest.raises(StoreError, match="two classes at least"):
        probe(store, "label", store.where("label", "class_0"))


def test_images_without_a_class_do_not_count(tmp_path):
    store, _ = made_up(tmp_path)
    head = probe(store, "some")
    assert head.codes(store, "some")[:2].tolist() == [-1, 1]


def test_zero_shot_is_the_nearest_phrase(tmp_path, monkeypatch):
    monkeypatch.setenv("UNWEAVE_CACHE", str(tmp_path / "cache"))
    space = space_of(5)
    maps = torch.randn(3, 6, 5)
    head = zero_shot(space, {"one": ("a", "b"), "two": ("c",)}, Aligner(maps, torch.zeros(5), NAMES, {}))
    sums = torch.randn(20, 5)
    first = torch.nn.functional.normalize(space.encode(["a", "b"]).mean(0), dim=0)
    expected = [int(sums[row] @ space.encode(["c"])[0] > sums[row] @ first) for row in range(20)]
    assert head.predicted(sums).tolist() == expected and head.classes == ("one", "two")


def test_classes_by_name_and_number(tmp_path):
    store, _ = made_up(tmp_path)
    head = Head("probe", (("class 0", "n1"), ("Class_1",), ("class 2", "x")), lambda sums: sums)
    assert head.codes(store, "label", slice(0, 4)).tolist() == [0, 1, 2, 0]
    numbers = stored(tmp_path / "n", torch.randn(3, 3, 6), NAMES, fields={"label": [2, 0, None]})
    assert head.codes(numbers, "label").tolist() == [2, 0, -1]
    for wrong in (["cat", "n1", "x"], [0, 1, 3]):
        other = stored(tmp_path / f"{wrong}", torch.randn(3, 3, 6), NAMES, fields={"label": wrong})
        with pytest.raises(StoreError, match="none of the 3 classes"):
            head.codes(other, "label")
    with pytest.raises(StoreError, match="no field"):
        head.codes(store, "colour")


def test_what_classes_are_called():
    from unweave.tasks.head import class_names

    from unweave.models import Model

    deit = unweave.load_model("pocket/deit")
    assert ("owl",) in class_names(deit, 40)
    tiny = Model.from_module(model().module, classifier="head", input_size=model().input_size)
    known = class_names(tiny, 1000)
    assert known[0] == ("tench", "Tinca tinca", "n01440764") and len(known) == 1000
    assert class_names(tiny, 3) == (("0",), ("1",), ("2",))
