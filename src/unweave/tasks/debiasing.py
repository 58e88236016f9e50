"""Debiasing: find the components that carry what misleads a classifier, and make them say the same of every image.

    sides = Sides.of("out")                                     # a store whose field `split` is train, val or test
    debiasing = unweave.debias(sides, "background", classification=Classification("probe", space="aligner"))
    debiasing.curve[10].worst, debiasing.curve[0].worst

Components are ranked by their score for a spurious feature less that for the core one, on held-out images, and the
first k are replaced by their mean. Nothing is trained. Groups are used to measure, and for the greedy comparison; not
to rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float
from matplotlib.figure import Figure
from rich.console import RenderableType
from rich.text import Text
from torch import Tensor

from unweave.alignment import view_card
from unweave.attribution.scores import Scores, score
from unweave.components import Component
from unweave.errors import ArgumentError, DataError
from unweave.figures import Curve, curves_figure
from unweave.progress import OnProgress, silent
from unweave.results import Result, rich_table, verb
from unweave.store import Readable, view_of
from unweave.tasks.ablation import BY, change
from unweave.tasks.classifier import By, Classification, Classifier
from unweave.tasks.groups import Groups, balanced, grouped, groups_of
from unweave.text.phrases import Features, chosen
from unweave.view import View

K = 10
"""Components to ablate, as published."""


@dataclass(frozen=True, eq=False)
class Sides:
    """Images to fit to, images to rank and choose by, and images to report on.

    Attributes:
        fitted: The images that a probe and means are fitted to.
        held_out: The images that components are ranked and counted by.
        test: The images that are reported on.

    Raises:
        DataError: A side has no images, or the three have different components.
    """

    fitted: Readable
    held_out: Readable
    test: Readable

    def __post_init__(self) -> None:
        views = self.views
        for name, view in zip(("fit to", "rank by", "report on"), views, strict=True):
            if not len(view):
                raise DataError(
                    f"There are no images to {name}.", where=str(view.source), cure="see the values of `split`"
                )
        if any(view.components != views[2].components for view in views):
            raise DataError(
                "The images have different components.", where=str(views[2].source), cure="extract all of them alike"
            )

    @classmethod
    def of(cls, source: Readable, splits: Sequence[str] = ("train", "val", "test"), field: str = "split") -> Sides:
        """The three sides of one store.

        Args:
            source: A store or its folder, a view of one, or a batch in memory.
            splits: The values of the field on the three sides.
            field: The field that has them.

        Raises:
            ArgumentError: There are not three values.
            DataError: There is no such field, or no image has one of the values.
        """
        if len(splits) != 3:
            raise ArgumentError(
                f"There are three sides, not {len(splits)}.", cure="name three values, such as train,val,test"
            )
        first, second, third = (view_of(source).where(f"{field}={split}") for split in splits)
        return cls(first, second, third)

    @property
    def views(self) -> tuple[View, View, View]:
        """The three views."""
        return view_of(self.fitted), view_of(self.held_out), view_of(self.test)

    def as_options(self, name: str) -> list[str]:
        """The words of a command line that name them: one store with its splits, or three.

        Raises:
            ArgumentError: They are other images.
        """
        words = [view.as_options("source") for view in self.views]
        chosen = [" ".join(own[1:]).removeprefix("--where split=") for own in words]
        if len({own[0] for own in words}) == 1 and all(
            own[1:] == ["--where", f"split={value}"] for own, value in zip(words, chosen, strict=True)
        ):
            return [words[0][0], "--splits", ",".join(chosen)]
        if any(len(own) > 1 for own in words):
            raise ArgumentError("Sides are the splits of a store, or three whole stores, on a command line.")
        return [words[0][0], "--held-out", words[1][0], "--test", words[2][0]]


@dataclass(frozen=True)
class Ranking:
    """In what order components are ablated.

    Attributes:
        spurious, core: The names of the feature that misleads, and of the one that should lead.
        features: Where both are described: features by name, or a TOML file; those that are shipped for birds and their
            backgrounds if not given.
        published: Whether components are ranked on the test images, as the published code does.
        order: The components themselves, as places, instead of a ranking.
        most: How many components are ablated at most.
    """

    spurious: str = "background"
    core: str = "bird"
    features: Features = None
    published: bool = False
    order: tuple[int, ...] | None = field(default=None, metadata={"unsaid": True})
    most: int = field(default=2 * K, metadata={"unsaid": True})

    def made(self, sides: Sides, classification: Classification, seed: int) -> tuple[int, ...]:
        """The order.

        Raises:
            ArgumentError: Nothing leads to a text space, or a feature is not there.
        """
        if self.order is not None:
            return self.order
        view, space = classification.words(sides.views[2 if self.published else 1])
        known = space.features("birds") if self.features is None else space.features_of(self.features)
        scores = score(view, chosen(known, [self.spurious, self.core]), space=space, samples=20, seed=seed)
        return ranked(scores, self.spurious, self.core)


@dataclass(frozen=True, eq=False, repr=False)
class Debiasing(Result):
    """What ablating components does to a classifier.

    Attributes:
        model: The model's id.
        by: What tells the classes.
        components: The components of the model.
        order: Their places, in the order in which they are ablated.
        curve: Groups on the test images with none ablated, the first, the first two, ...
        chosen: The number of components to ablate, chosen without groups (see `debias`).
        k: The number that is reported.
        random: For each draw, the curve with components drawn at random.
        best: The curve with components chosen by the groups of held-out images, one by one: greedy with groups.
        best_order: Those components, as places.
        protocol: `held-out`, or `published`, which ranks on the test images.
        classification: How classes were told; where it is loaded again, a text space in memory has to be given anew.
    """

    name = "debias"

    model: str
    by: By
    components: tuple[Component, ...]
    order: tuple[int, ...]
    curve: tuple[Groups, ...]
    chosen: int
    k: int
    random: tuple[tuple[Groups, ...], ...]
    best: tuple[Groups, ...]
    best_order: tuple[int, ...]
    protocol: str
    classification: Classification = field(default=Classification("probe"), metadata={"saved": False})

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> Debiasing:
        """Read what `save` wrote.

        Raises:
            StoreError: As for `Result.load`.
        """
        debiasing = super().load(folder)
        with cls._kind().reading(cls._files(Path(folder))[1]):
            return replace(debiasing, classification=Classification(**debiasing.card["classification"]))

    @property
    def ablated(self) -> tuple[Component, ...]:
        """The first `k` components."""
        return tuple(self.components[place] for place in self.order[: self.k])

    def table(self) -> pa.Table:
        """One row for each way to choose components and each number of them: the worst, the average and all groups."""
        rows = []
        ways = [
            ("ranked", self.curve),
            *(("random", curve) for curve in self.random),
            ("greedy with groups", self.best),
        ]
        for number, (way, curve) in enumerate(ways):
            for k, groups in enumerate(curve):
                worst = groups.accuracies[groups.worst_group]
                row: dict[str, object] = {
                    "model": self.model,
                    "components": way,
                    "draw": number - 1 if way == "random" else None,
                    "k": k,
                    "worst": groups.worst,
                    "worst_low": worst.interval[0],
                    "worst_high": worst.interval[1],
                    "worst_group": groups.worst_group,
                    "average": groups.average,
                }
                row |= {f"group {name}": accuracy.value for name, accuracy in groups.accuracies.items()}
                rows.append(row)
        return pa.Table.from_pylist(rows)

    def about(self) -> dict[str, Any]:
        """The card, which components were ablated, and how many would be."""
        return {
            **self.card,
            "by": self.by,
            "protocol": self.protocol,
            "k": self.k,
            "k chosen without groups": self.chosen,
            "ablated": [str(component) for component in self.ablated],
            "order": [str(self.components[place]) for place in self.order],
            "greedy with groups": [str(self.components[place]) for place in self.best_order],
        }

    def with_checkpoint(self, about: Mapping[str, Any]) -> Debiasing:
        """The same, and on its card what is known of a checkpoint that it was written to."""
        return replace(self, card={**self.card, "checkpoint": dict(about)})

    def figure(self) -> Figure:
        """Accuracy of the worst and the average group as components are ablated, beside the controls."""
        panels = {}
        for what in ("worst", "average"):
            ranked, best = ([getattr(groups, what) for groups in curve] for curve in (self.curve, self.best))
            random = np.array([[getattr(groups, what) for groups in curve] for curve in self.random])
            low, high = np.quantile(random, [0.05, 0.95], axis=0).tolist()
            panels[f"{what} group"] = [
                Curve("by words", ranked, mark=self.k),
                Curve("greedy with groups", best),
                Curve("at random", random.mean(0).tolist(), low, high, faint=True),
            ]
        title = f"{self.model}: accuracy told by {BY[self.by]}, {self.protocol} ranking"
        return curves_figure(panels, title=title, across="components ablated", up="accuracy")

    def told(self) -> list[RenderableType]:
        """Each group before and after, beside the controls."""
        before, after = self.curve[0], self.curve[self.k]
        best = self.best[min(self.k, len(self.best) - 1)]
        random = [curve[min(self.k, len(curve) - 1)] for curve in self.random]
        rows: list[list[str | Text]] = []
        for name, accuracy in before.accuracies.items():
            drawn = float(np.mean([groups.accuracies[name].value for groups in random]))
            low, high = after.accuracies[name].interval
            rows.append(
                [
                    f"{name} ({accuracy.images:,})",
                    f"{accuracy.value:.3f}",
                    f"{after.accuracies[name].value:.3f} ({low:.3f} ... {high:.3f})",
                    f"{drawn:.3f}",
                    f"{best.accuracies[name].value:.3f}",
                ]
            )
        for what in ("worst", "average"):
            drawn = float(np.mean([getattr(groups, what) for groups in random]))
            cells = [f"{getattr(groups, what):.3f}" for groups in (before, after)]
            rows.append([Text(f"{what} group", "bold"), *cells, f"{drawn:.3f}", f"{getattr(best, what):.3f}"])
        columns = {name: "right" for name in ("before", f"{self.k} ablated", "random", "greedy with groups")}
        title = f"{self.model}: accuracy by group, told by {BY[self.by]}"
        gone = ", ".join(map(str, self.ablated)) or "nothing"
        return [rich_table(title, {"": "left", **columns}, rows), Text(f"\nablated: {gone}")]


def candidates(components: Sequence[Component]) -> list[int]:
    """What may be ablated: everything but biases, which hardly vary, and what was not resolved."""
    return [place for place, component in enumerate(components) if component.kind not in ("bias", "rest", "lumped")]


def ranked(scores: Scores, spurious: str, core: str) -> tuple[int, ...]:
    """The components from the one that is most about the spurious feature, and least about the core one.

    Raises:
        ArgumentError: One of the features was not scored.
    """
    difference = scores.values[:, scores.column(spurious)] - scores.values[:, scores.column(core)]
    places = candidates(scores.components)
    return tuple(sorted(places, key=lambda place: (-float(difference[place]), place)))


@verb
def debias(
    sides: Sides,
    attribute: str,
    *,
    classification: Classification = Classification("probe"),  # noqa: B008  # it cannot be changed
    ranking: Ranking = Ranking(),
    k: int | None = K,
    draws: int = 20,
    seed: int = 0,
    on_progress: OnProgress = silent,
) -> Debiasing:
    """Ablate components in order, and tell every group of the test images after each.

    Ablated contributions are replaced by their mean over the images that are fitted to. How many to ablate can be
    chosen without knowing groups, on held-out images: the number for which those that the classifier tells right as it
    is and those that it tells wrong (under a bias, the ones out of place) are told best on average, both counting
    alike.

    Args:
        sides: The images.
        attribute: The field that has what misleads.
        classification: How classes are told.
        ranking: In what order components are ablated.
        k: How many to report; None for the number chosen without groups.
        draws: How often components are drawn at random, as a control.
        seed: The seed of these draws, and of scores.
        on_progress: Called after each step of all curves.

    Raises:
        DataError: A group has no images, or classes are unknown.
        ArgumentError: More components are asked for than there are, a feature is not there, or nothing leads to a text
            space.
    """
    order = ranking.made(sides, classification, seed)
    if k is not None and not 0 <= k <= len(order):
        raise ArgumentError(f"k must be from 0 to {len(order)}, got {k}.", cure="ask for fewer components")
    if draws < 1:
        raise ArgumentError(f"draws must be at least 1, got {draws}.", cure="use 20")
    fitted, held_out, test = sides.views
    classifier = classification.fitted(fitted)
    fitted, held_out, test = (classifier.seen(view) for view in (fitted, held_out, test))
    most, places = min(max(ranking.most, k or 0), len(order)), candidates(test.components)
    size = min(most, len(places))
    means = fitted.mean()
    measured = _Told(test, classifier, means, classification.label, attribute)
    guided = _Told(held_out, classifier, means, classification.label, attribute)
    done, count = 0, (most + 1) * 2 + draws * (size + 1) + size

    def step() -> None:
        nonlocal done
        done += 1
        on_progress("ablating components", done, count)

    curve = measured.curve(order[:most], step)
    right = [guided.right(sums) for sums in guided.sums(order[:most], step)]
    number = int(np.argmax([balanced(right[0], after) for after in right]))
    rng = np.random.default_rng(seed)
    random = tuple(measured.curve(rng.choice(places, size, replace=False).tolist(), step) for _ in range(draws))
    best = _greedy(guided, places, size, step)
    return Debiasing(
        test.model,
        classifier.by,
        test.components,
        tuple(order),
        curve,
        number,
        number if k is None else k,
        random,
        measured.curve(best, lambda: None),
        tuple(best),
        "published" if ranking.published else "held-out",
        classification,
        card=view_card(test)
        | {"label": classification.label, "attribute": attribute, "classification": _said(classification)},
    )


def _said(classification: Classification) -> dict[str, Any]:
    """How classes are told, ready for JSON; without a text space that lies in memory."""
    space = classification.space
    phrases = {name: list(several) for name, several in classification.phrases.items()}
    place = fspath(space) if isinstance(space, (str, PathLike)) else None
    return {**vars(classification), "space": place, "phrases": phrases}


class _Told:
    """Images of one side, whose groups are told with some components ablated."""

    def __init__(
        self,
        view: View,
        classifier: Classifier,
        means: Float[Tensor, "component dim"],
        label: str,
        attribute: str,
    ) -> None:
        self.view, self.classifier, self.means = view, classifier, means
        self.names, self.groups, self.codes = groups_of(view, classifier, label, attribute)

    def sums(self, order: Sequence[int], on_step: Callable[[], None]) -> Iterator[Tensor]:
        """The sums with none ablated, the first, the first two, ..."""
        total = self.view.representation
        yield total
        on_step()
        for component in order:
            total = total - self.change(component)
            yield total
            on_step()

    def change(self, component: int) -> Float[Tensor, "image dim"]:
        """What the sums lose with a component."""
        return change(self.view, component, self.means)

    def right(self, sums: Float[Tensor, "image dim"]) -> np.ndarray:
        """Which images are told right."""
        return self.classifier.predicted(sums) == self.codes

    def told(self, sums: Float[Tensor, "image dim"]) -> Groups:
        """How well each group is told."""
        return grouped(self.right(sums), self.names, self.groups)

    def curve(self, order: Sequence[int], on_step: Callable[[], None]) -> tuple[Groups, ...]:
        """How well each group is told with none ablated, the first, the first two, ..."""
        return tuple(self.told(sums) for sums in self.sums(order, on_step))


def _greedy(guided: _Told, places: Sequence[int], count: int, on_step: Callable[[], None]) -> list[int]:
    """Components by the groups of held-out images: each time the one without which the worst group is told best."""
    total, left, order = next(guided.sums([], lambda: None)), list(places), list[int]()
    for _ in range(count):
        tried = [guided.told(total - guided.change(place)) for place in left]
        best = max(range(len(left)), key=lambda place: (tried[place].worst, tried[place].average))
        total = total - guided.change(left[best])
        order.append(left.pop(best))
        on_step()
    return order
