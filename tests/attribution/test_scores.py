"""CompAttribute against numpy, line by line; its intervals against scipy; and what chance would give."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stores import space_of, stored
from unweave.alignment import Aligner
from unweave.attribution.scores import Scores, basis, score
from unweave.components import Component
from unweave.contributions import Contributions
from unweave.errors import ArgumentError, DataError

WIDTH, DIM = 10, 8
NAMES = tuple(Component(f"blocks.{layer}.attn", "head", layer, head) for layer in range(2) for head in range(3))
FEATURES = {"colour": ("red", "green", "blue"), "location": ("sea", "city"), "one": ("cat",)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNWEAVE_CACHE", str(tmp_path / "cache"))


def aligner(*, bias=True, seed=0, space=None):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(len(NAMES), WIDTH, DIM, generator=generator)
    shift = torch.randn(DIM, generator=generator) if bias else torch.zeros(DIM)
    identity = {"model": "tiny", "weights_hash": "hash", "preprocessing": {"size": 1}, "level": "head"}
    identity |= {"space": "tiny", "space_hash": (space or space_of(DIM)).weights_hash}
    return Aligner(maps, shift, NAMES, identity)


def seen(place, values, **options):
    return stored(place, values, NAMES).view().through(aligner(**options))


def noise(images=120, seed=1):
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(images, 1, WIDTH, generator=generator)
    return torch.randn(images, len(NAMES), WIDTH, generator=generator) + 0.5 * common


def naive(values, maps, bias, directions):
    """The paper's algorithm, one component and one column at a time, in float64."""
    values, maps, bias = (each.double().numpy() for each in (values, maps, bias))
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
    view = seen(tmp_path / "s", values)
    space = space_of(DIM)
    scores = score(view, FEATURES, space=space, samples=20)
    for column, phrases in enumerate(FEATURES.values()):
        expected, *_ = naive(values, view.aligner.maps, view.aligner.bias, space.encode(phrases))
        assert np.abs(scores.values[:, column].numpy() - expected).max() < 1e-5
    assert scores.features == FEATURES and scores.components == NAMES and scores.images == 120


def test_intervals_are_those_of_samples_that_are_drawn_with_replacement(tmp_path):
    values = noise(60)
    view, space = seen(tmp_path / "s", values), space_of(DIM)
    scores = score(view, FEATURES, space=space, samples=2000, seed=3)
    rng = np.random.default_rng(0)
    for column, phrases in enumerate(FEATURES.values()):
        _, aligned, whole, rows = naive(values, view.aligner.maps, view.aligner.bias, space.encode(phrases))
        for number in (0, 4):
            draws = []
            for _ in range(2000):
                chosen = rng.integers(60, size=60)
                pairs = ((whole[chosen] @ row, aligned[chosen, number] @ row) for row in rows)
                draws.append(np.mean([np.corrcoef(*pair)[0, 1] for pair in pairs]))
            low, high = np.quantile(draws, [0.025, 0.975])
            assert float(scores.low[number, column]) == pytest.approx(low, abs=0.02)
            assert float(scores.high[number, column]) == pytest.approx(high, abs=0.02)


def test_chance_is_every_shift_of_a_component_against_the_rest(tmp_path):
    values = noise(40)
    view, space = seen(tmp_path / "s", values), space_of(DIM)
    scores = score(view, FEATURES, space=space, samples=20, seed=5)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(5)).numpy()
    for column, phrases in enumerate(FEATURES.values()):
        expected, aligned, whole, rows = naive(values, view.aligner.maps, view.aligner.bias, space.encode(phrases))
        for number in range(len(NAMES)):
            chance = []
            for shift in range(40):
                component = np.roll(aligned[order, number], -shift, 0)
                total = (whole - aligned[:, number])[order] + component
                chance.append(np.mean([np.corrcoef(total @ row, component @ row)[0, 1] for row in rows]))
            reached = np.mean(np.array(chance) >= expected[number] - 1e-7)
            assert float(scores.p[number, column]) == pytest.approx(reached)
            low, high = np.quantile(chance, [0.025, 0.975])
            assert float(scores.chance_low[number, column]) == pytest.approx(low, abs=1e-5)
            assert float(scores.chance_high[number, column]) == pytest.approx(high, abs=1e-5)


def test_components_that_have_nothing_to_do_with_each_other_stay_within_chance(tmp_path):
    """Each correlates with the sum that it is part of, and yet nothing is scores."""
    generator = torch.Generator().manual_seed(9)
    inside, above = [], 0
    for number in range(12):
        values = torch.randn(150, len(NAMES), WIDTH, generator=generator)
        scores = score(seen(tmp_path / f"s{number}", values, seed=number), FEATURES, space=space_of(DIM), samples=20)
        assert float(scores.values.mean()) > 0.2
        inside.append((scores.chance_low <= scores.values) & (scores.values <= scores.chance_high))
        above += int(scores.above().any())
    assert 0.9 < float(torch.stack(inside).float().mean()) < 0.99
    assert above <= 3  # of twelve models, each with eighteen scores


def test_what_was_planted_is_found_first(tmp_path):
    """Three components write a property along a direction, each of them hearing it with noise; a phrase names it."""
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(300, len(NAMES), WIDTH, generator=generator)
    red = torch.nn.functional.normalize(torch.randn(DIM, generator=generator), dim=0)
    maps = aligner().maps
    strength = torch.randn(300, generator=generator)
    for number, loud in ((4, 3.0), (1, 2.0), (2, 1.0)):
        inverse = torch.linalg.pinv(maps[number])
        values[:, number] += loud * 5 * strength[:, None] * (red @ inverse)
    cat = torch.linalg.svd(red[None]).Vh[-1]  # at a right angle to it
    space = space_of(DIM, {"red": red, "cat": cat})
    scores = score(seen(tmp_path / "s", values, space=space), {"red": ("red",), "cat": ("cat",)}, space=space)
    assert scores.ranked("red")[:3] == [4, 1, 2]
    assert scores.above().T.tolist() == [[False, True, True, False, True, False], [False] * 6]
    assert int(scores.margins()[:, 0].argmax()) == 4


def test_the_basis_depends_neither_on_order_nor_on_repeated_phrases():
    directions = torch.randn(4, DIM, generator=torch.Generator().manual_seed(0))
    first, other = basis(directions), basis(directions[[2, 0, 3, 1, 0]])
    assert first.shape == (4, DIM) == other.shape
    assert torch.allclose(first @ first.T, torch.eye(4, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(first.T @ first, other.T @ other, atol=1e-6)  # a phrase that comes twice weighs more, no more


def test_constant_and_empty_components_score_nothing(tmp_path):
    values = noise()
    values[:, 1] = 0
    values[:, 2] = values[0, 2]
    scores = score(seen(tmp_path / "s", values), FEATURES, space=space_of(DIM), samples=30)
    for name in ("values", "low", "high", "chance_low", "chance_high"):
        assert bool((getattr(scores, name)[1:3] == 0).all())
    assert bool((scores.p[1:3] == 1).all()) and not bool(scores.above()[1:3].any())
    assert bool(torch.isfinite(scores.values).all())


def test_margins_are_over_the_other_features(tmp_path):
    scores = score(seen(tmp_path / "s", noise()), FEATURES, space=space_of(DIM), samples=20)
    for row in range(len(NAMES)):
        for column in range(3):
            others = [float(scores.values[row, other]) for other in range(3) if other != column]
            expected = float(scores.values[row, column]) - max(others)
            assert float(scores.margins()[row, column]) == pytest.approx(expected, abs=1e-6)
    alone = score(seen(tmp_path / "t", noise()), {"one": ("cat",)}, space=space_of(DIM), samples=20)
    with pytest.raises(ArgumentError, match="no others"):
        alone.margins()
    assert alone.table()["margin"].to_pylist() == [None] * len(NAMES)


def test_the_same_seed_gives_the_same_numbers(tmp_path):
    view = seen(tmp_path / "s", noise())
    first, second, other = (score(view, FEATURES, space=space_of(DIM), samples=30, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.low, second.low) and torch.equal(first.p, second.p)
    assert torch.equal(first.values, other.values) and not torch.equal(first.low, other.low)


@pytest.mark.parametrize("images", [1, 2])
def test_too_few_images_are_an_error(tmp_path, images):
    with pytest.raises(DataError, match=f"There are {images} images"):
        score(seen(tmp_path / "s", noise(images)), FEATURES, space=space_of(DIM))


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
        score(seen(tmp_path / "s", noise()), features, space=space_of(DIM))


def test_the_table_has_a_row_for_each_pair(tmp_path):
    scores = score(seen(tmp_path / "s", noise()), FEATURES, space=space_of(DIM), samples=20)
    table = scores.table()
    assert table.num_rows == len(NAMES) * 3
    row = table.to_pylist()[len(NAMES) + 2]
    assert row["component"] == "blocks.0.attn.head.2" and row["feature"] == "location"
    assert row["score"] == pytest.approx(float(scores.values[2, 1])) and row["low"] <= row["score"] <= row["high"]
    with pytest.raises(ArgumentError, match="no feature 'x'"):
        scores.ranked("x")


def test_images_can_be_chosen(tmp_path):
    values = noise()
    some = seen(tmp_path / "s", values).rows(slice(0, 120, 2))
    other = seen(tmp_path / "t", values[::2])
    first, second = (score(each, FEATURES, space=space_of(DIM), samples=20) for each in (some, other))
    assert torch.allclose(first.values, second.values, atol=1e-6)


def test_components_can_be_chosen(tmp_path):
    """What the others say still counts: each correlates with the whole representation."""
    view = seen(tmp_path / "s", noise())
    whole, part = (score(each, FEATURES, space=space_of(DIM), samples=20) for each in (view, view.select([4, 1])))
    assert part.components == (NAMES[4], NAMES[1])
    assert torch.allclose(part.values, whole.values[[4, 1]], atol=1e-6)


def test_pieces_give_what_the_whole_gives(tmp_path, monkeypatch):
    view = seen(tmp_path / "s", noise())
    whole = score(view, FEATURES, space=space_of(DIM), samples=20), view.select([2]).covariance()
    monkeypatch.setattr("unweave.view.BUDGET", 4 * WIDTH * 7)
    pieces = score(view, FEATURES, space=space_of(DIM), samples=20), view.select([2]).covariance()
    assert torch.allclose(whole[0].values, pieces[0].values, atol=1e-6)
    assert torch.allclose(whole[1], pieces[1], atol=1e-9)


def test_a_batch_in_memory_is_scored_as_a_store(tmp_path):
    values = noise()
    store = stored(tmp_path / "s", values, NAMES)
    none = torch.zeros(len(values))
    memory = Contributions(values, NAMES, tuple(store.ids), values.sum(1), none, origin=store.view().origin)
    nameless = Contributions(values, NAMES, tuple(store.ids), values.sum(1), none)
    expected = score(store.view().through(aligner()), FEATURES, space=space_of(DIM), samples=20)
    for source in (memory, nameless, store):
        scores = score(source.view().through(aligner()), FEATURES, space=space_of(DIM), samples=20)
        for name in ("values", "low", "high", "chance_low", "chance_high", "p"):
            assert torch.equal(getattr(scores, name), getattr(expected, name))


def test_progress_is_told_in_both_passes(tmp_path):
    told = []
    view = seen(tmp_path / "s", noise())
    score(view, FEATURES, space=space_of(DIM), samples=20, on_progress=lambda *what: told.append(what))
    assert told == [(what, count, 6) for what in ("summing components", "scoring components") for count in range(1, 7)]


def test_features_by_name_and_phrases_that_stand_alone(tmp_path):
    view = seen(tmp_path / "s", noise())
    name, phrases = next(iter(space_of(DIM).features().items()))
    scores = score(view, ["a dog", name], space=space_of(DIM), samples=20)
    assert scores.features == {"a dog": ("a dog",), name: phrases} and len(phrases) > 1


def test_scores_are_saved_and_read(tmp_path):
    scores = score(seen(tmp_path / "s", noise()), FEATURES, space=space_of(DIM), samples=20)
    files = scores.save(tmp_path / "out")
    again = Scores.load(tmp_path / "out")
    assert again.table().equals(scores.table()) and again.card == scores.card and "figure" in files
    assert again.components == NAMES and dict(again.features) == FEATURES
    assert "unweave.score(" in scores.code() and scores.card["model"] == "tiny"
    assert "colour: " in repr(scores)
