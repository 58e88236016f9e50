"""A store seen through an aligner: what its components say along directions of a text space, a component at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unweave.align.aligner import Aligner
from unweave.align.alignment import identical, is_own
from unweave.components import Component
from unweave.errors import AlignmentError, ArgumentError, DataError
from unweave.store import Rows, Store
from unweave.text import TextSpace, text_space

_BYTES = 2**27
"""Of a component's contributions, in memory at a time."""


@dataclass(frozen=True, eq=False)
class Aligned:
    """Contributions of a store in a text space.

    Nothing is held but what a call returns: a component is read in pieces of 128 MB and projected at once.

    Attributes:
        store: The contributions.
        aligner: What takes them to the text space.
        chosen: Which images; None for all.

    Raises:
        StoreError: The aligner is of another model, or there are no images.
    """

    store: Store
    aligner: Aligner
    chosen: Rows = None

    def __post_init__(self) -> None:
        """Refuse what does not belong together."""
        if not len(self.rows):
            raise DataError("No image was chosen.", where=str(self.store.place), cure="choose rows that there are")
        places = self.places
        if len(places) < len(self.aligner.components):
            raise AlignmentError(
                f"The store has {len(places)} of the aligner's {len(self.aligner.components)} components, which do not "
                "add up to the representation.",
                where=str(self.store.place),
                cure="extract all components",
            )

    @cached_property
    def rows(self) -> np.ndarray:
        """The images, as rows of the store."""
        return self.store.rows(self.chosen)

    @property
    def components(self) -> tuple[Component, ...]:
        """What there is a map for."""
        return self.store.components(self.level)

    @property
    def level(self) -> str:
        """At which level."""
        return str(self.aligner.identity["level"])

    @cached_property
    def places(self) -> list[int]:
        """The row of the aligner for each component."""
        return self.aligner.places(self.components, self.store.origin(self.level))

    def pieces(self, component: int) -> Iterator[tuple[slice, Float[Tensor, "image width"]]]:
        """A component's contributions, some images at a time, as the model wrote them."""
        size = max(1, _BYTES // (4 * self.store.manifest.dim))
        for start in range(0, len(self.rows), size):
            part = slice(start, min(start + size, len(self.rows)))
            yield part, self.store.values([component], self.rows[part], level=self.level)[:, 0].float()

    def along(self, component: int, directions: Float[Tensor, "direction dim"]) -> Float[Tensor, "image direction"]:
        """A component's aligned contributions along directions.

        Args:
            component: Which.
            directions: In the text space.
        """
        within = self.aligner.maps[self.places[component]] @ directions.T.to(self.aligner.maps.dtype)
        return torch.cat([values @ within for _, values in self.pieces(component)])

    def representation(
        self, directions: Float[Tensor, "direction dim"], on_component: Callable[[int], None] = lambda count: None
    ) -> Float[Tensor, "image direction"]:
        """The aligned representation along directions: the sum over all components, and the bias.

        Args:
            directions: In the text space.
            on_component: Called with the number of components that are added up.
        """
        total = (self.aligner.bias @ directions.T).expand(len(self.rows), -1).clone()
        for component in range(len(self.components)):
            total += self.along(component, directions)
            on_component(component + 1)
        return total

    def covariance(self, component: int) -> Float[Tensor, "dim dim"]:
        """Of a component's aligned contributions over the images, in float64."""
        width = self.store.manifest.dim
        total, squares = torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
        shift: Tensor | None = None
        for _, values in self.pieces(component):
            shift = values[0].double() if shift is None else shift  # sums of squares would lose digits to a large mean
            moved = values.double() - shift
            total += moved.sum(0)
            squares += moved.T @ moved
        mean = total / len(self.rows)
        own = squares / len(self.rows) - torch.outer(mean, mean)
        map_ = self.aligner.maps[self.places[component]].double()
        return map_.T @ own @ map_


def open_aligned(
    store: Store,
    aligner: str | os.PathLike[str] | None = None,
    space: str | None = None,
    *,
    templates: Sequence[str] | None = None,
    level: str | None = None,
    rows: Rows = None,
    device: str = "cpu",
) -> tuple[Aligned, TextSpace]:
    """A store in a text space, and the space: by an aligner, or as it is where its model is the space's own encoder.

    Args:
        store: The contributions.
        aligner: A folder that `align` wrote; it knows its text space.
        space: The id of a text space, where there is no aligner.
        templates: Sentences for phrases; those of the space if not given.
        level: Of the store, where there is no aligner; its first one if not given.
        rows: Which images; all if not given.
        device: Where the space computes.

    Raises:
        StoreError: Neither or both are given, or they do not belong together.
    """
    if (aligner is None) == (space is None):
        raise ArgumentError(
            "The components have to be brought into one text space.",
            cure="name the folder of an aligner; or, if the model is a CLIP itself, its text space",
        )
    if aligner is None:
        assert space is not None
        found = text_space(space, templates=templates, device=device)
        if not is_own(store, found):
            raise AlignmentError(
                f"The store's model, {store.manifest.model}, is not the image encoder of {space}.",
                where=str(store.place),
                cure="align it: `unweave align STORE --text-space ID`, then name the aligner",
            )
        return Aligned(store, identical(store, found, level), rows), found
    loaded = Aligner.load(aligner)
    own = loaded.identity
    found = text_space(own["space"], templates=templates, device=device, **own["space_loading"])
    if found.weights_hash != own["space_hash"]:
        raise AlignmentError(
            f"The text space {own['space']} has other weights now than when the aligner was fitted.",
            where=f"{aligner}, field `space_hash`",
            cure="align again",
        )
    return Aligned(store, loaded, rows), found
