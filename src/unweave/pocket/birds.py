"""Pocket birds: land birds and water birds, most of them where they belong.

As in the Waterbirds set, the background tells the bird in 95 % of the training scenes and nothing at all in the
others: a classifier that looks at the background does well in training and fails on the birds out of place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unweave.errors import ArgumentError
from unweave.pocket.backgrounds import background
from unweave.pocket.captions import PLACES, with_article
from unweave.pocket.paint import pattern
from unweave.pocket.scene import Factors, Scene, compose, draw_object, stream

BIRDS = {
    "land": ("rooster", "turkey", "owl", "eagle", "parrot"),
    "water": ("duck", "swan", "goose", "flamingo", "penguin"),
}
"""The birds of each kind, by the name of their drawing."""

BACKGROUNDS = {"land": ("forest", "desert", "meadow"), "water": ("sea", "beach", "marsh")}
"""The locations of each kind."""

SPLITS = ("train", "validation", "test")
"""Scenes of different splits are independent draws."""

_KINDS = ("land", "water")
_PLUMAGE = np.array((138.0, 122.0, 106.0))


@dataclass(frozen=True)
class Difficulty:
    """How hard the birds are to tell apart.

    Attributes:
        tint: How far every bird's colours go toward one common grey-brown, 0 ... 1.
        pattern: The strength of a random pattern over the plumage, 0 ... 1.
        smallest, largest: The range of the birds' longer side, in pixels.
    """

    tint: float = 0.3
    pattern: float = 0.22
    smallest: int = 32
    largest: int = 53


DIFFICULTY = Difficulty()
"""The published difficulty, chosen on validation birds of seed 100: heads on the zoo are misled, and not lost."""


@dataclass(frozen=True)
class BirdFactors(Factors):
    """The factors of a bird's scene.

    Attributes:
        bird: `land` or `water`.
        background: `land` or `water`.
    """

    bird: str
    background: str

    @property
    def group(self) -> int:
        """0 ... 3: land bird on land, on water, water bird on land, on water."""
        return 2 * _KINDS.index(self.bird) + _KINDS.index(self.background)


@dataclass(frozen=True, eq=False)
class BirdScene(Scene):
    """A scene of a bird."""

    factors: BirdFactors


@dataclass(frozen=True)
class Birds:
    """An endless, numbered supply of birds.

    The groups' shares are exact in every 40 consecutive scenes that start at a multiple of 40.

    Attributes:
        seed: Which birds.
        split: One of `SPLITS`.
        balanced: All four groups alike; None for what the split is by default, which is biased in training and
            balanced in validation and test.
        difficulty: How hard they are.
    """

    seed: int = 0
    split: str = "train"
    balanced: bool | None = None
    difficulty: Difficulty = DIFFICULTY

    def __post_init__(self) -> None:
        """Refuse what no scene can be drawn from."""
        if self.split not in SPLITS:
            raise ArgumentError(f"There is no split {self.split!r}.", cure=f"use one of {', '.join(SPLITS)}")

    def scene(self, number: int) -> BirdScene:
        """Draw a scene: the same for the same birds and number, whatever was drawn before.

        Raises:
            UnweaveError: The number is negative, or the sprites cannot be read.
        """
        rng = stream(self.seed, number, 1 + SPLITS.index(self.split))
        bird = number % 2
        balanced = self.split != "train" if self.balanced is None else self.balanced
        out_of_place = number // 2 % (2 if balanced else 20) == 0
        kind, place = _KINDS[bird], _KINDS[bird ^ out_of_place]
        name = BIRDS[kind][int(rng.integers(len(BIRDS[kind])))]
        location = BACKGROUNDS[place][int(rng.integers(len(BACKGROUNDS[place])))]
        size = int(rng.integers(self.difficulty.smallest, self.difficulty.largest + 1))
        x, y = rng.uniform(-8, 8, 2) + 32
        factors = BirdFactors(
            object=name,
            category="bird",
            colour=None,
            pattern=None,
            location=location,
            style="noto",
            size=size,
            centre=(float(x), float(y)),
            flip=bool(rng.random() < 0.5),
            rotation=float(rng.uniform(-12, 12)),
            bird=kind,
            background=place,
        )
        behind = background(location, rng)
        rgb, alpha = draw_object(name, factors, rng)
        rgb = rgb + self.difficulty.tint * (_PLUMAGE - rgb)
        marks = pattern(("striped", "spotted", "checkered")[int(rng.integers(3))], rng, len(rgb), scale=9.0)
        rgb = rgb + self.difficulty.pattern * marks[..., None] * (_PLUMAGE * 0.4 - rgb)
        image, mask = compose(behind, rgb, alpha)
        return BirdScene(image, mask, factors, f"{with_article(name)} {PLACES[location][0]}", number)
