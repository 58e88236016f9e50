"""How well images are retrieved: mean average precision by the values of a field, and agreement with a text space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import rankdata
from torch import Tensor
from torch.nn.functional import normalize

from unweave.alignment import embeddings
from unweave.attribution.scores import Scores
from unweave.components import Component
from unweave.errors import ArgumentError, DataError
from unweave.progress import OnProgress, silent
from unweave.tasks.index import Index
from unweave.text import TextSpace
from unweave.view import View

_PAIRS = 2**24
"""Similarities in memory at a time."""


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
    codes = codes_of(values, where="the field")
    asked = asked_of(codes)
    measured = precisions(index.rows, codes, asked)
    draws = np.random.default_rng(seed).integers(len(measured), size=(samples, len(measured)))
    low, high = np.quantile(measured[draws].mean(1), [0.025, 0.975])
    others, relevant = len(codes) - 1, np.bincount(codes[codes >= 0])[codes[asked]] - 1
    harmonic = float((1 / np.arange(1, others + 1)).sum())
    chance = (harmonic + (relevant - 1) / max(1, others - 1) * (others - harmonic)) / others
    return Precision(float(measured.mean()), float(low), float(high), float(chance.mean()), len(asked))


def codes_of(values: Sequence[Any], *, where: str) -> Int[np.ndarray, " image"]:
    """Values as numbers, -1 for none."""
    known: dict[Any, int] = {}
    codes = np.array([-1 if value is None else known.setdefault(value, len(known)) for value in values], np.int64)
    if not len(asked_of(codes)):
        raise DataError("No two images have a value in common.", where=where, cure="use another field, or more images")
    return codes


def asked_of(codes: Int[np.ndarray, " image"]) -> Int[np.ndarray, " probe"]:
    """Images whose value another image has, too."""
    counts = np.bincount(codes[codes >= 0], minlength=1)
    return np.flatnonzero((codes >= 0) & (counts[codes] > 1))


def precisions(
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
        rows: dict[str, dict[str, int | float]] = {}
        for name in ("within_components", "within_features"):
            values = getattr(self, name)
            values = values[np.isfinite(values)]
            quartiles = np.quantile(values, [0.25, 0.5, 0.75]) if len(values) else [np.nan] * 3
            quarters = dict(zip(("lower quartile", "median", "upper quartile"), map(float, quartiles), strict=True))
            rows[name] = {"values": len(values), **quarters}
        return rows


def agreement(view: View, space: TextSpace, scores: Scores, *, on_progress: OnProgress = silent) -> Agreement:
    """The published measurement of text-based retrieval, one component at a time.

    Memory: three times `image x phrase` numbers, and the space's embeddings of the images.

    Args:
        view: The contributions in the text space.
        space: The text space, whose own embeddings of the images are computed once and kept.
        scores: The scores of their components.
        on_progress: Called after each component.

    Raises:
        DataError: The scores are of other components, or an image can no longer be read.
    """
    if view.components != scores.components:
        raise DataError(
            "The images have other components than were scored.", where=str(view.source), cure="use the same"
        )
    groups = list(scores.features.values())
    directions = space.encode([phrase for phrases in groups for phrase in phrases])
    ends = accumulate(map(len, groups))
    parts = [slice(end - len(phrases), end) for phrases, end in zip(groups, ends, strict=True)]
    theirs = _ranks((normalize(embeddings(view.through(None), space), dim=1) @ directions.T).numpy())
    result = np.full((len(view.components), len(parts)), np.nan)
    for component, part_of_view in enumerate(view.each()):
        along = part_of_view.along(directions)[:, 0].numpy()
        if np.ptp(along, axis=0).max(initial=0) > 1e-6 * np.abs(along).max(initial=0):
            same = (_ranks(along) * theirs).mean(0)
            result[component] = [same[part].mean() for part in parts]
        on_progress("ranking images", component + 1, len(view.components))
    values = scores.values.numpy()
    return Agreement(
        view.components,
        tuple(scores.features),
        result,
        np.array([_spearman(first, second) for first, second in zip(result, values, strict=True)]),
        np.array([_spearman(first, second) for first, second in zip(result.T, values.T, strict=True)]),
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
