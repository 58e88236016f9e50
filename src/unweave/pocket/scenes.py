"""Scenes drawn once and kept: training reads the same ones many times, and drawing them is slower than a small network.

The images lie in a memory-mapped array, so that any number of trainings share one copy; the factors are small numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int8, UInt8
from rich.progress import track

from unweave.pocket.captions import VOCABULARY, caption
from unweave.pocket.scene import Factors
from unweave.pocket.vocabulary import Vocabulary
from unweave.pocket.world import CATEGORIES, COLOURS, LOCATIONS, OBJECTS, PATTERNS, World

NAMES: dict[str, tuple[str, ...]] = {
    "object": tuple(thing.name for thing in OBJECTS),
    "category": CATEGORIES,
    "colour": COLOURS,
    "pattern": PATTERNS,
    "location": LOCATIONS,
}
"""The factors that networks learn and are asked for, and their values."""

PARAPHRASES = 8
"""How many captions each scene has."""

WORDS = Vocabulary(VOCABULARY)
"""Every word of a caption."""


@dataclass(frozen=True, eq=False)
class Scenes:
    """Many scenes.

    Attributes:
        images: RGB, 0 ... 255.
        codes: For each scene and factor of `NAMES`, which of the factor's values it has; -1 where it has none.
        words: Captions of each scene, as numbers of `WORDS`.
    """

    images: UInt8[np.ndarray, "scene 64 64 3"]
    codes: Int8[np.ndarray, "scene factor"]
    words: UInt8[np.ndarray, "scene paraphrase word"]

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, which: Int[np.ndarray, " taken"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images, codes and words of some of the scenes."""
        return self.images[which], self.codes[which], self.words[which]

    def code(self, factor: str) -> Int8[np.ndarray, " scene"]:
        """One factor of all scenes."""
        return self.codes[:, list(NAMES).index(factor)]


def coded(factors: Factors) -> list[int]:
    """For each factor of `NAMES`, which of its values a scene has; -1 where it has none."""
    values = [getattr(factors, name) for name in NAMES]
    return [-1 if value is None else names.index(value) for value, names in zip(values, NAMES.values(), strict=True)]


def draw(world: World, numbers: range) -> Scenes:
    """Draw scenes of a world into memory."""
    return _filled(_arrays(len(numbers)), map(partial(_row, world), numbers))


def cached(world: World, count: int, folder: Path, *, processes: int = 1) -> Scenes:
    """The first scenes of a world, drawn only if they do not lie in the folder yet.

    Args:
        world: Where they come from.
        count: How many.
        folder: Where they are kept, 12 kB each; made where there is none.
        processes: How many draw.
    """
    folder = folder / f"seed{world.seed}-plain{world.plain:g}-{count}"
    if not folder.is_dir():
        fresh = folder.with_name(f"{folder.name}.drawing")
        fresh.mkdir(parents=True, exist_ok=True)
        arrays = [
            np.lib.format.open_memmap(fresh / f"{field.name}.npy", "w+", empty.dtype, (count, *empty.shape[1:]))
            for field, empty in zip(fields(Scenes), _arrays(0), strict=True)
        ]
        with get_context("spawn").Pool(processes) as pool:
            rows = pool.imap(partial(_row, world), range(count), chunksize=200)
            _filled(arrays, track(rows, f"Drawing {count} scenes", count))
        fresh.rename(folder)  # what is half drawn never looks whole
    return Scenes(*(np.load(folder / f"{field.name}.npy", mmap_mode="r") for field in fields(Scenes)))


Row = tuple[np.ndarray, list[int], np.ndarray]


def _row(world: World, number: int) -> Row:
    """What is kept of one scene."""
    scene = world.scene(number)
    rng = np.random.default_rng((world.seed, number, 1))
    return scene.image, coded(scene.factors), WORDS.encode([caption(scene.factors, rng) for _ in range(PARAPHRASES)])


def _arrays(count: int) -> list[np.ndarray]:
    return [
        np.empty((count, 64, 64, 3), np.uint8),
        np.empty((count, len(NAMES)), np.int8),
        np.empty((count, PARAPHRASES, WORDS.length), np.uint8),
    ]


def _filled(arrays: Sequence[np.ndarray], rows: Iterable[Row]) -> Scenes:
    for number, row in enumerate(rows):
        for array, value in zip(arrays, row, strict=True):
            array[number] = value
    return Scenes(*arrays)
