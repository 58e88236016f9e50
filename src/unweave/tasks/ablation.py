"""Ablation: how well classes are told as more and more components say the same of every image.

    found = ablation(store, classifier(store), "label", layers(store, last=True))
    found.accuracies                                       # one for each step, the first with nothing ablated

A component is ablated by replacing its contribution with its mean over other images (or zero), everything else held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from scipy.stats import binomtest
from torch import Tensor

from unweave.align import Aligned
from unweave.align.rows import held_out
from unweave.components import Component, Selection, select
from unweave.errors import DataError
from unweave.store import Rows, Store
from unweave.tasks.head import Head

To = Literal["mean", "zero"]

_BYTES = 2**28
"""Of a component's contributions, in memory at a time."""


@dataclass(frozen=True)
class Step:
    """Components that are ablated together, on top of those of all steps before.

    Attributes:
        name: What is said of them.
        components: Their places.
    """

    name: str
    components: tuple[int, ...]


@dataclass(frozen=True)
class Accuracy:
    """How often the right class is told.

    Attributes:
        right, images: How many of how many.
    """

    right: int
    images: int

    @property
    def value(self) -> float:
        """The share that is right."""
        return self.right / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """95 % (Wilson, 1927)."""
        found = binomtest(self.right, self.images).proportion_ci(method="wilson")
        return float(found.low), float(found.high)


@dataclass(frozen=True, eq=False)
class Ablation:
    """What ablation does.

    Attributes:
        model: The model's id.
        head: What tells the classes.
        to: What ablated contributions are replaced by.
        steps: What was ablated, one after the other.
        accuracies: Before, and after each step.
        components: Of the model.
    """

    model: str
    head: str
    to: To
    steps: tuple[Step, ...]
    accuracies: tuple[Accuracy, ...]
    components: tuple[Component, ...]

    def table(self) -> pa.Table:
        """One row for each step, the first of which ablates nothing."""
        rows, gone = [], 0
        for number, (step, accuracy) in enumerate(
            zip((Step("nothing", ()), *self.steps), self.accuracies, strict=True)
        ):
            gone += len(step.components)
            low, high = accuracy.interval
            rows.append(
                {
                    "model": self.model,
                    "step": number,
                    "ablated": step.name,
                    "components": gone,
                    "accuracy": accuracy.value,
                    "low": low,
                    "high": high,
                    "images": accuracy.images,
                }
            )
        return pa.Table.from_pylist(rows)


def layers(components: Sequence[Component], *, last: bool) -> tuple[Step, ...]:
    """A step for each layer, from the last one back or from the first on; what belongs to no layer is left alone."""
    found: dict[int, list[int]] = {}
    for place, own in enumerate(components):
        if own.layer is not None:
            found.setdefault(own.layer, []).append(place)
    steps = [Step(f"layer {layer}", tuple(found[layer])) for layer in sorted(found)]
    return tuple(steps[::-1] if last else steps)


def one_by_one(components: Sequence[Component], places: Iterable[int]) -> tuple[Step, ...]:
    """A step for each component, in a given order."""
    return tuple(Step(str(components[place]), (place,)) for place in places)


def selections(components: Sequence[Component], chosen: Sequence[Selection]) -> tuple[Step, ...]:
    """A step for each selection; a component that comes again is ablated already.

    Raises:
        ArgumentError: A selection matches nothing.
    """
    gone, steps = set[int](), []
    for own in chosen:
        places = tuple(place for place in select(components, own) if place not in gone)
        gone.update(places)
        steps.append(Step(str(own), places))
    return tuple(steps)


def split(store: Store, share: float = 0.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of rows that have no image in common: those that means and heads come from, and those to measure on."""
    side = held_out(store.ids, share, seed)
    return np.flatnonzero(~side), np.flatnonzero(side)


@dataclass(frozen=True, eq=False)
class Sums:
    """The sum of all components of some images, in the space that a head reads, from which components are taken.

    Attributes:
        head: Which reads it.
        store: The contributions.
        rows: The images.
        means: What contributions are replaced by, for each component; None for zero.
        level: At which level.
    """

    head: Head
    store: Store
    rows: np.ndarray
    means: Float[Tensor, "component width"] | None
    level: str

    def whole(self) -> Float[Tensor, "image dim"]:
        """With nothing ablated. For the model's own space this is the representation as the model computed it."""
        if self.head.aligner is None:
            return self.store.representation(self.rows)
        seen = Aligned(self.store, self.head.aligner, self.rows)
        return seen.representation(torch.eye(self.head.aligner.maps.shape[2]))

    def change(self, component: int) -> Float[Tensor, "image dim"]:
        """What the sum loses when a component is ablated."""
        width = self.store.manifest.dim
        size = max(1, _BYTES // (4 * width))
        map_ = self._map(component)
        found = []
        for start in range(0, len(self.rows), size):
            values = self.store.values([component], self.rows[start : start + size], level=self.level)[:, 0].float()
            moved = values if self.means is None else values - self.means[component]
            found.append(moved if map_ is None else moved @ map_)
        return torch.cat(found)

    def _map(self, component: int) -> Tensor | None:
        aligner = self.head.aligner
        if aligner is None:
            return None
        own = self.store.components(self.level)[component]
        return aligner.maps[aligner.places([own], self.store.origin(self.level))[0]]


def means(store: Store, rows: Rows = None, *, level: str | None = None) -> Float[Tensor, "component width"]:
    """The mean contribution of every component over some images, read a few images at a time.

    Raises:
        DataError: There are no images.
    """
    numbers = store.rows(rows)
    if not len(numbers):
        raise DataError("There are no images to take means of.", where=str(store.place), cure="choose some")
    columns = range(len(store.components(level)))
    size = max(1, _BYTES // (4 * len(columns) * store.manifest.dim))
    total = torch.zeros(len(columns), store.manifest.dim, dtype=torch.float64)
    for start in range(0, len(numbers), size):
        total += store.values(columns, numbers[start : start + size], level=level).double().sum(0)
    return (total / len(numbers)).float()


def ablation(
    store: Store,
    head: Head,
    field: str,
    steps: Sequence[Step],
    *,
    rows: Rows = None,
    mean_rows: Rows = None,
    to: To = "mean",
    level: str | None = None,
    on_component: Callable[[int], None] = lambda count: None,
) -> Ablation:
    """Ablate components step by step, and tell classes after each.

    Memory: the sums of the images, once, and a component's contributions.

    Args:
        store: The contributions.
        head: What tells the classes.
        field: What is known of the images that names their class; images without a value do not count.
        steps: What to ablate, each step on top of those before.
        rows: The images to measure on.
        mean_rows: The images that means come from; they should be others.
        to: Replace contributions by their mean, or by zero.
        level: Of the store; its first one, or that of the head's aligner, if not given.
        on_component: Called with the number of components that are ablated.

    Raises:
        DataError: There are no such images, field or classes, or a class is none of the head's.
    """
    level = str(head.aligner.identity["level"]) if head.aligner is not None else level or store.manifest.levels[0]
    numbers = store.rows(rows)
    codes = head.codes(store, field, numbers)
    numbers, codes = numbers[codes >= 0], codes[codes >= 0]
    if not len(numbers):
        raise DataError(f"No image has a {field}.", where=str(store.place), cure="choose images, or another field")
    replaced = means(store, mean_rows, level=level) if to == "mean" else None
    sums = Sums(head, store, numbers, replaced, level)
    total = sums.whole()
    found, count = [_told(head, total, codes)], 0
    for step in steps:
        for component in step.components:
            total -= sums.change(component)
            count += 1
            on_component(count)
        found.append(_told(head, total, codes))
    return Ablation(store.manifest.model, head.name, to, tuple(steps), tuple(found), store.components(level))


def _told(head: Head, sums: Float[Tensor, "image dim"], codes: Int[np.ndarray, " image"]) -> Accuracy:
    return Accuracy(int((head.predicted(sums) == codes).sum()), len(codes))
