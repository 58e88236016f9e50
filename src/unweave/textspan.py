"""TextSpan: names for components (Gandelsman, Efros and Steinhardt, 2024, algorithm 1).

Of a vocabulary, the phrase is chosen along whose direction a component's aligned contributions vary most over the
images; that direction is taken out of the contributions and of all other phrases; and again. All of it follows from
the covariance of the contributions, so each component is read once, whatever the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from unweave.align import Aligned
from unweave.components import Component
from unweave.errors import ArgumentError
from unweave.text import TextSpace

_NOTHING = 1e-12
"""Shares of variance below this are rounding."""

_GONE = 1e-5
"""A phrase of which no more is left has been said by the phrases before it."""


@dataclass(frozen=True)
class Name:
    """A phrase that a component is named by.

    Attributes:
        phrase: The phrase.
        alone: The share of the component's variance along the phrase's direction.
        explained: The share along what is left of that direction within the component's own span, beyond the phrases
            before it. It flatters: in a span of one direction every phrase explains everything.
    """

    phrase: str
    alone: float
    explained: float


@dataclass(frozen=True, eq=False)
class Naming:
    """Names of one component.

    Attributes:
        component: Which.
        names: Phrases in the order in which they were chosen; none for a component that does not vary.
        variance: Of the aligned contributions over the images, summed over all directions.
        usual: `alone` of the median phrase of the vocabulary: what a name has to be compared with.
    """

    component: Component
    names: tuple[Name, ...]
    variance: float
    usual: float

    @property
    def explained(self) -> float:
        """The share of the variance that all names together explain."""
        return sum((name.explained for name in self.names), 0.0)

    @property
    def clarity(self) -> float:
        """How many times as much of the variance goes along the first name as along a usual phrase."""
        return self.names[0].alone / max(self.usual, _NOTHING) if self.names else 0.0


def spanned(
    covariance: Float[Tensor, "dim dim"], directions: Float[Tensor, "phrase dim"], count: int
) -> tuple[list[int], list[float], Float[Tensor, " phrase"]]:
    """The algorithm, for one component.

    Args:
        covariance: Of its aligned contributions, in float64.
        directions: Of the vocabulary, of length one.
        count: How many phrases to choose at most; fewer where nothing is left to explain.

    Returns:
        The phrases' places, the share of the variance that each explains, and the share that each phrase of the
        vocabulary explains alone.
    """
    values, vectors = torch.linalg.eigh(covariance)
    total = values.clamp_min(0).sum()
    if total <= 0:
        return [], [], torch.zeros(len(directions), dtype=covariance.dtype)
    span = vectors[:, values > 1e-7 * values[-1]]
    # In coordinates of the span: directions lose what lies outside of it. As all that is left of phrases is at a right
    # angle to those that were chosen, the covariance need not lose what they explain.
    texts, own = directions.to(covariance.dtype) @ span, span.T @ covariance @ span
    variance = ((texts @ own) * texts).sum(1)
    alone = variance / total
    places, shares = list[int](), list[float]()
    for _ in range(min(count, span.shape[1])):
        place = int(variance.argmax())
        length = float(texts[place].norm())
        if length < _GONE:
            break
        direction = texts[place] / length
        share = float(direction @ own @ direction / total)
        if share <= _NOTHING:
            break
        places.append(place)
        shares.append(share)
        texts = texts - torch.outer(texts @ direction, direction)
        variance = ((texts @ own) * texts).sum(1)
        variance[texts.norm(dim=1) < _GONE] = 0
    return places, shares, alone


def textspan(
    seen: Aligned,
    space: TextSpace,
    vocabulary: Sequence[str],
    *,
    count: int = 5,
    on_component: Callable[[int], None] = lambda done: None,
) -> list[Naming]:
    """Name every component.

    Memory: the directions of the vocabulary, and a few matrices of `width x width`.

    Args:
        seen: The store in the text space.
        space: Which has the directions of phrases.
        vocabulary: Phrases; one that comes twice counts once.
        count: Phrases for each component.
        on_component: Called with the number of components that are done.

    Raises:
        ArgumentError: The vocabulary is empty, a phrase cannot be encoded, or no phrase is asked for.
    """
    if count < 1:
        raise ArgumentError(f"{count} phrases name nothing.", cure="ask for one at least")
    phrases = list(dict.fromkeys(vocabulary))
    directions = space.encode(phrases).double()
    found = []
    for number, component in enumerate(seen.components):
        covariance = seen.covariance(number)
        places, shares, alone = spanned(covariance, directions, count)
        names = tuple(
            Name(phrases[place], float(alone[place]), share) for place, share in zip(places, shares, strict=True)
        )
        variance = float(covariance.diagonal().sum().clamp_min(0))
        found.append(Naming(component, names, variance, float(alone.median())))
        on_component(number + 1)
    return found


def clearest(namings: Sequence[Naming], count: int) -> list[Naming]:
    """Those whose first name stands out most from a usual phrase; biases, which hardly vary, are left out."""
    named = [own for own in namings if own.names and own.component.kind != "bias"]
    return sorted(named, key=lambda own: -own.clarity)[:count]


def extremes(
    seen: Aligned, component: int, direction: Float[Tensor, "1 dim"], most: int, least: int
) -> tuple[list[int], list[int]]:
    """The images, as rows of the store, in which a component writes most along a direction, and least.

    Args:
        seen: The store in the text space.
        component: Which, by its place.
        direction: In the text space.
        most, least: How many images of either kind; each image comes once at most.
    """
    along = seen.along(component, direction)[:, 0]
    order = torch.argsort(along, descending=True, stable=True).tolist()
    most = min(most, len(order))
    least = min(least, len(order) - most)
    rows = seen.rows[order].tolist()
    return rows[:most], rows[::-1][:least]


def table(namings: Sequence[Naming]) -> pa.Table:
    """One row for each component and phrase; a component without names has one row, with no phrase."""
    rows = []
    for own in namings:
        for rank, name in enumerate(own.names or (None,)):
            rows.append(
                {
                    "component": str(own.component),
                    "kind": own.component.kind,
                    "layer": own.component.layer,
                    "head": own.component.head,
                    "rank": rank + 1 if name else None,
                    "phrase": name.phrase if name else None,
                    "alone": name.alone if name else None,
                    "explained": name.explained if name else None,
                    "explained_by_all": own.explained,
                    "usual": own.usual,
                    "variance": own.variance,
                }
            )
    return pa.Table.from_pylist(rows)
