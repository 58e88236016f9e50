"""Debiasing on contributions that were made up so that one component misleads; and groups that cannot be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from unweave.tasks.debias import Accuracy, Groups, Side, _carried, candidates, debias, groups_of, ranked
from unweave.tasks.head import probe

from stores import stored
from unweave.attribution.scores import Attribution
from unweave.components import Component
from unweave.errors import ArgumentError, StoreError

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
        "label": [("land", "water")[own] for own in bird],
        "where": [("land", "water")[own] for own in background],
    }
    return Side(stored(place, values, NAMES, fields=fields))


@pytest.fixture
def sides(tmp_path):
    return [birds(tmp_path / f"{seed}", 600, seed == 0, seed) for seed in range(3)]


def attribution(spurious, core):
    zeros = torch.zeros(len(NAMES), 2)
    scores = torch.tensor([spurious, core]).T.contiguous()
    return Attribution(NAMES, {"background": ("sea",), "bird": ("owl",)}, scores, zeros, zeros, zeros, zeros, zeros, 9)


ORDER = ranked(
    attribution([0.1, 0.2, 0.0, 0.9, 0.1, 1.0, 0.8], [0.1, 0.9, 0.0, 0.1, 0.0, 0.0, 0.1]), "background", "bird"
)


def test_the_ranking_is_by_the_difference_and_leaves_biases_out():
    assert ORDER == (3, 6, 4, 0, 2, 1)
    assert candidates(NAMES) == [0, 1, 2, 3, 4, 6]
    with pytest.raises(ArgumentError, match="no feature"):
        ranked(attribution([0.0] * 7, [0.0] * 7), "background", "x")


def test_without_what_misleads_the_worst_group_is_told_better(sides):
    head = probe(sides[0].store, "label")
    found = debias(*sides, head, ORDER, "label", "where", k=2, most=5, draws=4)
    before, after = found.curve[0], found.curve[2]
    assert after.worst > before.worst + 0.15 and after.average > before.average
    assert 2 <= found.chosen <= 5  # chosen without groups; what comes after the two is noise
    assert [str(own) for own in found.ablated] == ["blocks.0.attn.head.3", "blocks.0.mlp"]
    assert set(found.best_order[:2]) == {3, 6} and found.best[2].worst == pytest.approx(after.worst)
    assert np.mean([curve[2].worst for curve in found.random]) < after.worst
    assert debias(*sides, head, ORDER, "label", "where", k=None, most=5, draws=1).k == found.chosen


def test_accuracies_by_group_are_those_of_the_written_out_sums(sides):
    fitted, _, test = sides
    head = probe(fitted.store, "label")
    found = debias(*sides, head, ORDER, "label", "where", most=3, k=1, draws=1)
    values = test.store.read().values.double().numpy()
    means = fitted.store.read().values.double().mean(0).numpy()
    labels, where = (np.array(test.store.field(name)) for name in ("label", "where"))
    for k in range(4):
        changed = values.copy()
        for component in ORDER[:k]:
            changed[:, component] = means[component]
        told = head.logits(torch.from_numpy(changed.sum(1)).float()).argmax(1).numpy()
        right = np.array(head.classes)[told] == labels
        for bird in ("land", "water"):
            for place in ("land", "water"):
                own = (labels == bird) & (where == place)
                accuracy = found.curve[k].accuracies[f"{bird}, {place}"]
                assert (accuracy.right, accuracy.images) == (right[own].sum(), own.sum())


def test_worst_and_average():
    groups = Groups({"a": Accuracy(9, 10), "b": Accuracy(1, 100)})
    assert groups.worst == 0.01 and groups.worst_group == "b" and groups.average == pytest.approx(0.455)


def test_the_table(sides):
    found = debias(*sides, probe(sides[0].store, "label"), ORDER, "label", "where", k=2, most=3, draws=2)
    rows = found.table().to_pylist()
    assert len(rows) == 4 * (1 + 2 + 1) and {row["components"] for row in rows} == {"ranked", "random", "groups known"}
    assert rows[0]["worst_low"] < rows[0]["worst"] < rows[0]["worst_high"]
    assert rows[0]["worst"] == min(rows[0][f"group {name}"] for name in found.curve[0].accuracies)


def test_what_costs_more_than_it_brings_is_not_written():
    before = np.array([True] * 8 + [False] * 2)
    better = np.array([True] * 7 + [False] + [True] * 2)  # one lost, two won
    other = np.array([True] * 8 + [True, False])
    worse = np.array([True] * 5 + [False] * 3 + [True] * 2)
    assert _carried({1: other, 2: better, 3: worse}, before) == 2
    assert _carried({1: other, 3: worse}, before) == 1
    assert _carried({3: worse}, before) is None


def test_the_same_seed_draws_the_same_components(sides):
    head = probe(sides[0].store, "label")
    one, two = (debias(*sides, head, ORDER, "label", "where", k=2, draws=3, seed=4).table() for _ in range(2))
    assert one.equals(two)


@pytest.mark.parametrize(("k", "what"), [(7, "7 components cannot"), (-1, "-1 components cannot")])
def test_numbers_that_cannot_be(sides, k, what):
    with pytest.raises(StoreError, match=what):
        debias(*sides, probe(sides[0].store, "label"), ORDER, "label", "where", k=k)


def test_groups_that_cannot_be(tmp_path, sides):
    head = probe(sides[0].store, "label")

    def side(name, labels, where):
        count = len(labels)
        return stored(
            tmp_path / name, torch.randn(count, len(NAMES), WIDTH), NAMES, fields={"label": labels, "where": where}
        )

    with pytest.raises(StoreError, match="group 'land, water' has no images"):
        groups_of(side("a", ["land", "water", "water"], ["land", "land", "water"]), head, "label", "where")
    with pytest.raises(StoreError, match="1 groups"):
        groups_of(side("b", ["land"], ["land"]), head, "label", "where")
    with pytest.raises(StoreError, match="0 groups"):
        groups_of(sides[0].store, head, "label", "where", [])
    with pytest.raises(StoreError, match="in no group"):
        groups_of(side("c", ["land", "water"], ["land", None]), head, "label", "where")
    with pytest.raises(StoreError, match="no field 'place'"):
        groups_of(sides[0].store, head, "label", "place")
    other = Side(
        stored(
            tmp_path / "d",
            torch.randn(4, 2, WIDTH),
            NAMES[:2],
            fields={"label": ["land", "water"] * 2, "where": ["land", "land", "water", "water"]},
        )
    )
    with pytest.raises(StoreError, match="different components"):
        debias(sides[0], other, sides[2], head, ORDER, "label", "where", k=1)
