"""Ablation against the sum written out, image by image; orders; and input that cannot be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from unweave.tasks.head import Head, zero_shot

from stores import space_of, stored
from unweave.alignment import Aligner
from unweave.components import Component
from unweave.errors import ArgumentError, StoreError
from unweave.tasks.ablation import (
    Accuracy,
    Step,
    ablation,
    layers,
    means,
    one_by_one,
    selections,
    split,
)

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


def linear():
    weight = torch.eye(3, WIDTH)
    return Head("probe", (("c0",), ("c1",), ("c2",)), lambda sums: sums @ weight.T)


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
                own = values[row, component]
                if component in gone:
                    own = average[component] if to == "mean" else 0 * own
                total = total + (own if maps is None else own @ maps[component])
            count += int(np.argmax(logits(total if bias is None else total + bias)) == row % 3)
        right.append(count)
    return right


@pytest.mark.parametrize("to", ["mean", "zero"])
@pytest.mark.parametrize("last", [True, False])
def test_ablation_is_the_sum_without(tmp_path, to, last):
    store, values = made_up(tmp_path)
    steps = layers(NAMES, last=last)
    rows, others = np.arange(0, 80, 2), np.arange(1, 80, 2)
    found = ablation(store, linear(), "label", steps, rows=rows, mean_rows=others, to=to)
    expected = naive(values, steps, rows, others, to, lambda total: total[:3])
    assert [own.right for own in found.accuracies] == expected and found.accuracies[0].images == 40
    assert [step.name for step in found.steps] == (["layer 1", "layer 0"] if last else ["layer 0", "layer 1"])


def test_in_a_text_space_it_is_the_aligned_sum_without(tmp_path):
    store, values = made_up(tmp_path)
    maps = torch.randn(len(NAMES), WIDTH, 5, generator=torch.Generator().manual_seed(1))
    identity = {"model": "tiny", "weights_hash": "hash", "preprocessing": {"size": 1}, "level": "head"}
    aligner, space = Aligner(maps, torch.randn(5), NAMES, identity), space_of(5)
    head = zero_shot(space, {"c0": ("a",), "c1": ("b",), "c2": ("c",)}, aligner)
    steps = one_by_one(NAMES, [5, 2, 0])
    rows, others = np.arange(0, 80, 2), np.arange(1, 80, 2)
    found = ablation(store, head, "label", steps, rows=rows, mean_rows=others)
    texts = space.encode(["a", "b", "c"]).double().numpy()
    args = (values, steps, rows, others, "mean", lambda total: texts @ total)
    expected = naive(*args, maps.double().numpy(), aligner.bias.double().numpy())
    assert [own.right for own in found.accuracies] == expected


def test_what_is_ablated_in_parts_is_what_is_ablated_at_once(tmp_path, monkeypatch):
    store, _ = made_up(tmp_path)
    steps = layers(NAMES, last=True)
    whole = ablation(store, linear(), "label", steps)
    monkeypatch.setattr("unweave.tasks.ablation._BYTES", 4 * WIDTH * 7)
    assert [own.right for own in ablation(store, linear(), "label", steps).accuracies] == [
        own.right for own in whole.accuracies
    ]


def test_means(tmp_path, monkeypatch):
    store, values = made_up(tmp_path)
    for size in (2**28, 4 * len(NAMES) * WIDTH * 3):
        monkeypatch.setattr("unweave.tasks.ablation._BYTES", size)
        assert torch.allclose(means(store, slice(0, 50)), values[:50].mean(0), atol=1e-6)
    with pytest.raises(StoreError, match="no images to take means of"):
        means(store, [])


def test_orders():
    assert [step.components for step in layers(NAMES, last=True)] == [(3, 4, 5), (1, 2)]
    assert one_by_one(NAMES, [2]) == (Step("blocks.0.attn.head.1", (2,)),)
    again = selections(NAMES, ["blocks.1.*", "kind:head"])
    assert [step.components for step in again] == [(3, 4, 5), (1, 2)]
    with pytest.raises(ArgumentError):
        selections(NAMES, ["nothing"])


def test_the_interval_is_wilsons():
    low, high = Accuracy(40, 50).interval
    own = binomtest(40, 50).proportion_ci(method="wilson")
    assert (low, high) == (own.low, own.high) and low < Accuracy(40, 50).value < high


def test_two_sets_of_images_have_none_in_common(tmp_path):
    store, _ = made_up(tmp_path)
    first, second = split(store)
    assert not set(first) & set(second) and len(first) + len(second) == 80 and min(len(first), len(second)) > 20


def test_the_table(tmp_path):
    store, _ = made_up(tmp_path)
    rows = ablation(store, linear(), "label", layers(NAMES, last=True)).table().to_pylist()
    assert [row["components"] for row in rows] == [0, 3, 5] and rows[0]["ablated"] == "nothing"
    assert all(row["low"] <= row["accuracy"] <= row["high"] for row in rows)


def test_images_that_cannot_be(tmp_path):
    store, _ = made_up(tmp_path)
    with pytest.raises(StoreError, match="No image has a label"):
        ablation(store, linear(), "label", [], rows=[])
    with pytest.raises(StoreError, match="no field"):
        ablation(store, linear(), "colour", [])
