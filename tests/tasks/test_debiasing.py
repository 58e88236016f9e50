"""Debiasing on contributions that were made up so that one component misleads; and groups that cannot be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stores import space_of, stored
from unweave.alignment import Aligner
from unweave.attribution import Scores, score
from unweave.components import Component
from unweave.contributions import Contributions
from unweave.errors import ArgumentError, DataError
from unweave.tasks.ablation import Accuracy
from unweave.tasks.checkpoints import _carried
from unweave.tasks.classifier import Classification
from unweave.tasks.debiasing import Debiasing, Ranking, Sides, candidates, debias, ranked
from unweave.tasks.groups import Groups, groups_of

WIDTH = 8
NAMES = (
    *(Component("blocks.0.attn", "head", 0, head) for head in range(5)),
    Component("blocks.0.attn", "bias", 0),
    Component("blocks.0.mlp", "mlp", 0),
)


def birds(place, images, biased, seed):
    """Component 1 writes the bird, faintly; 3 and 6 the background, loudly; the others noise."""
    rng = np.random.default_rng(seed)
    bird = rng.integers(2, size=images)
    background = np.where(rng.random(images) < (0.95 if biased else 0.5), bird, 1 - bird)
    generator = torch.Generator().manual_seed(seed)
    values = 0.1 * torch.randn(images, len(NAMES), WIDTH, generator=generator)
    signs = torch.from_numpy(np.stack([2 * bird - 1, 2 * background - 1], 1)).float()
    values[:, 1, 0] += signs[:, 0] + 0.6 * torch.randn(images, generator=generator)
    values[:, 3, 1] += 2 * signs[:, 1]
    values[:, 6, 2] += 2 * signs[:, 1]
    fields = {
        "label": [("land", "water")[value] for value in bird],
        "where": [("land", "water")[value] for value in background],
    }
    return stored(place, values, NAMES, ids=[f"{seed}-{image}" for image in range(images)], fields=fields)


@pytest.fixture
def sides(tmp_path):
    return Sides(*(birds(tmp_path / f"{seed}", 600, seed == 0, seed) for seed in range(3)))


def told(sides, *, most, order=None, **options):
    """Debiasing in the order that was made up, by a probe."""
    order = ORDER if order is None else order
    return debias(sides, "where", ranking=Ranking(order=order, most=most), **options)


PROBE = Classification("probe")


def scored(spurious, core):
    zeros = torch.zeros(len(NAMES), 2)
    values = torch.tensor([spurious, core]).T.contiguous()
    return Scores(NAMES, {"background": ("sea",), "bird": ("owl",)}, values, zeros, zeros, zeros, zeros, zeros, 9)


ORDER = ranked(scored([0.1, 0.2, 0.0, 0.9, 0.1, 1.0, 0.8], [0.1, 0.9, 0.0, 0.1, 0.0, 0.0, 0.1]), "background", "bird")


def test_the_ranking_is_by_the_difference_and_leaves_biases_out():
    assert ORDER == (3, 6, 4, 0, 2, 1)
    assert candidates(NAMES) == [0, 1, 2, 3, 4, 6]
    with pytest.raises(ArgumentError, match="no feature"):
        ranked(scored([0.0] * 7, [0.0] * 7), "background", "x")


def test_without_what_misleads_the_worst_group_is_told_better(sides):
    debiasing = told(sides, k=2, most=5, draws=4)
    before, after = debiasing.curve[0], debiasing.curve[2]
    assert after.worst > before.worst + 0.15 and after.average > before.average
    assert 2 <= debiasing.chosen <= 5  # chosen without groups; what comes after the two is noise
    assert [str(component) for component in debiasing.ablated] == ["blocks.0.attn.head.3", "blocks.0.mlp"]
    assert set(debiasing.best_order[:2]) == {3, 6} and debiasing.best[2].worst == pytest.approx(after.worst)
    assert np.mean([curve[2].worst for curve in debiasing.random]) < after.worst
    assert told(sides, k=None, most=5, draws=1).k == debiasing.chosen


def test_accuracies_by_group_are_those_of_the_written_out_sums(sides):
    fitted, _, test = sides.views
    debiasing = told(sides, most=3, k=1, draws=1)
    classifier = PROBE.fitted(fitted)
    values = test.values().double().numpy()
    means = fitted.values().double().mean(0).numpy()
    labels, where = (np.array(test.field(name)) for name in ("label", "where"))
    for k in range(4):
        changed = values.copy()
        for component in ORDER[:k]:
            changed[:, component] = means[component]
        codes = classifier.logits(torch.from_numpy(changed.sum(1)).float()).argmax(1).numpy()
        right = np.array(classifier.classes)[codes] == labels
        for bird in ("land", "water"):
            for place in ("land", "water"):
                members = (labels == bird) & (where == place)
                accuracy = debiasing.curve[k].accuracies[f"{bird}, {place}"]
                assert (accuracy.right, accuracy.images) == (right[members].sum(), members.sum())


def in_memory(store):
    values, names = store.view().values(), ("label", "where")
    fields = {name: store.field(name) for name in names}
    return Contributions(values, NAMES, tuple(store.ids), values.sum(1), torch.zeros(len(values)), fields=fields)


def test_batches_in_memory_are_debiased_as_stores(sides):
    memory = Sides(*(in_memory(side) for side in (sides.fitted, sides.held_out, sides.test)))
    ours, theirs = (told(each, k=2, most=3, draws=2).table().drop(["model"]) for each in (memory, sides))
    assert ours.equals(theirs)


def test_the_sides_of_one_store(tmp_path):
    values = torch.randn(9, len(NAMES), WIDTH)
    store = stored(tmp_path / "s", values, NAMES, fields={"split": ["train", "val", "test"] * 3, "half": ["a"] * 9})
    for number, view in enumerate(Sides.of(store).views):
        assert torch.equal(view.values(), values[number::3])
    assert [len(view) for view in Sides.of(store, ("test", "test", "val")).views] == [3, 3, 3]
    with pytest.raises(ArgumentError, match="three sides, not 2"):
        Sides.of(store, ("train", "test"))
    with pytest.raises(DataError, match="No image has the half 'train'"):
        Sides.of(store, field="half")
    with pytest.raises(DataError, match="no field 'side'"):
        Sides.of(store, field="side")


def test_the_ranking_is_by_words_on_held_out_images(sides, tmp_path, monkeypatch):
    monkeypatch.setenv("UNWEAVE_CACHE", str(tmp_path / "cache"))
    space = space_of(5)
    maps = torch.randn(len(NAMES), WIDTH, 5, generator=torch.Generator().manual_seed(1))
    identity = {"model": "tiny", "weights_hash": "hash", "preprocessing": {"size": 1}, "level": "head"}
    identity |= {"space": "tiny", "space_hash": space.weights_hash, "space_loading": {}}
    aligner = Aligner(maps, torch.zeros(5), NAMES, identity)
    monkeypatch.setattr("unweave.alignment.spaces.text_space", lambda name, **options: space)
    features = {"background": ("sea", "forest"), "bird": ("owl",), "other": ("cat",)}
    classification = Classification("probe", space=aligner)
    for published, side in ((False, sides.held_out), (True, sides.test)):
        ranking = Ranking(features=features, published=published)
        scores = score(side, features, space=aligner, samples=20)
        assert ranking.made(sides, classification, 0) == ranked(scores, "background", "bird")
    assert debias(sides, "where", classification=classification, ranking=ranking, k=1, draws=1).protocol == "published"
    with pytest.raises(ArgumentError, match="Words need a text space"):
        debias(sides, "where")


def test_worst_and_average():
    groups = Groups({"a": Accuracy(9, 10), "b": Accuracy(1, 100)})
    assert groups.worst == 0.01 and groups.worst_group == "b" and groups.average == pytest.approx(0.455)


def test_the_table(sides):
    debiasing = told(sides, k=2, most=3, draws=2)
    rows = debiasing.table().to_pylist()
    assert len(rows) == 4 * (1 + 2 + 1)
    assert {row["components"] for row in rows} == {"ranked", "random", "greedy with groups"}
    assert rows[0]["worst_low"] < rows[0]["worst"] < rows[0]["worst_high"]
    assert rows[0]["worst"] == min(rows[0][f"group {name}"] for name in debiasing.curve[0].accuracies)


def test_what_costs_more_than_it_brings_is_not_written():
    before = np.array([True] * 8 + [False] * 2)
    better = np.array([True] * 7 + [False] + [True] * 2)  # one lost, two won
    other = np.array([True] * 8 + [True, False])
    worse = np.array([True] * 5 + [False] * 3 + [True] * 2)
    assert _carried({1: other, 2: better, 3: worse}, before) == 2
    assert _carried({1: other, 3: worse}, before) == 1
    assert _carried({3: worse}, before) is None


def test_the_same_seed_draws_the_same_components(sides):
    first, second, other = (told(sides, most=20, k=2, draws=3, seed=seed).table() for seed in (4, 4, 5))
    assert first.equals(second) and not first.equals(other)


@pytest.mark.parametrize(("k", "what"), [(7, "from 0 to 6, got 7"), (-1, "from 0 to 6, got -1")])
def test_numbers_that_cannot_be(sides, k, what):
    with pytest.raises(ArgumentError, match=what):
        told(sides, most=20, k=k)
    with pytest.raises(ArgumentError, match="draws must be at least 1, got 0"):
        told(sides, most=20, k=1, draws=0)


def test_components_that_there_are_not(sides):
    with pytest.raises(ArgumentError, match="no component 7"):
        told(sides, order=(3, 7), k=2, most=2, draws=1)


def test_progress_is_told_up_to_the_end(sides):
    steps = []
    told(sides, k=2, most=3, draws=2, on_progress=lambda *what: steps.append(what))
    assert [done for _, done, _ in steps] == list(range(1, len(steps) + 1))
    assert {(what, count) for what, _, count in steps} == {("ablating components", len(steps))}


def test_a_debiasing_is_saved_and_read(sides, tmp_path):
    debiasing = told(sides, k=2, most=3, draws=2)
    assert "figure" in debiasing.save(tmp_path / "out")
    again = Debiasing.load(tmp_path / "out")
    assert again.table().equals(debiasing.table()) and again.ablated == debiasing.ablated
    assert again.card == debiasing.card and again.card["attribute"] == "where"
    assert "worst group" in repr(debiasing) and "ablated: blocks.0.attn.head.3, blocks.0.mlp" in repr(debiasing)
    assert again.with_checkpoint({"k": 1}).card["checkpoint"] == {"k": 1}
    assert again.classification == debiasing.classification and again.classification.by == "probe"


def test_groups_that_cannot_be(tmp_path, sides):
    fitted = sides.fitted.view()
    classifier = PROBE.fitted(fitted)

    def side(name, labels, where):
        count = len(labels)
        fields = {"label": labels, "where": where}
        return stored(tmp_path / name, torch.randn(count, len(NAMES), WIDTH), NAMES, fields=fields).view()

    with pytest.raises(DataError, match="group 'land, water' has no images"):
        groups_of(side("a", ["land", "water", "water"], ["land", "land", "water"]), classifier, "label", "where")
    with pytest.raises(DataError, match="1 groups"):
        groups_of(side("b", ["land"], ["land"]), classifier, "label", "where")
    with pytest.raises(DataError, match="0 groups"):
        groups_of(fitted.rows([]), classifier, "label", "where")
    with pytest.raises(DataError, match="in no group"):
        groups_of(side("c", ["land", "water"], ["land", None]), classifier, "label", "where")
    with pytest.raises(DataError, match="no field 'place'"):
        groups_of(fitted, classifier, "label", "place")
    other = stored(
        tmp_path / "d",
        torch.randn(4, 2, WIDTH),
        NAMES[:2],
        fields={"label": ["land", "water"] * 2, "where": ["land", "land", "water", "water"]},
    )
    with pytest.raises(DataError, match="different components"):
        Sides(sides.fitted, other, sides.test)
    for number, what in enumerate(("fit to", "rank by", "report on")):
        views = [*sides.views]
        views[number] = views[number].rows([])
        with pytest.raises(DataError, match=f"no images to {what}"):
            Sides(*views)
