"""CompAttribute: how much each component has to do with a feature (Balasubramanian et al., 2024, section 4).

A feature is a group of phrases. With an orthonormal basis of their directions, a component's aligned contributions and
the aligned representation have coordinates along it; the score is the correlation of the two over the images, averaged
over the coordinates. All components and all features are scored in two passes over a store.

    scores = unweave.score(store, space="aligner")
    scores.values, scores.above()               # [component, feature]
    scores.top("location", 5)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from rich.console import RenderableType
from rich.text import Text
from scipy.stats import false_discovery_control
from torch import Tensor

from unweave.alignment import Space, aligned, view_card
from unweave.components import Component
from unweave.errors import ArgumentError, DataError
from unweave.figures import factors_figure
from unweave.progress import OnProgress, silent
from unweave.results import Result, rich_table, verb
from unweave.store import Readable
from unweave.text.phrases import Features

LEVEL = 0.05
"""How often chance may be taken for a finding."""

_FEWEST = 3
"""Images without which no correlation says anything."""

_SHOWN = 10
"""Components of a feature that are shown in a terminal."""

_CHUNK = 4096
"""Images that the bootstrap weighs at a time."""


@dataclass(frozen=True, eq=False, repr=False)
class Scores(Result):
    """Scores of components for features.

    Attributes:
        components: The rows.
        features: The columns, each with its phrases.
        values: Mean correlation, -1 ... 1; 0 for a component that does not vary.
        low, high: Where 95 % of bootstrap samples of the images lie.
        chance_low, chance_high: Where 95 % of the scores lie that the component would have if it had nothing to do with
            the rest of the model (see `score`).
        p: How often chance reaches the score.
        images: How many.
    """

    name = "scores"

    components: tuple[Component, ...]
    features: Mapping[str, tuple[str, ...]]
    values: Float[Tensor, "component feature"]
    low: Float[Tensor, "component feature"]
    high: Float[Tensor, "component feature"]
    chance_low: Float[Tensor, "component feature"]
    chance_high: Float[Tensor, "component feature"]
    p: Float[Tensor, "component feature"]
    images: int

    def above(self, level: float = LEVEL) -> Bool[Tensor, "component feature"]:
        """Which scores are above chance, so that at most a share `level` of those that are said to be is not (the false
        discovery rate over all components and features; Benjamini and Hochberg, 1995).
        """
        adjusted = false_discovery_control(self.p.double().numpy().ravel())
        return torch.from_numpy(adjusted.reshape(self.p.shape) <= level)

    def margins(self) -> Float[Tensor, "component feature"]:
        """Each score less the highest that the component has for another feature (as published for image retrieval).

        Raises:
            ArgumentError: There is only one feature.
        """
        if len(self.features) < 2:
            raise ArgumentError("One feature has no others to be compared with.", cure="score two features at least")
        best = self.values.topk(2, dim=1).values
        highest = torch.where(self.values == best[:, :1], best[:, 1:], best[:, :1])
        return self.values - highest

    def ranked(self, feature: str) -> list[int]:
        """The components from the highest score for a feature to the lowest.

        Raises:
            ArgumentError: The feature was not scored.
        """
        return torch.argsort(self.values[:, self.column(feature)], descending=True, stable=True).tolist()

    def top(self, feature: str, count: int = 5) -> list[Component]:
        """The components with the highest scores for a feature.

        Args:
            feature: A feature that was scored.
            count: How many components.
        """
        return [self.components[place] for place in self.ranked(feature)[:count]]

    def column(self, feature: str) -> int:
        """Which column a feature has.

        Raises:
            ArgumentError: It was not scored.
        """
        if feature not in self.features:
            raise ArgumentError(f"There is no feature {feature!r}.", cure=f"use one of {', '.join(self.features)}")
        return list(self.features).index(feature)

    def table(self) -> pa.Table:
        """One row for each component and feature."""
        above = self.above()
        margins = self.margins() if len(self.features) > 1 else None
        rows = [
            {
                "component": str(component),
                "kind": component.kind,
                "layer": component.layer,
                "head": component.head,
                "feature": feature,
                "score": float(self.values[row, column]),
                **{
                    name: float(getattr(self, name)[row, column])
                    for name in ("low", "high", "chance_low", "chance_high", "p")
                },
                "above_chance": bool(above[row, column]),
                "margin": None if margins is None else float(margins[row, column]),
            }
            for column, feature in enumerate(self.features)
            for row, component in enumerate(self.components)
        ]
        return pa.Table.from_pylist(rows)

    def about(self) -> dict[str, Any]:
        """The card, the features, and how many components are above chance for each."""
        above = self.above().sum(0).tolist()
        phrases = {name: list(words) for name, words in self.features.items()}
        return {**self.card, "features": phrases, "above_chance": dict(zip(self.features, above, strict=True))}

    def figure(self) -> Figure:
        """Layers by heads for each feature; what cannot be told from chance is grey."""
        above = self.above()
        return factors_figure(
            self.components,
            {name: self.values[:, column].tolist() for column, name in enumerate(self.features)},
            title=f"{self.card['model']}: scores for features, {self.images:,} images",
            label="score (mean correlation)",
            told={name: above[:, column].tolist() for column, name in enumerate(self.features)},
        )

    def told(self) -> list[RenderableType]:
        """The components with the highest scores for each feature."""
        above = self.above()
        tables: list[RenderableType] = []
        for column, feature in enumerate(self.features):
            rows: list[list[str | Text]] = []
            for row in self.ranked(feature)[:_SHOWN]:
                score, low, high, chance = (
                    float(getattr(self, name)[row, column]) for name in ("values", "low", "high", "chance_high")
                )
                cells = [str(self.components[row]), f"{score:.2f}", f"{low:.2f} ... {high:.2f}", f"{chance:.2f}"]
                rows.append([Text(cell, "" if above[row, column] else "dim") for cell in cells])
            title = f"{feature}: {int(above[:, column].sum())} of {len(self.components)} components above chance"
            columns = {"component": "left", "score": "right", "95 %": "right", "chance, at most": "right"}
            tables += [rich_table(title, columns, rows), Text()]
        return tables


def basis(directions: Float[Tensor, "phrase dim"]) -> Float[Tensor, "rank dim"]:
    """An orthonormal basis of directions, the one of their singular value decomposition: it depends neither on their
    order nor on phrases that come twice.
    """
    _, values, right = torch.linalg.svd(directions.double(), full_matrices=False)
    return right[values > 1e-5 * values[0]]


@verb
def score(
    source: Readable,
    features: Features = None,
    *,
    space: Space = None,
    seed: int = 0,
    samples: int = 400,
    on_progress: OnProgress = silent,
) -> Scores:
    """Score all components for features.

    *Intervals* are percentiles over samples of the images, drawn with replacement.

    *Chance.* The representation is the sum of its components, so a component correlates with it even if it has nothing
    to do with the rest. To keep that share, chance is computed by shifting the component's contributions over the
    images, in random order, by every possible number of places, and adding them to what the others say of the images
    unshifted: with c the component and r the rest, cor(shifted c, r + shifted c). All shifts are found at once by
    Fourier transforms, and with the identity they form a group, so the test is exact.

    Memory: twice `image x basis vectors` numbers and `samples x image` bytes.

    Args:
        source: A store or its folder, a view of one, or a batch in memory.
        features: Features by name, each with its phrases; or names of features that the text space knows, and phrases
            that stand alone; or a TOML file; the features that are shipped for the text space if not given.
        space: What brings components into a text space: an aligner or its folder, or the text space of a CLIP
            (see `unweave.alignment.Space`).
        seed: The seed of the samples, and of the random order.
        samples: How many samples the intervals are of.
        on_progress: Called after each component.

    Raises:
        ArgumentError: There are no features, or a phrase cannot be encoded.
        DataError: There are fewer than three images.
        AlignmentError: The aligner, the space and the contributions do not belong together.
    """
    view, words = aligned(source, space)
    named = words.features_of(features)
    images, components = len(view), view.components
    if images < _FEWEST:
        raise DataError(
            f"There are {images} images; a correlation needs {_FEWEST} at least.",
            where=str(view.source),
            cure="extract more images, or choose more",
        )
    bases = [basis(words.encode(list(phrases))) for phrases in named.values()]
    parts = [slice(end - len(own), end) for own, end in zip(bases, accumulate(map(len, bases)), strict=True)]
    directions = torch.cat(bases).float()
    whole = view.representation_along(directions, on_progress)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(images, generator=generator)
    counts = torch.stack([_drawn(images, generator) for _ in range(samples)])
    found = torch.zeros(len(components), len(named), 6)
    resampled = _Resampled(whole, counts)
    for component, part_of_view in enumerate(view.each()):
        own = part_of_view.along(directions)[:, 0]
        correlations, spread = resampled.correlations(own)
        for column, part in enumerate(parts):
            chance = _chance(_centred(own[order, part]), _centred(whole[order, part]))
            found[component, column] = torch.stack(
                [
                    correlations[part].mean(),
                    *spread[:, part].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)),
                    *torch.from_numpy(np.quantile(chance.numpy(), [0.025, 0.975])),
                    # Equal numbers may come out a rounding apart.
                    (chance >= chance[0] - 1e-9).double().mean(),
                ]
            )
        on_progress("scoring components", component + 1, len(components))
    values, low, high, chance_low, chance_high, p = found.unbind(-1)
    return Scores(components, named, values, low, high, chance_low, chance_high, p, images, card=view_card(view, words))


class _Resampled:
    """Correlations with the representation, over all images and over samples of them.

    Args:
        whole: The representation along the directions.
        counts: How often each image is in each sample.
    """

    def __init__(self, whole: Float[Tensor, "image direction"], counts: Tensor) -> None:
        self.whole, self.counts = _standard(whole), counts
        self.moments = torch.cat([self._sums(self.whole), self._sums(self.whole.square())], -1)

    def correlations(self, own: Float[Tensor, "image direction"]) -> tuple[Tensor, Tensor]:
        """`[direction]`, and `[sample, direction]`."""
        own, other = _standard(own), self.whole
        mean, square = self._sums(own), self._sums(own.square())
        both = self._sums(own * other)
        theirs, theirs_square = self.moments.chunk(2, -1)
        covariance = both - mean * theirs
        scale = ((square - mean**2).clamp_min(0) * (theirs_square - theirs**2).clamp_min(0)).sqrt()
        found = torch.where(scale > 1e-9, covariance / scale.clamp_min(1e-9), 0.0).clamp(-1, 1)
        return (own * other).mean(0), found

    def _sums(self, values: Tensor) -> Float[Tensor, "sample direction"]:
        """The mean over the images of each sample."""
        total = torch.zeros(len(self.counts), values.shape[1], dtype=torch.float64)
        for start in range(0, len(values), _CHUNK):
            part = slice(start, start + _CHUNK)
            total += self.counts[:, part].double() @ values[part]
        return total / self.counts.sum(1, dtype=torch.float64)[:, None]


def _drawn(images: int, generator: torch.Generator) -> Tensor:
    """How often each image is in a sample that is drawn with replacement."""
    draws = torch.randint(images, (images,), generator=generator)
    return torch.bincount(draws, minlength=images).clamp(max=255).to(torch.uint8)


def _centred(values: Tensor) -> Float[Tensor, "image direction"]:
    """Brought to mean 0, in float64; what does not vary but by its rounding, to 0."""
    values = values.double()
    centred = values - values.mean(0)
    varies = centred.abs().amax(0) > 1e-6 * values.abs().amax(0)
    return torch.where(varies, centred, 0.0)


def _standard(values: Tensor) -> Float[Tensor, "image direction"]:
    """Brought to mean 0 and, where it varies, to deviation 1."""
    centred = _centred(values)
    return centred / centred.square().mean(0).sqrt().clamp_min(1e-150)


def _chance(own: Float[Tensor, "image direction"], whole: Float[Tensor, "image direction"]) -> Float[Tensor, " shift"]:
    """The scores of a component that is shifted over the images, for all shifts, the first of which is none."""
    rest = whole - own
    shifted = torch.fft.irfft(torch.fft.rfft(own, dim=0).conj() * torch.fft.rfft(rest, dim=0), n=len(own), dim=0)
    squares = own.square().sum(0)
    scale = (squares * (rest.square().sum(0) + squares + 2 * shifted).clamp_min(0)).sqrt()
    varies = scale > 1e-12 * squares
    return torch.where(varies, (shifted + squares) / scale.clamp_min(1e-300), 0.0).mean(1)
