"""The pocket zoo as benchmarks use it: stores and aligners in a work folder, and the truth about scenes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import unweave
from unweave import Aligner, Recipe, Settings, Store, View
from unweave.pocket.scenes import NAMES

LEARNED, JUDGED = "pocket/world/5/4000", "pocket/evaluation"
"""Scenes that aligners, scores and heads come from, and scenes that are judged."""

SCORED = ("colour", "pattern", "location", "category")
"""The factors that have features of their own."""


def store_of(work: Path, name: str, data: str, *, random: bool = False) -> Store:
    """A network's contributions, extracted once."""
    place = work / f"{name}-{data.split('/')[1]}{'-random' if random else ''}"
    return unweave.extract(unweave.Loading(f"pocket/{name}", random_weights=random), data, place)


def aligner_of(work: Path, store: Store, space: unweave.TextSpace) -> Aligner:
    """A store's aligner, fitted once."""
    place = work / f"{Path(str(store.place)).name}-aligner"
    if not place.exists():
        unweave.align(store, space, Recipe(random_images=0)).save(place)
    return Aligner.load(place)


def codes(view: View, factor: str) -> np.ndarray:
    """Which of a factor's values each scene has; -1 for none."""
    return np.array([NAMES[factor].index(own) if own is not None else -1 for own in view.field(factor)])


def usual(store: Store) -> View:
    """The scenes of the style that networks have learned from."""
    return store.view().where(style="noto")


def summed(view: View, places: Sequence[int]) -> np.ndarray:
    """The sum of some components, for each scene."""
    return view.select(list(places)).sum().numpy()
