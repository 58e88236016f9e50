"""A view: contributions of some images and some components, on disk or in memory, read when they are asked for.

    view = unweave.open_store("out").view()
    view.select("last:4").where("label=swan").mean()           # [component, dim]
    view.through(aligner).along(space.encode(["a dog"]))       # [image, component, direction], in the text space
    contributions.view().sum("kind:head")                      # [image, dim]

Choosing costs nothing: `select`, `where`, `rows`, `level` and `through` give another view of the same source. Numbers
are read by the methods that return them, a piece at a time, so that no more than `BUDGET` bytes of contributions are
in memory beside the result. Every task of unweave reads contributions through a view and in no other way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.components import Component, Selection, select
from unweave.errors import AlignmentError, ArgumentError, DataError
from unweave.progress import OnProgress, silent
from unweave.source import Maps, Origin, Rows, Source, numbered
from unweave.steps import Step, as_python, as_words

BUDGET = 2**28
"""Bytes of contributions, as float32, that a view has in memory at a time beside its result."""


@runtime_checkable
class Viewable(Protocol):
    """What has contributions: a store, a batch in memory, or a view."""

    def view(self) -> View:
        """All of them."""


@dataclass(frozen=True, eq=False)
class View:
    """Contributions of some images and components.

    Attributes:
        source: What is read.
        columns: The chosen components, as places in the source.
        numbers: The chosen images, as rows of the source.
        aligner: What takes each component to a text space; None for the model's own space.
        steps: How images and components were chosen: calls, each with its arguments.
    """

    source: Source
    columns: tuple[int, ...]
    numbers: Int[np.ndarray, " image"]
    aligner: Maps | None = None
    steps: tuple[Step, ...] = ()

    @classmethod
    def of(cls, source: Source) -> View:
        """Everything that a source has."""
        return cls(source, tuple(range(len(source.components))), np.arange(len(source.ids)))

    def view(self) -> View:
        """The view itself: whatever can be viewed has this method."""
        return self

    def as_code(self) -> str:
        """The Python that opens it again."""
        return self.source.as_code() + as_python(self.steps)

    def as_options(self, name: str) -> list[str]:
        """The words of a command line that open it again.

        Args:
            name: The argument that it is: `source`, or one beside it, of which a command line knows less.

        Raises:
            ArgumentError: A command line cannot say which images or components these are.
        """
        if list(self.columns) != sorted(set(self.columns)):
            raise ArgumentError("Components are chosen in an order of their own, which no option says.")
        return self.source.as_options(name) + as_words(self.steps, name, self.numbers, self.components)

    # -- choosing --------------------------------------------------------------------------------------------------

    def select(self, selection: Selection | Sequence[int]) -> View:
        """Only some of these components.

        Args:
            selection: A selection (see `unweave.components.Selection`), or places among these components.

        Raises:
            ArgumentError: The selection matches nothing, or there is no such place.
        """
        if isinstance(selection, (list, tuple, range)) and all(isinstance(part, int) for part in selection):
            outside = next((place for place in selection if not 0 <= place < len(self.columns)), None)
            if outside is not None or not selection:
                raise ArgumentError(
                    f"There is no component {outside} among {len(self.columns)}."
                    if selection
                    else "No component was chosen.",
                    where=str(self.source),
                    cure=f"use places from 0 to {len(self.columns) - 1}",
                )
            places: Sequence[int] = selection
        else:
            places = select(self.components, selection)  # type: ignore[arg-type]
        spelt = isinstance(selection, str) or (
            isinstance(selection, (list, tuple)) and all(isinstance(part, str) for part in selection)
        )
        said = selection if spelt else list(places)
        return self._step("select", said, columns=tuple(self.columns[place] for place in places))

    def where(self, *conditions: str, **values: object) -> View:
        """Only images for which every condition holds.

        Args:
            conditions: `FIELD=VALUE`, values compared as text.
            values: Fields by keyword, such as `label="swan"`.

        Raises:
            ArgumentError: A condition is not of this form.
            DataError: There is no such field, or no image has the value.
        """
        chosen = np.ones(len(self), bool)
        pairs = [_condition(condition) for condition in conditions]
        for name, value in [*pairs, *values.items()]:
            known = self.field(name)
            alike = np.array([str(entry) == str(value) for entry in known], bool)
            if not alike.any():
                some = sorted({str(entry) for entry in known if entry is not None})
                more = f", ... ({len(some)} in all)" if len(some) > 12 else ""
                raise DataError(
                    f"No image has the {name} {str(value)!r}.",
                    where=str(self.source),
                    cure=f"use one of {', '.join(some[:12])}{more}",
                )
            chosen &= alike
        if not chosen.any():
            raise DataError(
                f"No image has {' and '.join(f'{name}={value}' for name, value in [*pairs, *values.items()])} at once.",
                where=str(self.source),
                cure="leave out one of the conditions",
            )
        asked = [f"{name}={value}" for name, value in (*pairs, *values.items())]
        return self._step("where", *asked, numbers=self.numbers[chosen])

    def rows(self, rows: Rows) -> View:
        """Only some of these images.

        Args:
            rows: A slice, row numbers of this view, ids, or a truth value for each image.

        Raises:
            DataError: There is no such image.
        """
        return self._step("rows", rows, numbers=self.numbers[numbered(rows, self.ids, str(self.source))])

    def without(self, other: View) -> View:
        """Only the images that another view does not have."""
        taken = set(other.ids)
        return self.rows(np.array([name not in taken for name in self.ids], bool))

    def split(self, share: float = 0.5, seed: int = 0) -> tuple[View, View]:
        """Two views that have no image in common. The side of an image follows from its id alone, so that it is on the
        same side in every store.

        Args:
            share: The share of images in the second view.
            seed: Another seed deals them out anew.
        """
        hashes = (hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:8] for name in self.ids)
        second = np.array([int.from_bytes(digest, "big") < share * 2**64 for digest in hashes], bool)
        first, other = (
            self._step("split", share, seed, place, numbers=self.numbers[side])
            for place, side in enumerate((~second, second))
        )
        return first, other

    def level(self, name: str) -> View:
        """All components of the same images at another level, in the model's own space; the view itself where it is at
        that level already, or where nothing says at which it is.

        Raises:
            StoreError: The source does not have this level.
        """
        if self.origin is None or self.origin.level == name:
            return self
        source = self.source.level(name)
        columns = tuple(range(len(source.components)))
        images = (step for step in self.steps if step[0] not in ("select", "through", "level"))
        return replace(self, source=source, columns=columns, aligner=None, steps=(*images, ("level", (name,))))

    def through(self, aligner: Maps | None) -> View:
        """The same contributions in the text space that an aligner leads to; None for the model's own space.

        Raises:
            AlignmentError: The aligner is of another model or level, or has no map for one of the components.
        """
        view = self._step("through", aligner, aligner=aligner)
        if aligner is not None:
            _ = view._maps
        return view

    def _step(self, name: str, *arguments: Any, **changes: Any) -> View:
        return replace(self, steps=(*self.steps, (name, arguments)), **changes)

    # -- what it is ------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.numbers)

    @cached_property
    def components(self) -> tuple[Component, ...]:
        """The chosen components."""
        return tuple(self.source.components[column] for column in self.columns)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """The names of the chosen images."""
        names = self.source.ids
        return tuple(names[row] for row in self.numbers.tolist())

    @property
    def dim(self) -> int:
        """The width of a contribution, in the space that the view is in."""
        return self.source.dim if self.aligner is None else int(self.aligner.maps.shape[2])

    @property
    def origin(self) -> Origin | None:
        """The model and settings that the contributions come from, where they are known."""
        return self.source.origin

    @property
    def model(self) -> str:
        """The id of the model."""
        return self.origin.model if self.origin is not None else "a model"

    @property
    def fields(self) -> Mapping[str, str]:
        """What is known of the images, and its type."""
        return self.source.fields

    def field(self, name: str) -> list[Any]:
        """A field of the chosen images.

        Raises:
            DataError: There is no such field.
        """
        values = self.source.field(name)
        return [values[row] for row in self.numbers.tolist()]

    def whole(self) -> View:
        """The same images with all components of the source."""
        return replace(self, columns=tuple(range(len(self.source.components))))

    @property
    def is_whole(self) -> bool:
        """Whether all components of the source are chosen."""
        return len(set(self.columns)) == len(self.source.components)

    @cached_property
    def _maps(self) -> list[int]:
        """The aligner's map for each of the chosen components."""
        assert self.aligner is not None
        return self.aligner.places(self.components, self.origin)

    def __repr__(self) -> str:
        space = "" if self.aligner is None else ", aligned"
        return f"View({self.source}, {len(self)} images, {len(self.columns)} components, {self.dim} dim{space})"

    # -- numbers ---------------------------------------------------------------------------------------------------

    def batches(self, size: int | None = None) -> Iterator[View]:
        """Views of consecutive images.

        Args:
            size: Images in each; as many as fit into `BUDGET` if not given.
        """
        size = size or max(1, BUDGET // (4 * len(self.columns) * self.source.dim))
        for start in range(0, len(self), size):
            yield replace(self, numbers=self.numbers[start : start + size])

    def each(self) -> Iterator[View]:
        """A view for each component, which a store reads without touching the others."""
        for column in self.columns:
            yield replace(self, columns=(column,))

    def values(self) -> Float[Tensor, "image component dim"]:
        """The contributions, in float32 or wider; memory for all of them at once."""
        values = self.source.values(self.columns, self.numbers)
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        if self.aligner is None:
            return values
        return torch.einsum("ncw,cwd->ncd", values.to(self.aligner.maps.dtype), self.aligner.maps[self._maps])

    def sum(self, selection: Selection = None) -> Float[Tensor, "image dim"]:
        """The sum of components, without the aligner's bias.

        Args:
            selection: Some of the chosen components; all if not given.
        """
        view = self if selection is None else self.select(selection)
        total = torch.zeros(len(self), self.dim)
        for part in view.each():
            total += part._reduced(lambda values: values)
        return total

    def mean(self) -> Float[Tensor, "component dim"]:
        """The mean of each component over the images.

        Raises:
            DataError: There are no images.
        """
        if not len(self):
            raise DataError("There are no images to take means of.", where=str(self.source), cure="choose some")
        total = torch.zeros(len(self.columns), self.source.dim, dtype=torch.float64)
        for part in replace(self, aligner=None).batches():
            total += part.source.values(part.columns, part.numbers).double().sum(0)
        means = (total / len(self)).float()
        if self.aligner is None:
            return means
        return torch.einsum("cw,cwd->cd", means.to(self.aligner.maps.dtype), self.aligner.maps[self._maps])

    def along(self, directions: Float[Tensor, "direction dim"]) -> Float[Tensor, "image component direction"]:
        """What each component says along directions of the space that the view is in."""
        parts = []
        for number, part in enumerate(self.each()):
            within = directions.T
            if self.aligner is not None:
                maps = self.aligner.maps
                within = maps[self._maps[number]] @ directions.T.to(maps.dtype)
            parts.append(replace(part, aligner=None)._reduced(partial(torch.matmul, other=within)))
        return torch.stack(parts, 1)

    def covariance(self) -> Float[Tensor, "component dim dim"]:
        """The covariance of each component's contributions over the images, in float64.

        Memory: `component x dim x dim` doubles; ask `each` component where that is too much.

        Raises:
            DataError: There are no images.
        """
        if not len(self):
            raise DataError("There are no images to take covariances over.", where=str(self.source), cure="choose some")
        covariances = []
        for number, part in enumerate(self.each()):
            width = self.source.dim
            total, squares = torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
            shift: Tensor | None = None
            for piece in replace(part, aligner=None).batches():
                values = piece.values()[:, 0].double()
                shift = values[0] if shift is None else shift  # sums of squares would lose digits to a large mean
                moved = values - shift
                total += moved.sum(0)
                squares += moved.T @ moved
            mean = total / len(self)
            covariance = squares / len(self) - torch.outer(mean, mean)
            if self.aligner is not None:
                map_ = self.aligner.maps[self._maps[number]].double()
                covariance = map_.T @ covariance @ map_
            covariances.append(covariance)
        return torch.stack(covariances)

    @property
    def representation(self) -> Float[Tensor, "image dim"]:
        """The representation of each image, of all components whichever are chosen: what the model computed; in a text
        space, the sum of all aligned contributions and the bias.

        Raises:
            AlignmentError: The source lacks components that the aligner has, so that the sum is another.
        """
        if self.aligner is None:
            return self.source.representation(self.numbers)
        return self.representation_along(torch.eye(self.dim))

    def representation_along(
        self, directions: Float[Tensor, "direction dim"], on_progress: OnProgress = silent
    ) -> Float[Tensor, "image direction"]:
        """The representation along directions, without forming it where the view is in a text space.

        Args:
            directions: In the space that the view is in.
            on_progress: Called after each component.

        Raises:
            AlignmentError: As for `representation`.
        """
        if self.aligner is None:
            return self.source.representation(self.numbers) @ directions.T
        everything = self.whole()
        if len(everything.columns) < len(self.aligner.components):
            raise AlignmentError(
                f"There are {len(everything.columns)} of the aligner's {len(self.aligner.components)} components, "
                "which do not add up to the representation.",
                where=str(self.source),
                cure="extract all components",
            )
        total = (self.aligner.bias @ directions.T).expand(len(self), -1).clone()
        for count, part in enumerate(everything.each(), 1):
            total += part.along(directions)[:, 0]
            on_progress("summing components", count, len(everything.columns))
        return total

    @property
    def logits(self) -> Float[Tensor, "image class"]:
        """What the model's own classifier made of each image.

        Raises:
            ModelError: The model has no classifier.
        """
        return self.source.logits(self.numbers)

    def _reduced(self, reduce: Callable[[Tensor], Tensor]) -> Float[Tensor, "image column"]:
        """What is made of a single component's contributions, a piece of the images at a time."""
        parts = [reduce(piece.values()[:, 0]) for piece in self.batches()]
        return torch.cat(parts) if parts else reduce(torch.zeros(0, self.dim))


def _condition(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ArgumentError(f"{text!r} is not a condition.", cure="write FIELD=VALUE, such as label=swan")
    return name, value
