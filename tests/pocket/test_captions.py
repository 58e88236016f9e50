"""Captions name what is there, in known words."""

from collections import Counter

import pytest

from unweave.pocket.captions import PLACES, VOCABULARY, caption, with_article
from unweave.pocket.scene import stream
from unweave.pocket.world import COLOURS, LOCATIONS, OBJECTS, PATTERNS, World

THINGS = {thing.name: thing for thing in OBJECTS}


@pytest.fixture(scope="module")
def pairs():
    factors = [World(2).scene(number).factors for number in range(40)]
    return [(fact, caption(fact, stream(number, take))) for number, fact in enumerate(factors) for take in range(25)]


def test_only_known_words_come_up_and_all_of_them_may():
    factors = [World(2).scene(number).factors for number in range(200)]
    seen = {
        word
        for number, fact in enumerate(factors)
        for take in range(25)
        for word in caption(fact, stream(number, take)).split()
    }
    assert seen <= set(VOCABULARY)
    assert len(seen) > 0.9 * len(VOCABULARY)
    assert all(word.isascii() and word.islower() and word.isalpha() for word in VOCABULARY)
    assert list(VOCABULARY) == sorted(VOCABULARY)


def test_what_is_said_is_true(pairs):
    for factors, text in pairs:
        words = set(text.split())
        assert words & set(COLOURS) <= {factors.colour}, text
        assert words & set(PATTERNS) <= {factors.pattern}, text
        named = {name for name in THINGS if name in words}
        assert named <= {factors.object}, text
        places = {place for place in LOCATIONS if any(f" {text} ".find(f" {way} ") >= 0 for way in PLACES[place])}
        assert places <= {factors.location}, text


def test_most_captions_name_the_object_and_the_place(pairs):
    counts = Counter()
    for factors, text in pairs:
        thing = THINGS[factors.object]
        words = text.split()
        counts["object"] += thing.name in words or any(synonym in words for synonym in thing.synonyms)
        counts["category"] += thing.category in words
        counts["place"] += any(f" {text} ".find(f" {way} ") >= 0 for way in PLACES[factors.location])
        counts["coloured"] += factors.colour is not None
        counts["colour"] += factors.colour is not None and factors.colour in words
    assert counts["object"] > 0.5 * len(pairs)
    assert counts["category"] > 0.2 * len(pairs)
    assert counts["place"] > 0.65 * len(pairs)
    assert counts["colour"] > 0.65 * counts["coloured"]


def test_captions_of_one_scene_differ():
    factors = World(2).scene(0).factors
    assert len({caption(factors, stream(take)) for take in range(30)}) > 15


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [("owl", "an owl"), ("red owl", "a red owl"), ("orange cap", "an orange cap"), ("clothing", "some clothing")],
)
def test_articles(phrase, expected):
    assert with_article(phrase) == expected
