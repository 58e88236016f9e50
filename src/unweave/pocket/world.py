"""The pocket world: captioned images of 64 x 64 pixels whose every factor is known.

    scene = World(seed=0).scene(7)      # a pure function of the seed and the number
    scene.image, scene.mask, scene.factors, scene.caption

A world has no length and no state: any process may draw any scene in any order. It is a demonstration and a measuring
instrument, on which claims can be checked against the truth; it says nothing about photographs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from unweave.errors import ArgumentError
from unweave.pocket.backgrounds import background
from unweave.pocket.captions import caption
from unweave.pocket.scene import Factors, Scene, compose, draw_object, stream
from unweave.pocket.things import CATEGORIES, COLOURS, LOCATIONS, OBJECTS, PATTERNS, STYLES, Thing

__all__ = ["CATEGORIES", "COLOURS", "LOCATIONS", "OBJECTS", "PATTERNS", "STYLES", "Factors", "Scene", "Thing", "World"]

_MIDDLE = 32.0
_WEIGHTS = np.cumsum([2.0 if thing.tintable else 1.0 for thing in OBJECTS])


@dataclass(frozen=True)
class World:
    """An endless, numbered supply of scenes.

    Painted things come twice as often as others, so that colours and patterns are seen often enough.

    Attributes:
        seed: Which world; scenes of different worlds are independent.
        styles: Whose drawings are used.
        plain: The share of easy scenes (large, upright, in the middle, without pattern), for a curriculum.
    """

    seed: int = 0
    styles: tuple[str, ...] = ("noto",)
    plain: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no scene can be drawn from."""
        unknown = sorted(set(self.styles) - set(STYLES))
        if unknown or not self.styles:
            raise ArgumentError(f"There is no style {unknown or 'given'}.", cure=f"use {' or '.join(STYLES)}")
        if not 0 <= self.plain <= 1:
            raise ArgumentError(f"The share of plain scenes lies between 0 and 1, so it cannot be {self.plain}.")

    def scene(self, number: int) -> Scene:
        """Draw a scene: the same for the same seed and number, whatever was drawn before.

        Raises:
            UnweaveError: The number is negative, or the sprites cannot be read.
        """
        rng = stream(self.seed, number)
        easy = bool(rng.random() < self.plain)
        thing = OBJECTS[int(np.searchsorted(_WEIGHTS, rng.random() * _WEIGHTS[-1], side="right"))]
        paint = _choose(COLOURS, rng) if thing.tintable else None
        colour = paint or thing.colour
        pattern = _choose(PATTERNS[:1] if easy else PATTERNS, rng) if thing.patterned else None
        size = int(rng.integers(52, 61) if easy else rng.integers(36, 61))
        reach = 1.0 if easy else min(8.0, (66 - size) / 2)
        x, y = rng.uniform(-reach, reach, 2) + _MIDDLE
        factors = Factors(
            object=thing.name,
            category=thing.category,
            colour=colour,
            pattern=pattern,
            location=_choose(LOCATIONS, rng),
            style=_choose(self.styles, rng),
            size=size,
            centre=(float(x), float(y)),
            flip=bool(rng.random() < 0.5),
            rotation=0.0 if easy else float(rng.uniform(-12, 12)),
        )
        behind = background(factors.location, rng)
        rgb, alpha = draw_object(_choose(thing.sprites, rng), factors, rng, paint=paint)
        image, mask = compose(behind, rgb, alpha)
        return Scene(image, mask, factors, caption(factors, rng), number)


def _choose(names: tuple[str, ...], rng: Generator) -> str:
    return names[int(rng.integers(len(names)))]
