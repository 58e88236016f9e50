"""Birds where they belong and birds out of place, in exact shares."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from unweave.errors import UnweaveError
from unweave.pocket.birds import BACKGROUNDS, BIRDS, SPLITS, Birds, Difficulty
from unweave.pocket.captions import PLACES


@pytest.fixture(scope="module")
def training():
    return [Birds().scene(number) for number in range(80)]


def groups(birds, count):
    return Counter(birds.scene(number).factors.group for number in range(count))


def test_training_is_correlated_by_exactly_95_percent(training):
    assert Counter(scene.factors.group for scene in training) == {0: 38, 1: 2, 2: 2, 3: 38}


@pytest.mark.parametrize("split", SPLITS[1:])
def test_validation_and_test_are_balanced(split):
    assert groups(Birds(split=split), 40) == {0: 10, 1: 10, 2: 10, 3: 10}


def test_balance_can_be_asked_for_or_refused():
    assert groups(Birds(balanced=True), 40) == {0: 10, 1: 10, 2: 10, 3: 10}
    assert groups(Birds(split="test", balanced=False), 40) == {0: 19, 1: 1, 2: 1, 3: 19}


def test_factors_are_consistent(training):
    for scene in training:
        factors = scene.factors
        assert factors.object in BIRDS[factors.bird]
        assert factors.location in BACKGROUNDS[factors.background]
        assert factors.group == 2 * (factors.bird == "water") + (factors.background == "water")
        assert scene.caption.endswith(f"{factors.object} {PLACES[factors.location][0]}")
        assert scene.mask.any()
    assert {scene.factors.object for scene in training} == {bird for kind in BIRDS.values() for bird in kind}
    assert {scene.factors.location for scene in training} == {place for kind in BACKGROUNDS.values() for place in kind}


def test_the_kinds_share_no_bird_and_no_location():
    assert not set(BIRDS["land"]) & set(BIRDS["water"])
    assert not set(BACKGROUNDS["land"]) & set(BACKGROUNDS["water"])


def test_splits_are_disjoint():
    images = [Birds(split=split).scene(number).image.tobytes() for split in SPLITS for number in range(40)]
    assert len(set(images)) == len(images)


def test_a_scene_is_the_same_each_time_and_another_for_another_seed():
    first, again, other = (Birds(seed, "validation").scene(9) for seed in (1, 1, 2))
    assert np.array_equal(first.image, again.image)
    assert first.factors == again.factors
    assert not np.array_equal(first.image, other.image)


def test_difficulty_takes_colour_and_size_away():
    easy, hard = Difficulty(0.0, 0.0, 50, 50), Difficulty(1.0, 0.0, 34, 34)
    number = 4
    plain, grey = (Birds(difficulty=difficulty).scene(number) for difficulty in (easy, hard))
    assert (plain.factors.size, grey.factors.size) == (50, 34)
    assert plain.mask.sum() > 1.5 * grey.mask.sum()
    assert np.ptp(grey.image[grey.mask].astype(int), axis=0).max() < 70  # one colour but for the rim
    assert np.ptp(plain.image[plain.mask].astype(int), axis=0).max() > 100


def test_the_pattern_marks_the_bird_and_nothing_else():
    bare, marked = (Birds(difficulty=Difficulty(0.2, strength, 40, 50)).scene(7) for strength in (0.0, 0.8))
    changed = (bare.image != marked.image).any(axis=-1)
    assert changed[bare.mask].mean() > 0.15
    near = np.pad(bare.mask, 4)
    near = np.any([np.roll(near, (i, j), (0, 1)) for i in range(-4, 5) for j in range(-4, 5)], axis=0)[4:-4, 4:-4]
    assert not changed[~near].any()


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(UnweaveError, match="no split 'holdout'"):
        Birds(split="holdout")
    with pytest.raises(UnweaveError, match="numbered from 0"):
        Birds().scene(-1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Birds().difficulty.tint = 1
