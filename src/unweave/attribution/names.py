"""TextSpan: names for components (Gandelsman, Efros and Steinhardt, 2024, algorithm 1).

Of a vocabulary, the phrase is chosen along whose direction a component's aligned contributions vary most over the
images; that direction is taken out of the contributions and of all other phrases; and again. All of it follows from
the covariance of the contributions, so each component is read once, whatever the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from rich.console import RenderableType
from rich.text import Text
from torch import Tensor

from unweave.alignment import Space, aligned, view_card
from unweave.components import Component
from unweave.errors import ArgumentError, DataError
from unweave.extraction import pictures
from unweave.figures import NamedComponent, names_figure
from unweave.images import ImageSet, squares
from unweave.progress import OnProgress, silent
from unweave.results import Result, rich_table, verb
from unweave.store import Readable
from unweave.text import TextSpace
from unweave.view import View

MOST, LEAST = 6, 3
"""Images of either kind beside a component."""

_SHOWN = 10
"""Components that are shown in a terminal."""

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
        component: The component.
        names: Phrases in the order in which they were chosen; none for a component that does not vary.
        variance: The variance of the aligned contributions over the images, summed over all directions.
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


@dataclass(frozen=True, eq=False)
class Shown:
    """A component beside the images that it writes most about.

    Attributes:
        component: The component.
        most, least: The images in which it writes most along its first name, and least.
        most_pictures, least_pictures: Their middles, as small squares.
    """

    component: Component
    most: tuple[str, ...]
    least: tuple[str, ...]
    most_pictures: UInt8[np.ndarray, "most side side 3"]
    least_pictures: UInt8[np.ndarray, "least side side 3"]


@dataclass(frozen=True, eq=False, repr=False)
class Names(Result):
    """Names of all components.

    Attributes:
        namings: One for each component.
        shown: The clearest of them, beside images.
    """

    name = "names"

    namings: tuple[Naming, ...]
    shown: tuple[Shown, ...] = ()

    def of(self, component: Component | str) -> Naming:
        """The names of one component.

        Raises:
            ArgumentError: There is no such component.
        """
        naming = next((each for each in self.namings if component in (each.component, str(each.component))), None)
        if naming is None:
            raise ArgumentError(
                f"There is no component {component!s}.", cure=f"use a name such as {self.namings[0].component}"
            )
        return naming

    def clearest(self, count: int) -> list[Naming]:
        """Those whose first name stands out most from a usual phrase; biases, which hardly vary, are left out."""
        return clearest(self.namings, count)

    def table(self) -> pa.Table:
        """One row for each component and phrase; a component without names has one row, with no phrase."""
        rows = [
            {
                "component": str(naming.component),
                "kind": naming.component.kind,
                "layer": naming.component.layer,
                "head": naming.component.head,
                "rank": rank + 1 if name else None,
                "phrase": name.phrase if name else None,
                "alone": name.alone if name else None,
                "explained": name.explained if name else None,
                "explained_by_all": naming.explained,
                "usual": naming.usual,
                "variance": naming.variance,
            }
            for naming in self.namings
            for rank, name in enumerate(naming.names or (None,))
        ]
        return pa.Table.from_pylist(rows)

    def figure(self) -> Figure:
        """The clearest components: their phrases, and the images in which they write most along the first, or least."""
        rows = [
            NamedComponent(
                str(shown.component),
                [(name.phrase, name.alone) for name in self.of(shown.component).names],
                self.of(shown.component).usual,
                shown.most_pictures,
                shown.least_pictures,
            )
            for shown in self.shown
        ]
        return names_figure(
            rows, title=f"{self.card['model']}: what components stand for, {self.card['images']:,} images"
        )

    def told(self) -> list[RenderableType]:
        """The clearest components and their phrases."""
        rows: list[list[str | Text]] = []
        for naming in self.clearest(_SHOWN):
            names = ", ".join(f"{name.phrase} ({100 * name.alone:.0f} %)" for name in naming.names)
            share = f"{100 * naming.usual:.1f} %", f"{100 * naming.explained:.0f} %"
            rows.append([str(naming.component), names, *share])
        columns = {"component": "left", "phrases": "left", "a usual phrase": "right", "all, in its span": "right"}
        title = "The clearest components, and the share of their variance along each phrase"
        left_out = self.card.get("pictures left out")
        return [rich_table(title, columns, rows), Text(f"\n{left_out}\n" if left_out else "")]


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


@verb
def label(
    source: Readable,
    vocabulary: Sequence[str] | str | PathLike[str] | None = None,
    *,
    phrases: int = 5,
    space: Space = None,
    top: int = 10,
    images: Sequence[ImageSet] = (),
    on_progress: OnProgress = silent,
) -> Names:
    """Name every component by phrases of a vocabulary.

    Memory: the directions of the vocabulary, and a few matrices of `width x width`.

    Args:
        source: A store or its folder, a view of one, or a batch in memory.
        vocabulary: Phrases, of which one that comes twice counts once; or a text file with one on each line; those that
            are shipped for the text space if not given.
        phrases: How many phrases each component is named by.
        space: What brings components into a text space: an aligner or its folder, or the text space of a CLIP
            (see `unweave.alignment.Space`).
        top: How many of the clearest components are put beside the images that they write most about; 0 for none. Where
            these can no longer be opened they are left out, and the card and the table say why.
        images: Image sets that have the images, for contributions that do not know where their images lie.
        on_progress: Called after each component.

    Raises:
        ArgumentError: The vocabulary is empty, a phrase cannot be encoded, or no phrase is asked for.
        DataError: There are no images.
        AlignmentError: The aligner, the space and the contributions do not belong together.
    """
    if phrases < 1:
        raise ArgumentError(f"phrases must be at least 1, got {phrases}.", cure="use 5")
    view, words = aligned(source, space)
    if not len(view):
        raise DataError("There are no images.", where=str(view.source), cure="choose some")
    asked, vocabulary = vocabulary, words.vocabulary_of(vocabulary)
    directions = words.encode(vocabulary).double()
    namings = []
    for number, part in enumerate(view.each(), 1):
        covariance = part.covariance()[0]
        places, shares, alone = spanned(covariance, directions, phrases)
        names = tuple(
            Name(vocabulary[place], float(alone[place]), share) for place, share in zip(places, shares, strict=True)
        )
        variance = float(covariance.diagonal().sum().clamp_min(0))
        namings.append(Naming(part.components[0], names, variance, float(alone.median())))
        on_progress("naming components", number, len(view.components))
    shipped = "shipped" if asked is None else str(asked) if isinstance(asked, (str, PathLike)) else "given"
    card = view_card(view, words) | {"phrases": len(vocabulary), "vocabulary": shipped}
    pictured = clearest(namings, top) if images or (view.origin is not None and view.origin.images) else []
    shown, unread = list[Shown](), list[DataError]()
    for naming in pictured:
        try:
            shown.append(_shown(view, words, naming, images))
        except DataError as error:  # the names are right without them
            unread.append(error)
    if unread:
        left_out = f"The pictures of {len(unread)} components were left out: {unread[0].what} At {unread[0].where}"
        card["pictures left out"] = f"{left_out}; {unread[0].cure}."
    return Names(tuple(namings), tuple(shown), card=card)


def _shown(view: View, space: TextSpace, naming: Naming, images: Sequence[ImageSet]) -> Shown:
    part = view.select([view.components.index(naming.component)])
    most, least = (part.rows(rows) for rows in extremes(part, space.encode([naming.names[0].phrase]), MOST, LEAST))
    return Shown(
        naming.component,
        most.ids,
        least.ids,
        *(squares(picture.read() for picture in pictures(side, images)) for side in (most, least)),
    )


def clearest(namings: Sequence[Naming], count: int) -> list[Naming]:
    """Those whose first name stands out most from a usual phrase; biases, which hardly vary, are left out."""
    named = [naming for naming in namings if naming.names and naming.component.kind != "bias"]
    return sorted(named, key=lambda naming: -naming.clarity)[:count]


def extremes(part: View, direction: Float[Tensor, "1 dim"], most: int, least: int) -> tuple[list[int], list[int]]:
    """The images, as rows of the view, in which a component writes most along a direction, and least.

    Args:
        part: A view of one component, in the text space.
        direction: The direction in the text space.
        most, least: How many images of either kind; each image comes once at most.
    """
    along = part.along(direction)[:, 0, 0]
    order = torch.argsort(along, descending=True, stable=True).tolist()
    most = min(most, len(order))
    least = min(least, len(order) - most)
    return order[:most], order[::-1][:least]
