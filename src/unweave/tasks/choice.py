"""Choice: which components answer for a feature, and how many of them.

scores = unweave.score(view, ["colour", "location"])
choose(scores, "colour", by="margin").components
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from unweave.attribution.scores import Scores, score
from unweave.components import Component
from unweave.errors import ArgumentError, DataError
from unweave.progress import OnProgress, silent
from unweave.store import Readable, view_of
from unweave.tasks.precision import asked_of, codes_of, precisions
from unweave.text import TextSpace
from unweave.text.phrases import chosen
from unweave.view import View

By = Literal["score", "margin"]
"""What components are ranked by: their score for a feature, or that less their highest score for another feature."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """Components for a feature.

    Attributes:
        feature: Its name.
        places: Of the components, from the highest value to the lowest.
        components: The same by name.
        by: What they were ranked by.
        rule: How their number was decided: `interval` or `best`, or `count` where it was given.
        values: What each of them has of `by`.
        path: Under `best`, the mean average precision with the first 1, 2, ... components.
    """

    feature: str
    places: tuple[int, ...]
    components: tuple[Component, ...]
    by: By
    rule: Literal["interval", "best", "count"]
    values: tuple[float, ...]
    path: tuple[float, ...] = ()


@dataclass(frozen=True)
class Choice:
    """For which features components are chosen, and how.

    Attributes:
        features: Names of features that are scored; components are chosen for each.
        among: The features that are scored, by name, each with its phrases, or a TOML file of them; those that the text
            space knows if not given.
        by: `score`, as published for texts, or `margin`, as published for images; what is published for the query if
            not given.
        k: The number of components; as many as can be told from chance if not given.
        best: For some features a field: as many components as find images with the same value of it best.
        scored_on: Other images to score and choose on, of the same model; those that are searched if not given.
        samples, seed: The number of bootstrap samples, and the seed of all that is drawn.
    """

    features: Sequence[str] = ()
    among: Any = None
    by: By | None = None
    k: int | None = None
    best: Mapping[str, str] = field(default_factory=dict)
    scored_on: Readable | None = None
    samples: int = 400
    seed: int = 0

    def made(self, view: View, space: TextSpace, by: By, on_progress: OnProgress = silent) -> tuple[Chosen, ...]:
        """The components for each feature.

        Args:
            view: The images that are searched, in the text space.
            space: The text space.
            by: What components are ranked by, where the choice does not say it.
            on_progress: Called as components are scored.

        Raises:
            ArgumentError: There is no such feature, or no component passes the rule.
            DataError: The images to score on are of another model.
        """
        among = space.features_of(self.among)
        chosen(among, self.features)  # each of them is one that is scored
        unknown = next((name for name in self.best if name not in self.features), None)
        if unknown is not None:
            raise ArgumentError(f"No components are chosen for {unknown!r}.", cure="ask for that feature, too")
        scored_on = view if self.scored_on is None else view_of(self.scored_on)
        if view.origin is not None:
            scored_on = scored_on.level(view.origin.level)
        if view.aligner is not None:
            scored_on = scored_on.through(view.aligner)
        scores = score(scored_on, among, space=space, seed=self.seed, samples=self.samples, on_progress=on_progress)
        by = self.by or by
        return tuple(
            choose_best(scores, name, scored_on, self.best[name], by=by, most=self.k, seed=self.seed)
            if name in self.best
            else choose(scores, name, by=by, k=self.k)
            for name in self.features
        )


def choose(scores: Scores, feature: str, *, by: By = "score", k: int | None = None) -> Chosen:
    """Components for a feature, and as many as can be told from chance.

    The rule `interval` needs no labels: a component is chosen if its score is above chance (`Attribution.above`), if
    the whole bootstrap interval of the score lies above its chance interval, and, by margin, if it scores higher for
    this feature than for any other. Biases are never chosen.

    Args:
        scores: Scores; on images that are not searched, if the choice shall be judged by the search.
        feature: One that was scored.
        by: `score`, as published for texts, or `margin`, as published for images.
        k: The first so many instead, whatever their scores.

    Raises:
        ArgumentError: The feature was not scored, or `by` is `margin` and there is no other.
        ArgumentError: No component passes the rule, or there are fewer than `k`.
    """
    column, values, ranked = _ranked(scores, feature, by)
    if k is not None:
        return _chosen(scores, feature, by, "count", ranked[: _possible(k, ranked)], values)
    told = scores.above()[:, column] & (scores.low[:, column] > scores.chance_high[:, column])
    above = [place for place in ranked if told[place]]
    if not above:
        raise ArgumentError(
            f"No component is above chance for {feature!r}.",
            cure="score more images or other phrases, or say how many components to take",
        )
    places = [place for place in above if by == "score" or values[place] > 0]
    if not places:
        raise ArgumentError(
            f"{len(above)} components are above chance for {feature!r}, but each scores higher for another feature.",
            cure="choose by score, compare with other features, or say how many components to take",
        )
    return _chosen(scores, feature, by, "interval", places, values)


def choose_best(
    scores: Scores,
    feature: str,
    view: View,
    label: str,
    *,
    by: By = "score",
    most: int | None = None,
    probes: int = 500,
    seed: int = 0,
) -> Chosen:
    """Components for a feature, and as many as find images with the same value of a field best (the rule `best`).

    Of the rankings by the first 1, 2, ... components, before alignment and centred, the one with the highest mean
    average precision decides. Memory: `image x dim` numbers.

    Args:
        scores, feature, by: As for `choose`.
        view: Images whose field is known, other than those that will be searched.
        label: The field whose values they should have in common.
        most: The most components; all but the biases if not given.
        probes: How many images are asked for, drawn at random.
        seed: The seed of that draw.

    Raises:
        DataError: As for `choose`.
        DataError: There is no such field, no two of the images have it in common, or the store has other components.
    """
    _, values, ranked = _ranked(scores, feature, by)
    if view.components != scores.components:
        raise DataError(
            "The images have other components than were scored.", where=str(view.source), cure="use the same"
        )
    view = view.through(None)
    codes = codes_of(view.field(label), where=f"{view.source}, field `{label}`")
    asked = asked_of(codes)
    asked = np.sort(np.random.default_rng(seed).permutation(asked)[:probes])
    ranked = ranked[: len(ranked) if most is None else _possible(most, ranked)]
    total, path = torch.zeros(len(view), view.dim), []
    for place in ranked:
        total += view.select([place]).sum()
        path.append(float(precisions(normalize(total - total.mean(0), dim=1), codes, asked).mean()))
    count = int(np.argmax(path)) + 1
    return _chosen(scores, feature, by, "best", ranked[:count], values, tuple(path))


def _ranked(scores: Scores, feature: str, by: By) -> tuple[int, Tensor, list[int]]:
    """The column of a feature, what components are ranked by, and their ranking without biases."""
    column = scores.column(feature)
    values = (scores.margins() if by == "margin" else scores.values)[:, column]
    order = torch.argsort(values, descending=True, stable=True).tolist()
    return column, values, [place for place in order if scores.components[place].kind != "bias"]


def _possible(k: int, ranked: Sequence[int]) -> int:
    if not 1 <= k <= len(ranked):
        raise ArgumentError(
            f"{k} components cannot be chosen: there are {len(ranked)} that are no biases.",
            cure=f"use a number from 1 to {len(ranked)}",
        )
    return k


def _chosen(
    scores: Scores, feature: str, by: By, rule: Any, places: Sequence[int], values: Tensor, path: Any = ()
) -> Chosen:
    names = tuple(scores.components[place] for place in places)
    return Chosen(feature, tuple(places), names, by, rule, tuple(values[list(places)].tolist()), path)
