"""What the pocket world is made of: objects, colours, patterns and locations.

Objects that come in all colours in life (cars, clothes, butterflies, geometric shapes) are painted; all others keep
the colours of their drawing. Nets name a thing by its natural colour first, as people do, so paint sits only where it
tells nothing about what the thing is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CATEGORIES = ("animal", "bird", "person", "vehicle", "fruit", "shape", "clothing")

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")

PATTERNS = ("plain", "striped", "spotted", "checkered")

LOCATIONS = ("sea", "beach", "forest", "desert", "city", "sky", "marsh", "snow", "meadow", "indoors")

STYLES = ("noto", "twemoji")
"""Who drew the sprites; the second is held out: no model is trained on it."""

RGB = {
    "red": (222, 32, 38),
    "orange": (250, 134, 14),
    "yellow": (250, 218, 34),
    "green": (36, 158, 58),
    "blue": (34, 86, 222),
    "purple": (128, 42, 172),
    "pink": (250, 122, 186),
    "brown": (124, 72, 34),
    "black": (34, 34, 38),
    "white": (246, 246, 244),
}
"""What each colour looks like in paint: red, green and blue in 0 ... 255."""


@dataclass(frozen=True)
class Thing:
    """A kind of object.

    Attributes:
        name: What a caption calls it.
        category: One of `CATEGORIES`.
        sprites: Names of its drawings, one of which is drawn.
        tintable: Whether it is painted in any of the colours.
        patterned: Whether it is painted with a pattern too; a butterfly's wings leave no room for one.
        kind: `sprite` where it is drawn by an artist, `shape` where it is geometry.
        colour: The one colour that dominates it by nature, in every style, if there is one.
        synonyms: Other words for it.
    """

    name: str
    category: str
    sprites: tuple[str, ...]
    tintable: bool = False
    patterned: bool = False
    kind: Literal["sprite", "shape"] = "sprite"
    colour: str | None = None
    synonyms: tuple[str, ...] = ()


def _natural(name: str, category: str, *synonyms: str, colour: str | None = None) -> Thing:
    return Thing(name, category, (name,), colour=colour, synonyms=synonyms)


def _painted(name: str, category: str, *synonyms: str) -> Thing:
    return Thing(name, category, (name,), tintable=True, patterned=True, synonyms=synonyms)


def _shape(name: str, *synonyms: str) -> Thing:
    return Thing(name, "shape", (name,), tintable=True, patterned=True, kind="shape", synonyms=synonyms)


OBJECTS = (
    _natural("elephant", "animal"),
    _natural("giraffe", "animal"),
    _natural("zebra", "animal"),
    _natural("lion", "animal"),
    _natural("panda", "animal"),
    _natural("pig", "animal", "piglet", colour="pink"),
    _natural("frog", "animal", colour="green"),
    Thing("butterfly", "animal", ("butterfly",), tintable=True),
    _natural("owl", "bird"),
    _natural("duck", "bird", "mallard"),
    _natural("swan", "bird", colour="white"),
    _natural("parrot", "bird"),
    _natural("penguin", "bird"),
    _natural("flamingo", "bird", colour="pink"),
    _natural("chef", "person", "cook"),
    _natural("policeman", "person", "officer"),
    _natural("firefighter", "person", "fireman"),
    _natural("astronaut", "person", "spaceman"),
    _natural("wizard", "person", "magician"),
    _painted("car", "vehicle", "automobile"),
    _natural("bus", "vehicle", "coach"),
    _natural("tractor", "vehicle"),
    _natural("bicycle", "vehicle", "bike"),
    _natural("helicopter", "vehicle", "chopper", colour="yellow"),
    _natural("sailboat", "vehicle", "yacht"),
    _natural("apple", "fruit", colour="red"),
    _natural("banana", "fruit", colour="yellow"),
    _natural("grape", "fruit", colour="purple"),
    _natural("strawberry", "fruit", colour="red"),
    _natural("pineapple", "fruit"),
    _natural("watermelon", "fruit", "melon"),
    _shape("circle", "disk"),
    _shape("square", "box"),
    _shape("triangle"),
    _shape("star"),
    _shape("heart"),
    _shape("cross", "plus"),
    _painted("shirt", "clothing"),
    _painted("dress", "clothing", "gown"),
    _painted("cap", "clothing", "hat"),
)
