"""Ablation against the sum written out, image by image; orders; and input that cannot be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from stores import space_of, stored
from unweave.alignment import Aligner
from unweave.attribution import score
from unweave.components import Component
from unweave.contributions import Contributions
from unweave.errors import ArgumentError, DataError
from unweave.tasks.ablation import (
    Ablation,
    Accuracy,
    Step,
    ablate,
    ablations_figure,
    change,
    layers,
    one_by_one,
    selections,
    sides,
)
from unweave.tasks.classifier import Classification, Classifier, zero_shot

WIDTH = 6
NAMES = (
    Component("embed", "embed"),
    *(Component(f"blocks.{layer}.attn", "head", layer, head) for layer in range(2) for head in range(2)),
    Component("blocks.1.mlp", "mlp", 1),
    Component("norm", "bias"),
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNWEAVE_CACHE", str(tmp_path / "cache"))


def made_up(place, images=80):
    values = torch.randn(images, len(NAMES), WIDTH, generator=torch.Generator().manual_seed(0))
    labels = [f"c{number % 3}" for number in range(images)]
    values[:, 2, :3] += 2 * torch.eye(3)[torch.arange(images) % 3]
    return stored(place, values, NAMES, fields={"label": labels}), values


class ByHand(Classification):
    """Classes are told by a classifier that is given."""

    def __init__(self, classifier, label="label", space=None):
        super().__init__("probe", label, space)
        object.__setattr__(self, "classifier", classifier)

    def fitted(self, view):
        return self.classifier


def linear(label="label"):
    weight = torch.eye(3, WIDTH)
    return ByHand(Classifier("probe", (("c0",), ("c1",), ("c2",)), lambda sums: sums @ weight.T), label)


def halves(source):
    """The images to measure on, and those to fit to."""
    return source.view().rows(np.arange(0, 80, 2)), source.view().rows(np.arange(1, 80, 2))


def naive(values, steps, rows, mean_rows, to, logits, maps=None, bias=None):
    """Each image, each step, the sum anew."""
    values = values.double().numpy()
    right, gone = [], set()
    average = values[mean_rows].mean(0)
    for step in [(), *[step.components for step in steps]]:
        gone |= set(step)
        count = 0
        for row in rows:
            total = np.zeros(values.shape[2] if maps is None else maps.shape[2])
            for component in range(len(NAMES)):
                part = values[row, component]
                if component in gone:
                    part = average[component] if to == "mean" else 0 * part
                total = total + (part if maps is None else part @ maps[component])
            count += int(np.argmax(logits(total if bias is None else total + bias)) == row % 3)
        right.append(count)
    return right


@pytest.mark.parametrize("to", ["mean", "zero"])
@pytest.mark.parametrize("last", [True, False])
def test_ablation_is_the_sum_without(tmp_path, to, last):
    store, values = made_up(tmp_path)
    steps = layers(NAMES, last=last)
    rows, others = np.arange(0, 80, 2), np.arange(1, 80, 2)
    measured, fitted = halves(store)
    ablation = ablate(measured, "last" if last else "first", fitted=fitted, classification=linear(), to=to)
    expected = naive(values, steps, rows, others, to, lambda total: total[:3])
    assert [accuracy.right for accuracy in ablation.accuracies] == expected and ablation.accuracies[0].images == 40
    assert ablation.steps == steps
    assert [step.name for step in ablation.steps] == (["layer 1", "layer 0"] if last else ["layer 0", "layer 1"])


def test_in_a_text_space_it_is_the_aligned_sum_without(tmp_path):
    store, values = made_up(tmp_path)
    maps = torch.randn(len(NAMES), WIDTH, 5, generator=torch.Generator().manual_seed(1))
    identity = {"model": "tiny", "weights_hash": "hash", "preprocessing": {"size": 1}, "level": "head"}
    aligner, space = Aligner(maps, torch.randn(5), NAMES, identity), space_of(5)
    words = ByHand(zero_shot(space, {"c0": ("a",), "c1": ("b",), "c2": ("c",)}, aligner))
    steps = one_by_one(NAMES, [5, 2, 0])
    rows, others = np.arange(0, 80, 2), np.arange(1, 80, 2)
    measured, fitted = halves(store)
    ablation = ablate(measured, steps, fitted=fitted, classification=words)
    texts = space.encode(["a", "b", "c"]).double().numpy()
    args = (values, steps, rows, others, "mean", lambda total: texts @ total)
    expected = naive(*args, maps.double().numpy(), aligner.bias.double().numpy())
    assert [accuracy.right for accuracy in ablation.accuracies] == expected


def rights(ablation):
    return [accuracy.right for accuracy in ablation.accuracies]


def test_what_is_ablated_in_parts_is_what_is_ablated_at_once(tmp_path, monkeypatch):
    store, _ = made_up(tmp_path)
    whole = ablate(store, "last", classification=linear())
    monkeypatch.setattr("unweave.view.BUDGET", 4 * WIDTH * 7)
    assert rights(ablate(store, "last", classification=linear())) == rights(whole)


def test_a_batch_in_memory_is_ablated_as_a_store(tmp_path):
    store, values = made_up(tmp_path)
    fields = {"label": store.field("label")}
    memory = Contributions(values, NAMES, tuple(store.ids), values.sum(1), torch.zeros(80), fields=fields)
    for to in ("mean", "zero"):
        ablations = [ablate(source, "last", classification=linear(), to=to) for source in (store, memory)]
        assert rights(ablations[0]) == rights(ablations[1])


def test_means_are_those_of_the_fitted_images(tmp_path):
    """Those that are measured on, by themselves, would give other numbers."""
    store, values = made_up(tmp_path)
    view = store.view().rows(slice(0, 50))
    assert torch.allclose(change(view, 2, view.mean()), values[:50, 2] - values[:50, 2].mean(0), atol=1e-6)
    assert torch.allclose(change(view, 2, None), values[:50, 2], atol=1e-6)


def test_orders():
    assert [step.components for step in layers(NAMES, last=True)] == [(3, 4, 5), (1, 2)]
    assert one_by_one(NAMES, [2]) == (Step("blocks.0.attn.head.1", (2,)),)
    again = selections(NAMES, ["blocks.1.*", "kind:head"])
    assert [step.components for step in again] == [(3, 4, 5), (1, 2)]
    with pytest.raises(ArgumentError):
        selections(NAMES, ["nothing"])


def test_the_interval_is_wilsons():
    low, high = Accuracy(40, 50).interval
    wilson = binomtest(40, 50).proportion_ci(method="wilson")
    assert (low, high) == (wilson.low, wilson.high) and low < Accuracy(40, 50).value < high


def test_two_sets_of_images_have_none_in_common(tmp_path):
    store, _ = made_up(tmp_path)
    first, second = sides(store, None)
    assert not set(first.ids) & set(second.ids) and len(first) + len(second) == 80 and min(len(first), len(second)) > 20
    whole, halved = ablate(store, classification=linear()), ablate(second, fitted=first, classification=linear())
    assert rights(whole) == rights(halved) and whole.card["fitted"] == len(first)
    with pytest.raises(DataError, match="1 images would be fitted to and measured on"):
        sides(store.view().rows([3, 4]), store.view().rows([4, 5]))
    with pytest.raises(DataError, match="0 images to fit to and 80 to measure on"):
        sides(store, store.view().rows([]))


def test_orders_by_their_names(tmp_path, monkeypatch):
    monkeypatch.setenv("UNWEAVE_CACHE", str(tmp_path / "cache"))
    store, _ = made_up(tmp_path / "s")
    first, second, other = (ablate(store, "random", classification=linear(), seed=seed) for seed in (0, 0, 1))
    assert first.steps == second.steps != other.steps
    assert sorted(step.components for step in first.steps) == [(place,) for place in range(len(NAMES))]
    chosen = ablate(store, ["blocks.1.*", "kind:head"], classification=linear())
    assert chosen.steps == selections(NAMES, ["blocks.1.*", "kind:head"])
    assert ablate(store, "kind:head", classification=linear()).steps == (Step("kind:head", (1, 2, 3, 4)),)


def test_the_order_of_scores(tmp_path, monkeypatch):
    monkeypatch.setenv("UNWEAVE_CACHE", str(tmp_path / "cache"))
    store, space = made_up(tmp_path / "s")[0], space_of(5)
    maps = torch.randn(len(NAMES), WIDTH, 5, generator=torch.Generator().manual_seed(1))
    identity = {"model": "tiny", "weights_hash": "hash", "preprocessing": {"size": 1}, "level": "head"}
    identity |= {"space": "tiny", "space_hash": space.weights_hash, "space_loading": {}}
    aligner = Aligner(maps, torch.zeros(5), NAMES, identity)
    monkeypatch.setattr("unweave.alignment.spaces.text_space", lambda name, **options: space)
    classification = Classification("probe", space=aligner)
    ablation = ablate(store, "score:a dog", classification=classification)
    fitted, _ = store.view().split()
    ranked = score(fitted, ["a dog"], space=aligner, samples=20).ranked("a dog")
    assert [step.components for step in ablation.steps] == [(place,) for place in ranked]


def test_progress_is_told_after_each_component(tmp_path):
    told = []
    store, _ = made_up(tmp_path)
    ablate(store, "last", classification=linear(), on_progress=lambda *what: told.append(what))
    assert told == [("ablating components", count, 5) for count in range(1, 6)]


def test_the_table(tmp_path):
    store, _ = made_up(tmp_path)
    rows = ablate(store, classification=linear()).table().to_pylist()
    assert [row["components"] for row in rows] == [0, 3, 5] and rows[0]["ablated"] == "nothing"
    assert all(row["low"] <= row["accuracy"] <= row["high"] for row in rows)


def test_an_ablation_is_saved_and_read(tmp_path):
    store, _ = made_up(tmp_path / "s")
    ablation = ablate(store, classification=Classification("probe"))
    assert "figure" in ablation.save(tmp_path / "out")
    again = Ablation.load(tmp_path / "out")
    assert again.table().equals(ablation.table()) and again.steps == ablation.steps and again.card == ablation.card
    assert "told by a probe" in repr(ablation) and "unweave.ablate(" in ablation.code()
    assert len(ablations_figure([ablation, again]).axes) == 1


def test_images_that_cannot_be(tmp_path):
    store, values = made_up(tmp_path / "s")
    nothing = stored(tmp_path / "n", values, NAMES, fields={"label": ["c0"] * 80, "some": [None] * 79 + ["c1"]})
    with pytest.raises(DataError, match="No image has a some"):
        ablate(nothing.view().rows([0, 1]), [], fitted=nothing.view().rows([2]), classification=linear("some"))
    with pytest.raises(DataError, match="There are 80 images to fit to and 0 to measure on"):
        ablate(store.view().rows([]), [], fitted=store, classification=linear())
    with pytest.raises(DataError, match="no field"):
        ablate(store, [], classification=linear("colour"))
