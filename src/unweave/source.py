"""A source: what contributions are read from, by rows and columns. Plain records and protocols, below the views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.components import Component, Level
from unweave.errors import DataError
from unweave.loading import Loading

Rows = slice | Sequence[int] | Sequence[str] | Sequence[bool] | np.ndarray | Tensor | None
"""Images of a view: a slice, numbers, ids, or one truth value for each; None for all."""


@dataclass(frozen=True)
class Listed:
    """Images, as they were opened.

    Attributes:
        data, split, white, max_pixels: What `unweave.open_images` opens again.
        regions: The regions of each that rows are of; none where each row is a whole image.
        fingerprint: Of their ids and fields.
    """

    data: str
    split: str | None
    fingerprint: str
    white: float | int | None = None
    max_pixels: int | None = None
    regions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Origin:
    """Where contributions come from: what has to agree before two sets of them may be compared.

    Attributes:
        model: The model's id.
        weights_hash: The hash of its weights.
        preprocessing: How pictures became inputs, ready for JSON.
        level: How finely the branches were split.
        selection: The components asked for, as text; None for all.
        computed_in: The numbers that the model computed in.
        skipped: Images that were left out, each as (id, reason).
        loading: How the model is loaded again; None where it was made of a module.
        attention, nonlinear: The options of `plan` that they were made with.
        images: The image sets that the images are from, where they can be opened again.
        notes: What was taken for granted when the images were read.
    """

    model: str
    weights_hash: str
    preprocessing: Mapping[str, object]
    level: Level
    selection: str | None = None
    computed_in: str = "float32"
    skipped: tuple[tuple[str, str], ...] = ()
    loading: Loading | None = None
    attention: Literal["through", "stop"] = "through"
    nonlinear: Literal["stop", "freeze"] = "stop"
    images: tuple[Listed, ...] = ()
    notes: tuple[str, ...] = ()


@runtime_checkable
class Source(Protocol):
    """What a view reads: one level of a store, or a batch in memory. Its text is the place that errors name."""

    @property
    def components(self) -> tuple[Component, ...]:
        """The components, in the order of their columns."""

    @property
    def ids(self) -> Sequence[str]:
        """The name of each image."""

    @property
    def dim(self) -> int:
        """The width of the representation."""

    @property
    def dtype(self) -> torch.dtype:
        """The numbers that contributions are kept in."""

    @property
    def origin(self) -> Origin | None:
        """The model and settings that the contributions come from, where they are known."""

    @property
    def tolerance(self) -> float:
        """The largest error of a sum that was allowed."""

    @property
    def fields(self) -> Mapping[str, str]:
        """What is known of the images, and its type."""

    def field(self, name: str) -> Sequence[Any]:
        """A field of all images."""

    def as_code(self) -> str:
        """The Python that opens a view of it again."""

    def as_options(self, name: str) -> list[str]:
        """The words of a command line that name it as an argument; an error where nothing does."""

    def level(self, name: str) -> Source:
        """The same images at another level."""

    def values(self, columns: Sequence[int], rows: Int[np.ndarray, " image"]) -> Float[Tensor, "image component dim"]:
        """Contributions, as they are kept."""

    def representation(self, rows: Int[np.ndarray, " image"]) -> Float[Tensor, "image dim"]:
        """What the model itself computed."""

    def error(self, rows: Int[np.ndarray, " image"]) -> Float[Tensor, " image"]:
        """The relative error of each image's sum."""

    def logits(self, rows: Int[np.ndarray, " image"]) -> Float[Tensor, "image class"]:
        """What the model's classifier made of it."""


@runtime_checkable
class Maps(Protocol):
    """What an aligner is to a view: a linear map for each component, and a bias that they share."""

    @property
    def maps(self) -> Float[Tensor, "component width dim"]:
        """The maps."""

    @property
    def bias(self) -> Float[Tensor, " dim"]:
        """What is added to the sum of all."""

    @property
    def components(self) -> tuple[Component, ...]:
        """The components that the maps are of."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """The model and the text space that they are of."""

    def places(self, components: Sequence[Component], origin: Origin | None) -> list[int]:
        """Which map each component has."""

    def as_code(self) -> str:
        """The Python that loads it again."""

    def as_options(self, name: str) -> list[str]:
        """The words of a command line that load it again."""


def numbered(rows: Rows, ids: Sequence[str], where: str) -> Int[np.ndarray, " image"]:
    """Rows as numbers.

    Args:
        rows: A slice, numbers, ids or truth values; None for all.
        ids: The names of the images that are chosen from.
        where: The place that an error names.

    Raises:
        DataError: There is no such row or id.
    """
    count = len(ids)
    if rows is None or isinstance(rows, slice):
        return np.arange(count)[slice(None) if rows is None else rows]
    if len(rows) and isinstance(rows[0], str):
        places = {name: row for row, name in enumerate(ids)}
        unknown = next((name for name in rows if name not in places), None)
        if unknown is not None:
            raise DataError(f"There is no image {unknown!r}.", where=where, cure="use one of its `ids`")
        return np.array([places[str(name)] for name in rows], np.int64)
    numbers = np.asarray(rows)
    if numbers.dtype == bool:
        if len(numbers) != count:
            raise DataError(
                f"{len(numbers)} truth values do not choose among {count} images.",
                where=where,
                cure="give one for each",
            )
        return np.flatnonzero(numbers)
    numbers = numbers.astype(np.int64).reshape(-1)
    outside = numbers[(numbers < -count) | (numbers >= count)]
    if len(outside):
        raise DataError(
            f"There are {count} images, so there is none with the number {outside[0]}.",
            where=where,
            cure=f"use numbers from 0 to {count - 1}",
        )
    return numbers % count if len(numbers) else numbers
