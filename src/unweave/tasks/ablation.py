"""Ablation: how well classes are told as more and more components say the same of every image.

    ablation = unweave.ablate("out", "last")
    ablation.accuracies                          # one for each step, the first with nothing ablated
    ablation.figure()

A component is ablated by replacing its contribution with its mean over other images (or zero), everything else held.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from rich.console import RenderableType
from rich.text import Text
from scipy.stats import binomtest
from torch import Tensor

from unweave.alignment import view_card
from unweave.attribution.scores import score
from unweave.components import Component, Selection, select
from unweave.errors import DataError
from unweave.figures import Curve, curves_figure
from unweave.progress import OnProgress, silent
from unweave.results import Result, rich_table, verb
from unweave.store import Readable, view_of
from unweave.tasks.classifier import By, Classification, Classifier
from unweave.view import View

To = Literal["mean", "zero"]


@dataclass(frozen=True)
class Step:
    """Components that are ablated together, on top of those of all steps before.

    Attributes:
        name: What the step is called.
        components: The components, as places.
    """

    name: str
    components: tuple[int, ...]


Order: TypeAlias = "str | Sequence[Selection] | Sequence[Step]"
"""In what order to ablate: `last` (layers from the last one back), `first`, `random` or `score:FEATURE` (components one
by one), or selections, one for each step.
"""


@dataclass(frozen=True)
class Accuracy:
    """How often the right class is told.

    Attributes:
        right, images: How many images are told right, of how many.
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
        interval = binomtest(self.right, self.images).proportion_ci(method="wilson")
        return float(interval.low), float(interval.high)


@dataclass(frozen=True, eq=False, repr=False)
class Ablation(Result):
    """What ablation does.

    Attributes:
        model: The model's id.
        by: What tells the classes.
        to: What ablated contributions are replaced by.
        steps: What was ablated, one step after the other.
        accuracies: Before, and after each step.
        components: The components of the model.
    """

    name = "ablation"

    model: str
    by: By
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

    def figure(self) -> Figure:
        """Accuracy after each step, with its interval."""
        return ablations_figure([self])

    def told(self) -> list[RenderableType]:
        """The accuracy after each step."""
        rows = [
            [
                row["ablated"],
                str(row["components"]),
                f"{row['accuracy']:.3f}",
                f"{row['low']:.3f} ... {row['high']:.3f}",
            ]
            for row in self.table().to_pylist()
        ]
        title = f"{self.model}: accuracy told by {BY[self.by]}, {self.accuracies[0].images:,} images"
        columns = {"ablated": "left", "components": "right", "accuracy": "right", "95 %": "right"}
        return [rich_table(title, columns, rows), Text()]


BY = {"model": "the model's classifier", "zero-shot": "words", "probe": "a probe"}


def ablations_figure(ablations: Sequence[Ablation]) -> Figure:
    """Several ablations in one plot, a curve for each."""
    curves = [
        Curve(
            each.model,
            [accuracy.value for accuracy in each.accuracies],
            [accuracy.interval[0] for accuracy in each.accuracies],
            [accuracy.interval[1] for accuracy in each.accuracies],
        )
        for each in ablations
    ]
    steps = ablations[0].steps
    what = "layers" if steps and steps[0].name.startswith("layer ") else "steps"
    title = f"Accuracy told by {BY[ablations[0].by]}"
    return curves_figure({"": curves}, title=title, across=f"{what} ablated", up="accuracy")


def layers(components: Sequence[Component], *, last: bool) -> tuple[Step, ...]:
    """A step for each layer, from the last one back or from the first on; what belongs to no layer is left alone."""
    places: dict[int, list[int]] = {}
    for place, component in enumerate(components):
        if component.layer is not None:
            places.setdefault(component.layer, []).append(place)
    steps = [Step(f"layer {layer}", tuple(places[layer])) for layer in sorted(places)]
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
    for selection in chosen:
        places = tuple(place for place in select(components, selection) if place not in gone)
        gone.update(places)
        steps.append(Step(str(selection), places))
    return tuple(steps)


@verb
def ablate(
    source: Readable,
    order: Order = "last",
    *,
    fitted: Readable | None = None,
    classification: Classification = Classification(),  # noqa: B008  # it cannot be changed
    to: To = "mean",
    seed: int = 0,
    on_progress: OnProgress = silent,
) -> Ablation:
    """Ablate components step by step, and tell classes after each: everything else is held.

    Memory: the sums of the images, once, and a component's contributions.

    Args:
        source: A store or its folder, a view of one, or a batch in memory: the images to measure on. If no others are
            given to fit to, half of these are measured on, chosen by their ids, and the other half is fitted to.
        order: What to ablate, each step on top of those before (see `Order`).
        fitted: Other images, from which means, scores and probes come.
        classification: How classes are told.
        to: Replace contributions by their mean, or by zero.
        seed: The seed of a random order, and of scores.
        on_progress: Called after each component.

    Raises:
        DataError: There are no such images, field or classes, or an image is on both sides.
        ModelError, ArgumentError: The classes cannot be told in this way, or the order is none.
    """
    fitted_view, view = sides(source, fitted)
    classifier = classification.fitted(fitted_view)
    fitted_view, view = classifier.seen(fitted_view), classifier.seen(view)
    steps = _steps(fitted_view, order, classification, seed)
    codes = classifier.codes(view, classification.label)
    if not (codes >= 0).any():
        raise DataError(
            f"No image has a {classification.label}.", where=str(view.source), cure="choose images, or another field"
        )
    view, codes = view.rows(codes >= 0), codes[codes >= 0]
    means = fitted_view.mean() if to == "mean" else None
    total = view.representation.clone()
    accuracies, count = [_accuracy(classifier, total, codes)], sum(len(step.components) for step in steps)
    done = 0
    for step in steps:
        for component in step.components:
            total -= change(view, component, means)
            done += 1
            on_progress("ablating components", done, count)
        accuracies.append(_accuracy(classifier, total, codes))
    card = view_card(view) | {"label": classification.label, "fitted": len(fitted_view)}
    return Ablation(view.model, classifier.by, to, steps, tuple(accuracies), view.components, card=card)


def sides(source: Readable, fitted: Readable | None) -> tuple[View, View]:
    """The images to fit to, and those to measure on: half of all each, chosen by their ids, if none are given to fit.

    Raises:
        DataError: There are no images on a side, or an image is on both.
    """
    view = view_of(source)
    first, second = view.split() if fitted is None else (view_of(fitted), view)
    both = set(first.ids) & set(second.ids)
    if both or not len(first) or not len(second):
        what = (
            f"{len(both)} images would be fitted to and measured on."
            if both
            else f"There are {len(first)} images to fit to and {len(second)} to measure on."
        )
        raise DataError(what, where=str(view.source), cure="choose images so that there are some on either side")
    return first, second


def change(view: View, component: int, means: Float[Tensor, "component dim"] | None) -> Float[Tensor, "image dim"]:
    """What the sum of each image loses when a component is ablated.

    Args:
        view: The contributions.
        component: The component, by its place in the view.
        means: What contributions are replaced by; None for zero.
    """
    lost = view.select([component]).sum()
    return lost if means is None else lost - means[component]


def _steps(view: View, order: Order, classification: Classification, seed: int) -> tuple[Step, ...]:
    components = view.components
    if isinstance(order, str):
        order = [order]
    if all(isinstance(step, Step) for step in order):
        return tuple(order)  # type: ignore[arg-type]
    first = order[0] if len(order) == 1 else None
    if first in ("last", "first"):
        return layers(components, last=first == "last")
    if first == "random":
        return one_by_one(components, np.random.default_rng(seed).permutation(len(components)).tolist())
    if isinstance(first, str) and first.startswith("score:"):
        name = first.removeprefix("score:")
        in_words, space = classification.words(view)
        return one_by_one(components, score(in_words, [name], space=space, samples=20, seed=seed).ranked(name))
    return selections(components, order)  # type: ignore[arg-type]


def _accuracy(classifier: Classifier, sums: Float[Tensor, "image dim"], codes: Int[np.ndarray, " image"]) -> Accuracy:
    return Accuracy(int((classifier.predicted(sums) == codes).sum()), len(codes))
