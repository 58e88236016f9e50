"""What people would write under a scene: paraphrases that name the object, its colour and pattern, and the place.

People leave out what they do not care for, so a caption now and then drops the colour, the pattern or the place, says
the category or a synonym instead of the object, or names a single factor. All words are known beforehand
(`VOCABULARY`); there are no capitals and no punctuation.
"""

from __future__ import annotations

from numpy.random import Generator

from unweave.pocket.scene import Factors
from unweave.pocket.things import CATEGORIES, COLOURS, LOCATIONS, OBJECTS, PATTERNS

PLACES = {
    "sea": ("at sea", "on the ocean", "on the open water"),
    "beach": ("on the beach", "at the shore", "on the sand by the water"),
    "forest": ("in the forest", "in the woods", "among the trees"),
    "desert": ("in the desert", "among the dunes", "near a cactus"),
    "city": ("in the city", "downtown", "on the street"),
    "sky": ("in the sky", "among the clouds", "up in the air"),
    "marsh": ("in the marsh", "in the swamp", "among the reeds"),
    "snow": ("in the snow", "in winter", "on a snowy hill"),
    "meadow": ("in the meadow", "on the grass", "in a field of flowers"),
    "indoors": ("indoors", "in a room", "inside the house"),
}
"""How a caption says where, the usual words first."""

TEMPLATES = (
    "{}",
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "there is {}",
    "we see {}",
    "this is {}",
)
"""What a caption looks like around what it names."""

_SYNONYMS = {thing.name: thing.synonyms for thing in OBJECTS}

_SHORT, _LEFT_OUT, _CATEGORY, _SYNONYM = 0.25, 0.12, 0.3, 0.25
"""Shares: captions of one factor; each factor left out of the others; a category or a synonym for the object."""

_NAMED = ("object", "category", "colour", "pattern", "location")


def caption(factors: Factors, rng: Generator) -> str:
    """A sentence about a scene, another one at each call.

    Args:
        factors: What is in the scene.
        rng: Where the choice of words comes from.
    """
    if rng.random() < _SHORT:
        said = _one_factor(factors, rng)
    else:
        colour, pattern = (None if rng.random() < _LEFT_OUT else word for word in (factors.colour, factors.pattern))
        if pattern == "plain" and rng.random() < 0.5:
            pattern = None
        adjectives = [word for word in (pattern, colour) if word]
        if len(adjectives) == 2 and rng.random() < 0.5:
            adjectives = [adjectives[1], "and", adjectives[0]]
        said = with_article(" ".join([*adjectives, _noun(factors, rng)]))
        if rng.random() >= _LEFT_OUT:
            said = f"{said} {_place(factors, rng)}"
    return TEMPLATES[int(rng.integers(len(TEMPLATES)))].format(said)


def _one_factor(factors: Factors, rng: Generator) -> str:
    known = [(factor, value) for factor in _NAMED if (value := getattr(factors, factor)) is not None]
    phrases = alone(*known[int(rng.integers(len(known)))])
    return phrases[int(rng.integers(len(phrases)))]


def alone(factor: str, value: str) -> list[str]:
    """All phrases that name a value of one factor, and nothing else of the scene.

    Args:
        factor: `object`, `category`, `colour`, `pattern` or `location`.
        value: One of its values.
    """
    if factor == "location":
        return [f"something {place}" for place in PLACES[value]]
    if factor in ("colour", "pattern"):
        return [f"something {value}", with_article(f"{value} thing")]
    return [with_article(value)]


def _noun(factors: Factors, rng: Generator) -> str:
    synonyms, draw = _SYNONYMS.get(factors.object, ()), rng.random()
    if draw < _CATEGORY:
        return factors.category
    if synonyms and draw < _CATEGORY + _SYNONYM:
        return synonyms[int(rng.integers(len(synonyms)))]
    return factors.object


def _place(factors: Factors, rng: Generator) -> str:
    phrases = PLACES[factors.location]
    return phrases[0] if rng.random() < 0.6 else phrases[1 + int(rng.integers(len(phrases) - 1))]


def with_article(phrase: str) -> str:
    """The phrase with `a`, `an` or `some` in front, as its noun and its first letter ask."""
    if phrase.endswith("clothing"):
        return f"some {phrase}"
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def _vocabulary() -> tuple[str, ...]:
    nouns = [word for thing in OBJECTS for word in (thing.name, *thing.synonyms)]
    places = [phrase for phrases in PLACES.values() for phrase in phrases]
    sentences = [template.format("a an some something thing and") for template in TEMPLATES]
    texts = [*nouns, *places, *sentences, *CATEGORIES, *COLOURS, *PATTERNS, *LOCATIONS]
    return tuple(sorted({word for text in texts for word in text.split()}))


VOCABULARY = _vocabulary()
"""Every word that a caption may hold, sorted."""
