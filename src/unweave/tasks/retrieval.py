"""Retrieval by components: images that are alike in one property, or that a text names (Balasubramanian et al., 2024).

    unweave.search("out", image="0007.png", choice=Choice(["colour", "location"]), space="aligner")
    unweave.search("out", text="something red", choice=Choice(["colour"]), space="aligner")
    unweave.search("out", image="0007.png")                    # nearest by the whole representation

Components are chosen by their scores for a feature, their contributions are summed, and images are ranked by cosine:
for an image before alignment, for a text in the text space.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8
from matplotlib.figure import Figure
from rich.console import RenderableType
from rich.text import Text

from unweave.alignment import Space, aligned, view_card
from unweave.components import Component
from unweave.contributions import Contributions
from unweave.decomposition import plan
from unweave.errors import ArgumentError, DataError
from unweave.extraction import pictures
from unweave.figures import RetrievedRow, retrieval_figure
from unweave.images import ImageFile, Reading, batches, read_image, squares
from unweave.progress import OnProgress, silent
from unweave.results import Result, rich_table, verb
from unweave.store import Readable, view_of
from unweave.tasks.choice import Choice, Chosen
from unweave.tasks.classifier import model_of
from unweave.tasks.index import Index
from unweave.text import TextSpace
from unweave.view import View

_DRAWN = 8
"""Images of a row that are drawn."""


@dataclass(frozen=True, eq=False)
class Retrieved:
    """The images that were found by some components.

    Attributes:
        feature: The feature that they were chosen for; None for the representation itself.
        components: The components whose contributions were summed; empty for the representation itself.
        ids: The images, the nearest first.
        similarity: Their cosines.
        pictures: The middles of the first of them, as small squares; none where the images cannot be opened.
    """

    feature: str | None
    components: tuple[Component, ...]
    ids: tuple[str, ...]
    similarity: tuple[float, ...]
    pictures: UInt8[np.ndarray, "image side side 3"]

    @property
    def title(self) -> tuple[str, str]:
        """What the images should have in common, and by what they were found."""
        if self.feature is None:
            return "whole", "all components"
        return self.feature, f"{len(self.components)} component{'s' if len(self.components) > 1 else ''}"


@dataclass(frozen=True, eq=False, repr=False)
class Retrieval(Result):
    """What a search found.

    Attributes:
        rows: The images that were found by the components for each feature, and last by the whole representation.
        chosen: The components for each feature.
        text: The text that was looked for, or
        image: the image.
        probe: Its middle, as a small square.
    """

    name = "search"

    rows: tuple[Retrieved, ...]
    chosen: tuple[Chosen, ...]
    text: str | None
    image: str | None
    probe: UInt8[np.ndarray, "side side 3"] | None

    def about(self) -> dict[str, Any]:
        """The card, what was looked for, and the components for each feature."""
        features = {
            part.feature: {
                "by": part.by,
                "rule": part.rule,
                "components": {str(name): value for name, value in zip(part.components, part.values, strict=True)},
            }
            for part in self.chosen
        }
        return {**self.card, "text": self.text, "image": self.image, "features": features}

    def table(self) -> pa.Table:
        """One row for each image that was found; `feature` is empty for the representation itself."""
        rows = [
            {
                "feature": row.feature,
                "components": len(row.components) or None,
                "rank": rank,
                "id": name,
                "similarity": similarity,
            }
            for row in self.rows
            for rank, (name, similarity) in enumerate(zip(row.ids, row.similarity, strict=True), 1)
        ]
        kinds = {"feature": pa.string(), "components": pa.int64(), "rank": pa.int64(), "id": pa.string()}
        return pa.Table.from_pylist(rows, pa.schema([*kinds.items(), ("similarity", pa.float64())]))

    def figure(self) -> Figure:
        """A row of images for each feature, the nearest first.

        Raises:
            ArgumentError: The images could not be opened, so there is nothing to draw.
        """
        return retrieval_figure(
            [RetrievedRow(*row.title, row.pictures, row.similarity[: len(row.pictures)]) for row in self.rows],
            title=f"{self.card['model']}: nearest of {self.card['images']:,} images",
            text=self.text,
            probe=self.probe,
            caption=self.image or "",
        )

    def told(self) -> list[RenderableType]:
        """The images of each row, with their cosines."""
        tables: list[RenderableType] = []
        for row in self.rows:
            cells = [[name, f"{near:.3f}"] for name, near in zip(row.ids, row.similarity, strict=True)]
            title = "{}: {}".format(*row.title)
            tables += [rich_table(title, {"image": "left", "similarity": "right"}, cells), Text()]
        return tables


@verb
def search(
    source: Readable,
    *,
    text: str | None = None,
    image: str | os.PathLike[str] | Contributions | None = None,
    choice: Choice | Sequence[Chosen] = Choice(),  # noqa: B008  # it cannot be changed
    space: Space = None,
    count: int = 10,
    centred: bool = True,
    on_progress: OnProgress = silent,
) -> Retrieval:
    """The images that are nearest to a text or to an image: by the components for each feature, and by all.

    Memory: that of one index at a time (see `Index.build`).

    Args:
        source: A store or its folder, a view of one, or a batch in memory: the images to search.
        text: What is looked for, set into the space's templates; or
        image: an image: its id among those of the source, a file, or its contributions. It is left out of the results.
        choice: The features that components are chosen for, and how; or components that were chosen already.
        space: What brings components into a text space (see `unweave.alignment.Space`); not needed for an image if no
            components are to be chosen.
        count: How many images are found for each feature.
        centred: Whether the mean of the images is subtracted from each, and from the probe; a text is left as it is.
        on_progress: Called as components are scored and images are summed.

    Raises:
        ArgumentError: Neither a text nor an image is given, or both; there is no such feature; no component passes the
            rule.
        DataError: There is no such image, it cannot be read, or there are fewer than two to search.
        ModelError: The model cannot be loaded, or has other weights now.
    """
    if (text is None) == (image is None):
        raise ArgumentError("A search is for a text, or for an image.", cure="give one of `text` and `image`")
    if count < 1:
        raise ArgumentError(f"count must be at least 1, got {count}.", cure="use 10")
    view, words = view_of(source), None
    if text is not None or (isinstance(choice, Choice) and choice.features):
        view, words = aligned(view, space)
    query = words.encode([text]) if words is not None and text is not None else None
    probe = None if image is None else probe_of(view.through(None), image)
    chosen = _chosen(choice, view, words, "score" if probe is None else "margin", on_progress)
    searched = view if query is not None else view.through(None)
    rows = []
    for part in (*chosen, None):
        summed = searched if part is None else searched.select(_places(part, searched.components))
        index = Index.build(summed, representation=part is None, centred=centred, on_progress=on_progress)
        if query is not None:
            hits = index.search(query, count)
            places, near = hits.rows[0], hits.similarity[0]
        else:
            assert probe is not None
            whole = probe.select(_places(part, probe.components)).sum() if part is not None else probe.representation
            hits = index.search(index.query(whole), count + 1)
            others = hits.rows[0] != index.places.get(probe.ids[0], -1)
            places, near = hits.rows[0][others][:count], hits.similarity[0][others][:count]
        rows.append(
            Retrieved(
                None if part is None else part.feature,
                () if part is None else part.components,
                tuple(index.ids[place] for place in places),
                tuple(near.tolist()),
                _squares(searched.rows(places[:_DRAWN])),
            )
        )
    name = None if image is None else os.fspath(image) if not isinstance(image, Contributions) else image.ids[0]
    card = view_card(view, words) | {"centred": centred}
    return Retrieval(tuple(rows), chosen, text, name, _probe_square(view, name), card=card)


def _chosen(
    choice: Choice | Sequence[Chosen], view: View, words: TextSpace | None, by: str, on_progress: OnProgress
) -> tuple[Chosen, ...]:
    if not isinstance(choice, Choice):
        return tuple(choice)
    if words is None:
        return ()
    return choice.made(view, words, by, on_progress)  # type: ignore[arg-type]


def _places(chosen: Chosen, components: Sequence[Component]) -> list[int]:
    if tuple(components[place] for place in chosen.places if place < len(components)) != chosen.components:
        raise DataError(
            f"The images have other components than were scored for {chosen.feature!r}.",
            cure="score components of the same model, at the same level",
        )
    return list(chosen.places)


def _squares(view: View) -> UInt8[np.ndarray, "image side side 3"]:
    """The images of a view, as small squares; none where they cannot be opened."""
    if view.origin is None or not view.origin.images:
        return squares([])
    try:
        return squares([picture.read() for picture in pictures(view)])
    except DataError:
        return squares([])


def _probe_square(view: View, image: str | None) -> UInt8[np.ndarray, "side side 3"] | None:
    if image is None:
        return None
    if image in view.source.ids:
        found = _squares(View.of(view.source).rows([image]))
        return found[0] if len(found) else None
    return squares([read_image(image)])[0] if Path(image).is_file() else None


def probe_of(view: View, image: str | os.PathLike[str] | Contributions) -> View:
    """The contributions for one image: those of the source, or, for a new image, of the source's model.

    Args:
        view: The contributions, whose images may be named.
        image: An id, a file, or the contributions themselves.

    Raises:
        DataError: The image is neither among the source's nor a file, or it cannot be read.
        ModelError: The model cannot be loaded, or has other weights now than when the contributions were made.
    """
    if isinstance(image, Contributions):
        return image.view().rows([0])
    if image in view.source.ids:
        return View.of(view.source).rows([str(image)])
    if not Path(image).is_file():
        raise DataError(
            "There is no such image, neither among the contributions nor as a file.",
            where=str(image),
            cure="name a file, or an id of the store",
        )
    model, origin = model_of(view), view.origin
    assert origin is not None
    as_there = Reading(origin.images[0].white, origin.images[0].max_pixels) if origin.images else Reading()
    ((ids, tensors),) = batches(model, [ImageFile(str(image), Path(image), as_there)], 1, "raise")
    planned = plan(
        model,
        level=origin.level,
        select=origin.selection,
        attention=origin.attention,
        nonlinear=origin.nonlinear,
    )
    contributions = planned.run(tensors.to(model.device, model.dtype), ids)
    values = contributions.values.to("cpu", view.source.dtype)
    z = contributions.representation.cpu()
    return Contributions(values, view.whole().components, ids, z, contributions.error.cpu(), origin=origin).view()
