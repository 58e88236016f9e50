"""Retrieval by components: images that are alike in one property, or that a text names (Balasubramanian et al., 2024).

    found = attribute(seen, space, features)
    by_image(store, "0007.png", [choose(found, "colour", by="margin"), choose(found, "location", by="margin")])
    by_text(seen, space, "something red", [choose(found, "colour")])

Components are chosen by their scores for a feature, their contributions are summed, and images are ranked by cosine:
for an image before alignment, for a text in the text space.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from scipy.stats import rankdata
from torch import Tensor
from torch.nn.functional import normalize

from unweave.alignment import Aligned, embeddings
from unweave.attribution.scores import Attribution
from unweave.components import Component
from unweave.contributions import Contributions
from unweave.errors import ArgumentError, DataError
from unweave.extraction.extractor import Extractor
from unweave.images import ImageFile, batches
from unweave.store import Store
from unweave.tasks.index import Index
from unweave.text import TextSpace
from unweave.view import Rows

By = Literal["score", "margin"]
"""What components are ranked by: their score for a feature, or that less their highest score for another feature."""

_PAIRS = 2**24
"""Similarities in memory at a time."""


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


def choose(found: Attribution, feature: str, *, by: By = "score", k: int | None = None) -> Chosen:
    """Components for a feature, and as many as can be told from chance.

    The rule `interval` needs no labels: a component is chosen if its score is above chance (`Attribution.above`), if
    the whole bootstrap interval of the score lies above its chance interval, and, by margin, if it scores higher for
    this feature than for any other. Biases are never chosen.

    Args:
        found: Scores; on images that are not searched, if the choice shall be judged by the search.
        feature: One that was scored.
        by: `score`, as published for texts, or `margin`, as published for images.
        k: The first so many instead, whatever their scores.

    Raises:
        ArgumentError: The feature was not scored, or `by` is `margin` and there is no other.
        ArgumentError: No component passes the rule, or there are fewer than `k`.
    """
    column, values, ranked = _ranked(found, feature, by)
    if k is not None:
        return _chosen(found, feature, by, "count", ranked[: _possible(k, ranked)], values)
    told = found.above()[:, column] & (found.low[:, column] > found.chance_high[:, column])
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
    return _chosen(found, feature, by, "interval", places, values)


def choose_best(
    found: Attribution,
    feature: str,
    store: Store,
    field: str,
    *,
    by: By = "score",
    rows: Rows = None,
    level: str | None = None,
    most: int | None = None,
    probes: int = 500,
    seed: int = 0,
) -> Chosen:
    """Components for a feature, and as many as find images with the same value of a field best (the rule `best`).

    Of the rankings by the first 1, 2, ... components, before alignment and centred, the one with the highest mean
    average precision decides. Memory: `image x dim` numbers.

    Args:
        found, feature, by: As for `choose`.
        store: Images whose field is known, other than those that will be searched.
        field: What they should have in common.
        rows: Which of them; all if not given.
        level: Of the store; its first one if not given.
        most: Components at most; all but the biases if not given.
        probes: How many images are asked for, drawn at random.
        seed: Of that draw.

    Raises:
        DataError: As for `choose`.
        DataError: There is no such field, no two of the images have it in common, or the store has other components.
    """
    _, values, ranked = _ranked(found, feature, by)
    level = level or store.manifest.levels[0]
    if store.components(level) != found.components:
        raise DataError("The store has other components than were scored.", where=str(store.place))
    numbers, known = store.rows(rows), store.field(field)
    codes = _codes([known[row] for row in numbers], where=f"{store.place}, field `{field}`")
    asked = _asked(codes)
    asked = np.sort(np.random.default_rng(seed).permutation(asked)[:probes])
    ranked = ranked[: len(ranked) if most is None else _possible(most, ranked)]
    total, path = torch.zeros(len(numbers), store.manifest.dim), []
    for place in ranked:
        total += store.values([place], numbers, level=level)[:, 0].float()
        path.append(float(_precisions(normalize(total - total.mean(0), dim=1), codes, asked).mean()))
    count = int(np.argmax(path)) + 1
    return _chosen(found, feature, by, "best", ranked[:count], values, tuple(path))


def _ranked(found: Attribution, feature: str, by: By) -> tuple[int, Tensor, list[int]]:
    """The column of a feature, what components are ranked by, and their ranking without biases."""
    column = found.column(feature)
    values = (found.margins() if by == "margin" else found.scores)[:, column]
    order = torch.argsort(values, descending=True, stable=True).tolist()
    return column, values, [place for place in order if found.components[place].kind != "bias"]


def _possible(k: int, ranked: Sequence[int]) -> int:
    if not 1 <= k <= len(ranked):
        raise ArgumentError(
            f"{k} components cannot be chosen: there are {len(ranked)} that are no biases.",
            cure=f"use a number from 1 to {len(ranked)}",
        )
    return k


def _chosen(
    found: Attribution, feature: str, by: By, rule: Any, places: Sequence[int], values: Tensor, path: Any = ()
) -> Chosen:
    names = tuple(found.components[place] for place in places)
    return Chosen(feature, tuple(places), names, by, rule, tuple(values[list(places)].tolist()), path)


@dataclass(frozen=True, eq=False)
class Retrieved:
    """What was found by some components.

    Attributes:
        feature: What they were chosen for; None for the representation itself.
        components: Whose contributions were summed; empty for the representation itself.
        ids: The images, the nearest first.
        similarity: Their cosines.
    """

    feature: str | None
    components: tuple[Component, ...]
    ids: tuple[str, ...]
    similarity: tuple[float, ...]


def by_text(
    seen: Aligned,
    space: TextSpace,
    text: str,
    chosen: Sequence[Chosen],
    *,
    count: int = 10,
    centred: bool = True,
    on_images: Callable[[int], None] = lambda count: None,
) -> tuple[Retrieved, ...]:
    """The images that are nearest to a text: by the components for each feature, and last by the aligned sum of all.

    Memory: that of one index at a time (see `Index.build`).

    Args:
        seen: The images to search, in the text space.
        space: The text space.
        text: What is looked for, set into the space's templates.
        chosen: For each feature.
        count: Of images.
        centred: Whether the mean of the images is subtracted from each; the text is left as it is.
        on_images: As for `Index.build`.

    Raises:
        ArgumentError: The text cannot be encoded.
        StoreError: There are fewer than two images, or other components than those that were scored.
    """
    query = space.encode([text])
    found = []
    for one in (*chosen, None):
        places = None if one is None else _places(one, seen.components)
        index = Index.build(seen, places, centred=centred, on_images=on_images)
        hits = index.search(query, count)
        found.append(_retrieved(one, index, hits.rows[0], hits.similarity[0]))
    return tuple(found)


def by_image(
    store: Store,
    probe: str | os.PathLike[str] | Contributions,
    chosen: Sequence[Chosen],
    *,
    rows: Rows = None,
    level: str | None = None,
    count: int = 10,
    centred: bool = True,
    device: str = "cpu",
    on_images: Callable[[int], None] = lambda count: None,
) -> tuple[Retrieved, ...]:
    """The images that are most like one image: by the components for each feature, and last by the representation.

    The image itself is left out of what is found. Memory: that of one index at a time (see `Index.build`).

    Args:
        store: The images to search.
        probe: As for `probe_of`, or its contributions.
        chosen: For each feature.
        rows: Which images to search; all if not given.
        level: Of the store; its first one if not given.
        count: Of images.
        centred: Whether the mean of the images is subtracted from each, and from the probe.
        device: Where a new image is decomposed.
        on_images: As for `Index.build`.

    Raises:
        StoreError, DataError: As for `probe_of`; or there are fewer than two images, or other components than those
            that were scored.
    """
    level = level or store.manifest.levels[0]
    own = probe if isinstance(probe, Contributions) else probe_of(store, probe, level=level, device=device)
    found = []
    for one in (*chosen, None):
        places = None if one is None else list(_places(one, store.components(level)))
        index = Index.build(store, places, rows=rows, level=level, centred=centred, on_images=on_images)
        value = own.representation if places is None else own.values[:, places].float().sum(1)
        hits = index.search(index.query(value.float()), count + 1)
        others = hits.rows[0] != index.places.get(own.ids[0], -1)
        found.append(_retrieved(one, index, hits.rows[0][others][:count], hits.similarity[0][others][:count]))
    return tuple(found)


def _places(one: Chosen, components: Sequence[Component]) -> Sequence[int]:
    if tuple(components[place] for place in one.places if place < len(components)) != one.components:
        raise DataError(
            f"The store has other components than were scored for {one.feature!r}.",
            cure="score components of the same model, at the same level",
        )
    return one.places


def _retrieved(one: Chosen | None, index: Index, rows: Any, similarity: Any) -> Retrieved:
    names = tuple(index.ids[row] for row in rows)
    near = tuple(similarity.tolist())
    return Retrieved(None, (), names, near) if one is None else Retrieved(one.feature, one.components, names, near)


def probe_of(
    store: Store, image: str | os.PathLike[str], *, level: str | None = None, device: str = "cpu"
) -> Contributions:
    """The contributions for one image: those of the store, or, for a new image, of the store's model.

    Args:
        store: Whose model it is, and whose images may be named.
        image: An id of the store, or a file.
        level: Of the store; its first one if not given.
        device: Where a new image is decomposed.

    Raises:
        DataError: The image is neither in the store nor a file, or it cannot be read.
        DataError: The model has other weights now than when the store was written.
        ModelError: The model cannot be loaded.
    """
    level = level or store.manifest.levels[0]
    if image in store.ids:
        return store.read(rows=[str(image)], level=level)
    if not Path(image).is_file():
        raise DataError(
            "There is no such image, neither in the store nor as a file.",
            where=str(image),
            cure="name a file, or an id of the store",
        )
    extractor = Extractor(store.place, store.manifest, device=device)
    ((ids, tensors),) = batches(extractor.model, [ImageFile(str(image), Path(image))], 1, "raise")
    computed = extractor.computed(ids, list(tensors))
    return Contributions(
        torch.from_numpy(computed["values"][level]),
        store.components(level),
        ids,
        torch.from_numpy(computed["representation"]),
        torch.from_numpy(computed["error"]),
        store.manifest.tolerance,
        store.origin(level),
    )


def table(found: Sequence[Retrieved]) -> pa.Table:
    """One row for each image that was found; `feature` is empty for the representation itself."""
    rows = [
        {
            "feature": one.feature,
            "components": len(one.components) or None,
            "rank": rank,
            "id": name,
            "similarity": similarity,
        }
        for one in found
        for rank, (name, similarity) in enumerate(zip(one.ids, one.similarity, strict=True), 1)
    ]
    kinds = {"feature": pa.string(), "components": pa.int64(), "rank": pa.int64(), "id": pa.string()}
    return pa.Table.from_pylist(rows, pa.schema([*kinds.items(), ("similarity", pa.float64())]))


@dataclass(frozen=True)
class Precision:
    """Mean average precision of retrieval.

    Attributes:
        mean: Over the probes.
        low, high: Where 95 % of bootstrap samples of the probes lie.
        chance: What a random order would have, on average.
        probes: How many images were asked for.
    """

    mean: float
    low: float
    high: float
    chance: float
    probes: int


def precision(index: Index, values: Sequence[Any], *, samples: int = 400, seed: int = 0) -> Precision:
    """How well images of an index find those with the same value of a field.

    Each image is a probe, and all others are ranked; those with its value are relevant. An image without a value
    (None), or whose value no other has, is no probe, and stands in the rankings as one that is not relevant.

    Memory: 16 million similarities at a time.

    Args:
        index: Of these images.
        values: Of each image, in the order of the index.
        samples: Of the bootstrap over probes.
        seed: Of the bootstrap.

    Raises:
        ArgumentError: There is not one value for each image, or no two images have one in common.
    """
    if len(values) != len(index):
        raise ArgumentError(f"{len(values)} values do not belong to {len(index)} images.")
    codes = _codes(values, where="the field")
    asked = _asked(codes)
    found = _precisions(index.rows, codes, asked)
    draws = np.random.default_rng(seed).integers(len(found), size=(samples, len(found)))
    low, high = np.quantile(found[draws].mean(1), [0.025, 0.975])
    others, relevant = len(codes) - 1, np.bincount(codes[codes >= 0])[codes[asked]] - 1
    harmonic = float((1 / np.arange(1, others + 1)).sum())
    chance = (harmonic + (relevant - 1) / max(1, others - 1) * (others - harmonic)) / others
    return Precision(float(found.mean()), float(low), float(high), float(chance.mean()), len(asked))


def _codes(values: Sequence[Any], *, where: str) -> Int[np.ndarray, " image"]:
    """Values as numbers, -1 for none."""
    known: dict[Any, int] = {}
    codes = np.array([-1 if own is None else known.setdefault(own, len(known)) for own in values], np.int64)
    if not len(_asked(codes)):
        raise DataError("No two images have a value in common.", where=where, cure="use another field, or more images")
    return codes


def _asked(codes: Int[np.ndarray, " image"]) -> Int[np.ndarray, " probe"]:
    """Images whose value another image has, too."""
    counts = np.bincount(codes[codes >= 0], minlength=1)
    return np.flatnonzero((codes >= 0) & (counts[codes] > 1))


def _precisions(
    rows: Float[Tensor, "image dim"], codes: Int[np.ndarray, " image"], asked: Int[np.ndarray, " probe"]
) -> Float[np.ndarray, " probe"]:
    """The average precision of each probe."""
    labels, found = torch.from_numpy(codes), []
    ranks = torch.arange(1, len(rows), dtype=torch.float64)
    for part in torch.from_numpy(asked).split(max(1, _PAIRS // len(rows))):
        near = rows[part] @ rows.T
        near[torch.arange(len(part)), part] = -torch.inf  # the probe itself comes last, and is cut off
        order = near.argsort(dim=1, descending=True, stable=True)[:, :-1]
        relevant = (labels[order] == labels[part][:, None]).double()
        found.append((relevant.cumsum(1) / ranks * relevant).sum(1) / relevant.sum(1))
    return torch.cat(found).numpy()


@dataclass(frozen=True, eq=False)
class Agreement:
    """Whether components with high scores rank images as the text space's own image encoder does.

    Attributes:
        components, features: Rows and columns.
        agreement: Spearman's correlation over images between a component's aligned contributions along a phrase and
            the encoder's own embeddings along it, the mean over the phrases of the feature; NaN for a component that
            does not vary.
        within_components: For each component, Spearman's correlation of agreement and score over the features; NaN
            where there are fewer than three, or nothing varies.
        within_features: For each feature, the same over the components.
    """

    components: tuple[Component, ...]
    features: tuple[str, ...]
    agreement: Float[np.ndarray, "component feature"]
    within_components: Float[np.ndarray, " component"]
    within_features: Float[np.ndarray, " feature"]

    def summary(self) -> dict[str, dict[str, int | float]]:
        """Both distributions: how many values, their median and quartiles."""
        found: dict[str, dict[str, int | float]] = {}
        for name in ("within_components", "within_features"):
            values = getattr(self, name)
            values = values[np.isfinite(values)]
            quartiles = np.quantile(values, [0.25, 0.5, 0.75]) if len(values) else [np.nan] * 3
            own = dict(zip(("lower quartile", "median", "upper quartile"), map(float, quartiles), strict=True))
            found[name] = {"values": len(values), **own}
        return found


def agreement(
    seen: Aligned,
    space: TextSpace,
    found: Attribution,
    *,
    on_component: Callable[[int], None] = lambda count: None,
) -> Agreement:
    """The published measurement of text-based retrieval, one component at a time.

    Memory: three times `image x phrase` numbers, and the space's embeddings of the images.

    Args:
        seen: The store in the text space.
        space: The text space, whose own embeddings of the images are computed once and kept.
        found: Scores of its components.
        on_component: Called with the number of components that are done.

    Raises:
        DataError: The scores are of other components, or an image can no longer be read.
    """
    if seen.components != found.components:
        raise DataError("The store has other components than were scored.", where=str(seen.store.place))
    groups = list(found.features.values())
    directions = space.encode([phrase for phrases in groups for phrase in phrases])
    parts = [slice(end - len(own), end) for own, end in zip(groups, accumulate(map(len, groups)), strict=True)]
    own = normalize(embeddings(seen.store, space)[torch.from_numpy(seen.rows)], dim=1) @ directions.T
    theirs = _ranks(own.numpy())
    result = np.full((len(seen.components), len(parts)), np.nan)
    for component in range(len(seen.components)):
        along = seen.along(component, directions).numpy()
        if np.ptp(along, axis=0).max(initial=0) > 1e-6 * np.abs(along).max(initial=0):
            same = (_ranks(along) * theirs).mean(0)
            result[component] = [same[part].mean() for part in parts]
        on_component(component + 1)
    scores = found.scores.numpy()
    return Agreement(
        seen.components,
        tuple(found.features),
        result,
        np.array([_spearman(one, other) for one, other in zip(result, scores, strict=True)]),
        np.array([_spearman(one, other) for one, other in zip(result.T, scores.T, strict=True)]),
    )


def _ranks(values: Float[np.ndarray, "image column"]) -> Float[np.ndarray, "image column"]:
    """Ranks in each column, brought to mean 0 and deviation 1; zeros for a column that does not vary."""
    ranks = rankdata(values, axis=0)
    ranks = ranks - ranks.mean(0)
    return ranks / np.maximum(ranks.std(0), 1e-12)


def _spearman(one: Float[np.ndarray, " value"], other: Float[np.ndarray, " value"]) -> float:
    """Of the pairs in which both are known; NaN for fewer than three, or if one of the two does not vary."""
    known = np.isfinite(one)
    if known.sum() < 3 or not np.ptp(one[known]) or not np.ptp(other[known]):
        return float("nan")
    return float((_ranks(one[known][:, None]) * _ranks(other[known][:, None])).mean())
