"""CompAttribute against numpy, line by line; its intervals against scipy; and what chance would give."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stores import space_of, stored
from unweave.alignment import Aligned, Aligner
from unweave.attribution.scores import attribute, basis
from unweave.components import Component
from unweave.errors import ArgumentError, StoreError

WIDTH, DIM = 10, 8
NAMES = tuple(Component(f"blocks.{layer}.attn", "head", layer, head) for layer in range(2) for head in range(3))
FEATURES = {"colour": ("red", "green", "blue"), "location": ("sea", "city"), "one": ("cat",)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNWEAVE_CACHE", str(tmp_path / "cache"))


def seen(place, values, *, bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(len(NAMES), WIDTH, DIM, generator=generator)
    own = torch.randn(DIM, generator=generator) if bias else torch.zeros(DIM)
    identity = {"model": "tiny", "weights_hash": "hash", "preprocessing": {"size": 1}, "level": "head"}
    return Aligned(stored(place, values, NAMES), Aligner(maps, own, NAMES, identity))


def noise(images=120, seed=1):
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(images, 1, WIDTH, generator=generator)
    return torch.randn(images, len(NAMES), WIDTH, generator=generator) + 0.5 * common


def naive(values, maps, bias, directions):
    """The paper's algorithm, one component and one column at a time, in float64."""
    values, maps, bias = (own.double().numpy() for own in (values, maps, bias))
    aligned = [[values[image, number] @ maps[number] for number in range(len(NAMES))] for image in range(len(values))]
    aligned = np.array(aligned)
    whole = aligned.sum(1) + bias
    _, sizes, right = np.linalg.svd(directions.double().numpy(), full_matrices=False)
    rows = right[sizes > 1e-5 * sizes[0]]
    scores = []
    for number in range(len(NAMES)):
        columns = [np.corrcoef(whole @ row, aligned[:, number] @ row)[0, 1] for row in rows]
        scores.append(np.mean(columns))
    return np.array(scores), aligned, whole, rows


def test_scores_are_the_papers(tmp_path):
    values = noise()
    own = seen(tmp_path / "s", values)
    space = space_of(DIM)
    found = attribute(own, space, FEATURES, samples=20)
    for column, phrases in enumerate(FEATURES.values()):
        expected, *_ = naive(values, own.aligner.maps, own.aligner.bias, space.encode(phrases))
        assert np.abs(found.scores[:, column].numpy() - expected).max() < 1e-5
    assert found.features == FEATURES and found.components == NAMES and found.images == 120


def test_intervals_are_those_of_samples_that_are_drawn_with_replacement(tmp_path):
    values = noise(60)
    own, space = seen(tmp_path / "s", values), space_of(DIM)
    found = attribute(own, space, FEATURES, samples=2000, seed=3)
    rng = np.random.default_rng(0)
    for column, phrases in enumerate(FEATURES.values()):
        _, aligned, whole, rows = naive(values, own.aligner.maps, own.aligner.bias, space.encode(phrases))
        for number in (0, 4):
            draws = []
            for _ in range(2000):
                chosen = rng.integers(60, size=60)
                pairs = ((whole[chosen] @ row, aligned[chosen, number] @ row) for row in rows)
                draws.append(np.mean([np.corrcoef(*pair)[0, 1] for pair in pairs]))
            low, high = np.quantile(draws, [0.025, 0.975])
            assert float(found.low[number, column]) == pytest.approx(low, abs=0.02)
            assert float(found.high[number, column]) == pytest.approx(high, abs=0.02)


def test_chance_is_every_shift_of_a_component_against_the_rest(tmp_path):
    values = noise(40)
    own, space = seen(tmp_path / "s", values), space_of(DIM)
    found = attribute(own, space, FEATURES, samples=20, seed=5)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(5)).numpy()
    for column, phrases in enumerate(FEATURES.values()):
        scores, aligned, whole, rows = naive(values, own.aligner.maps, own.aligner.bias, space.encode(phrases))
        for number in range(len(NAMES)):
            chance = []
            for shift in range(40):
                component = np.roll(aligned[order, number], -shift, 0)
                total = (whole - aligned[:, number])[order] + component
                chance.append(np.mean([np.corrcoef(total @ row, component @ row)[0, 1] for row in rows]))
            assert float(found.p[number, column]) == pytest.approx(np.mean(np.array(chance) >= scores[number] - 1e-7))
            low, high = np.quantile(chance, [0.025, 0.975])
            assert float(found.chance_low[number, column]) == pytest.approx(low, abs=1e-5)
            assert float(found.chance_high[number, column]) == pytest.approx(high, abs=1e-5)


def test_components_that_have_nothing_to_do_with_each_other_stay_within_chance(tmp_path):
    """Each correlates with the sum that it is part of, and yet nothing is found."""
    generator = torch.Generator().manual_seed(9)
    inside, above = [], 0
    for number in range(12):
        values = torch.randn(150, len(NAMES), WIDTH, generator=generator)
        found = attribute(seen(tmp_path / f"s{number}", values, seed=number), space_of(DIM), FEATURES, samples=20)
        assert float(found.scores.mean()) > 0.2
        inside.append((found.chance_low <= found.scores) & (found.scores <= found.chance_high))
        above += int(found.above().any())
    assert 0.9 < float(torch.stack(inside).float().mean()) < 0.99
    assert above <= 3  # of twelve models, each with eighteen scores


def test_what_was_planted_is_found_first(tmp_path):
    """Three components write a property along a direction, each of them hearing it with noise; a phrase names it."""
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(300, len(NAMES), WIDTH, generator=generator)
    red = torch.nn.functional.normalize(torch.randn(DIM, generator=generator), dim=0)
    own = seen(tmp_path / "first", values)
    strength = torch.randn(300, generator=generator)
    for number, loud in ((4, 3.0), (1, 2.0), (2, 1.0)):
        inverse = torch.linalg.pinv(own.aligner.maps[number])
        values[:, number] += loud * 5 * strength[:, None] * (red @ inverse)
    cat = torch.linalg.svd(red[None]).Vh[-1]  # at a right angle to it
    space = space_of(DIM, {"red": red, "cat": cat})
    found = attribute(seen(tmp_path / "s", values), space, {"red": ("red",), "cat": ("cat",)})
    assert found.ranked("red")[:3] == [4, 1, 2]
    assert found.above().T.tolist() == [[False, True, True, False, True, False], [False] * 6]
    assert int(found.margins()[:, 0].argmax()) == 4


def test_the_basis_depends_neither_on_order_nor_on_repeated_phrases():
    directions = torch.randn(4, DIM, generator=torch.Generator().manual_seed(0))
    one, other = basis(directions), basis(directions[[2, 0, 3, 1, 0]])
    assert one.shape == (4, DIM) == other.shape
    assert torch.allclose(one @ one.T, torch.eye(4, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(one.T @ one, other.T @ other, atol=1e-6)  # a phrase that comes twice weighs more, no more


def test_constant_and_empty_components_score_nothing(tmp_path):
    values = noise()
    values[:, 1] = 0
    values[:, 2] = values[0, 2]
    found = attribute(seen(tmp_path / "s", values), space_of(DIM), FEATURES, samples=30)
    for name in ("scores", "low", "high", "chance_low", "chance_high"):
        assert bool((getattr(found, name)[1:3] == 0).all())
    assert bool((found.p[1:3] == 1).all()) and not bool(found.above()[1:3].any())
    assert bool(torch.isfinite(found.scores).all())


def test_margins_are_over_the_other_features(tmp_path):
    found = attribute(seen(tmp_path / "s", noise()), space_of(DIM), FEATURES, samples=20)
    for row in range(len(NAMES)):
        for column in range(3):
            others = [float(found.scores[row, other]) for other in range(3) if other != column]
            expected = float(found.scores[row, column]) - max(others)
            assert float(found.margins()[row, column]) == pytest.approx(expected, abs=1e-6)
    alone = attribute(seen(tmp_path / "t", noise()), space_of(DIM), {"one": ("cat",)}, samples=20)
    with pytest.raises(ArgumentError, match="no others"):
        alone.margins()
    assert alone.table()["margin"].to_pylist() == [None] * len(NAMES)


def test_the_same_seed_gives_the_same_numbers(tmp_path):
    own = seen(tmp_path / "s", noise())
    one, two, other = (attribute(own, space_of(DIM), FEATURES, samples=30, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.low, two.low) and torch.equal(one.p, two.p)
    assert torch.equal(one.scores, other.scores) and not torch.equal(one.low, other.low)


@pytest.mark.parametrize("images", [1, 2])
def test_too_few_images_are_an_error(tmp_path, images):
    with pytest.raises(StoreError, match=f"has {images} images"):
        attribute(seen(tmp_path / "s", noise(images)), space_of(DIM), FEATURES)


@pytest.mark.parametrize(
    ("features", "what"),
    [
        ({}, "no features"),
        ({"long": ("one two three four five six seven eight nine ten eleven",)}, "13 tokens"),
        ({"empty": ("",)}, "empty"),
        ({"none": ()}, "no phrases"),
    ],
)
def test_features_that_cannot_be(tmp_path, features, what):
    with pytest.raises(ArgumentError, match=what):
        attribute(seen(tmp_path / "s", noise()), space_of(DIM), features)


def test_the_table_has_a_row_for_each_pair(tmp_path):
    found = attribute(seen(tmp_path / "s", noise()), space_of(DIM), FEATURES, samples=20)
    table = found.table()
    assert table.num_rows == len(NAMES) * 3
    row = table.to_pylist()[len(NAMES) + 2]
    assert row["component"] == "blocks.0.attn.head.2" and row["feature"] == "location"
    assert row["score"] == pytest.approx(float(found.scores[2, 1])) and row["low"] <= row["score"] <= row["high"]
    with pytest.raises(ArgumentError, match="no feature 'x'"):
        found.ranked("x")


def test_images_can_be_chosen(tmp_path):
    values = noise()
    own = seen(tmp_path / "s", values)
    some = Aligned(own.store, own.aligner, list(range(0, 120, 2)))
    other = seen(tmp_path / "t", values[::2])
    one, two = (attribute(each, space_of(DIM), FEATURES, samples=20) for each in (some, other))
    assert torch.allclose(one.scores, two.scores, atol=1e-6)


def test_pieces_give_what_the_whole_gives(tmp_path, monkeypatch):
    values = noise()
    own = seen(tmp_path / "s", values)
    whole = attribute(own, space_of(DIM), FEATURES, samples=20), own.covariance(2)
    monkeypatch.setattr("unweave.align.aligned._BYTES", 4 * WIDTH * 7)
    pieces = attribute(own, space_of(DIM), FEATURES, samples=20), own.covariance(2)
    assert torch.allclose(whole[0].scores, pieces[0].scores, atol=1e-6)
    assert torch.allclose(whole[1], pieces[1], atol=1e-9)
