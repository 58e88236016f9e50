"""Reading a store: every row knows its image, and only the bytes that are asked for are touched.

store = unweave.open_store("out")
store.read(components="blocks.9.*", rows=store.where("label", "swan"))     # -> Contributions
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from pyarrow import compute
from torch import Tensor

from unweave.components import Component, Selection, select
from unweave.contributions import Contributions
from unweave.errors import DataError, ModelError, StoreError
from unweave.source import Listed, Origin, Rows, numbered
from unweave.store import writer
from unweave.store.blocks import Blocks
from unweave.store.manifest import Manifest
from unweave.store.place import Place
from unweave.view import View, Viewable

Readable: TypeAlias = "Viewable | str | os.PathLike[str]"
"""What verbs read: a store or its folder, a view of one, or a batch in memory."""

_Run = tuple[slice | np.ndarray, int, slice | np.ndarray]
"""Rows of one block: where they go, which block, and which of its rows they are."""

_Part = tuple[np.ndarray, Sequence[int]]

_AT_ONCE = 16
"""Blocks that travel at a time."""


class Store:
    """Contributions on disk.

    Nothing but tables is read when it is opened: about 100 bytes for each image.

    Args:
        place: A folder, or a URL that fsspec knows.
        partial: Whether a store whose extraction has not finished may be opened.
        check: Whether the bytes of each component of a block are compared with their checksum when they are first read.

    Attributes:
        manifest: What the store says of itself.
        table: One row for each row of the store: `id`, the images' fields, `block`, `row`, `error`, `rounding`.
        skipped: The images that were left out, each as (id, reason).
        missing: Blocks that are not there yet.

    Raises:
        StoreError: There is no store, it is damaged or of a newer version, or its extraction has not finished.
    """

    def __init__(self, place: str | os.PathLike[str] | Place, *, partial: bool = False, check: bool = False) -> None:
        self.place = place if isinstance(place, Place) else Place(place)
        self.manifest = Manifest.load(self.place)
        self._check = check
        found, known = writer.merged(self.place, self.manifest)
        self._lengths: dict[str, dict[str, int]] = known.get("lengths", {})
        self._checksums: dict[int, dict[str, list[int]]] = {}
        self.missing = sorted(set(range(self.manifest.blocks)) - set(found["block"].unique().to_pylist()))
        if self.missing and not partial:
            there = self.manifest.blocks - len(self.missing)
            raise StoreError(
                f"The extraction has not finished: {there} of {self.manifest.blocks} blocks are there.",
                where=str(self.place),
                cure="run the same `unweave extract` again, or open it with `partial=True`",
            )
        kept = compute.is_valid(found["row"])
        left_out = found.filter(compute.invert(kept))
        self.skipped = [
            (str(name), str(reason))
            for name, reason in zip(left_out["id"].to_pylist(), left_out["reason"].to_pylist(), strict=True)
        ]
        self.table = found.filter(kept).drop_columns(["reason"])

    def __len__(self) -> int:
        """How many rows there are."""
        return self.table.num_rows

    def __repr__(self) -> str:
        """One line: what it holds."""
        sizes = ", ".join(f"{len(self.components(level))} components ({level})" for level in self.manifest.levels)
        return f"Store({self.place}, {self.manifest.model}, {len(self)} images, {sizes}, {self.manifest.dim} dim)"

    @cached_property
    def ids(self) -> list[str]:
        """The image of each row."""
        return self.table["id"].to_pylist()

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.ids)}

    def components(self, level: str | None = None) -> tuple[Component, ...]:
        """The components of a level; of the first one if none is named.

        Raises:
            StoreError: The store does not have this level.
        """
        level = level or self.manifest.levels[0]
        if level not in self.manifest.levels:
            raise StoreError(
                f"The store has no level {level!r}.",
                where=str(self.place),
                cure=f"use {' or '.join(self.manifest.levels)}",
            )
        return self.all_components[level]

    @cached_property
    def all_components(self) -> dict[str, tuple[Component, ...]]:
        """The components of every level."""
        return {level: writer.components(self.place, self.manifest, level) for level in self.manifest.levels}

    def field(self, name: str) -> list[Any]:
        """A field of the images, row by row.

        Raises:
            DataError: There is no such field.
        """
        if name not in self.table.column_names:
            known = [column for column in self.table.column_names if column not in writer.OWN]
            raise DataError(
                f"The images have no field {name!r}.", where=str(self.place), cure=f"use one of {', '.join(known)}"
            )
        return self.table[name].to_pylist()

    def where(self, field: str, value: object) -> np.ndarray:
        """The rows whose images have a value of a field."""
        return np.flatnonzero([own == value for own in self.field(field)])

    def chosen(self, conditions: Sequence[str]) -> np.ndarray:
        """The rows for which every condition `FIELD=VALUE` holds, values compared as text.

        Raises:
            StoreError: A condition is not of this form, or there is no such field.
        """
        found = np.ones(len(self), bool)
        for condition in conditions:
            name, equals, value = condition.partition("=")
            if not equals:
                raise StoreError(f"This is no condition: {condition!r}.", cure="write FIELD=VALUE, such as label=swan")
            found &= np.array([str(own) == value for own in self.field(name)], bool)
        return np.flatnonzero(found)

    def rows(self, rows: Rows = None) -> np.ndarray:
        """Rows as numbers.

        Raises:
            StoreError: There is no such row or id.
        """
        return numbered(rows, self.ids, str(self.place))

    def as_code(self) -> str:
        """The Python that opens it again."""
        return f"unweave.open_store({str(self.place)!r})"

    def as_options(self, name: str) -> list[str]:
        """The words of a command line that open it again."""
        return [str(self.place)]

    def view(self, level: str | None = None) -> View:
        """All images and components of a level, which every task reads.

        Args:
            level: The level; the first one if none is named.

        Raises:
            StoreError: The store does not have this level.
        """
        first = self.manifest.levels[0]
        return View.of(_Level(self, first)).level(level or first)

    def read(self, components: Selection = None, rows: Rows = None, *, level: str | None = None) -> Contributions:
        """Contributions, touching only the bytes of these components and rows.

        Args:
            components: Which (see `unweave.components.Selection`); None for all.
            rows: Which (see `Rows`).
            level: Which level; the first one if none is named.

        Returns:
            Values `[image, component, dim]` in the numbers that are stored.

        Raises:
            StoreError, ArgumentError: There is no such level, row or component, or a block is damaged.
        """
        level = level or self.manifest.levels[0]
        own = self.components(level)
        columns = range(len(own)) if components is None else select(own, components)
        numbers = self.rows(rows)
        return Contributions(
            values=self.values(columns, numbers, level=level),
            components=tuple(own[column] for column in columns),
            ids=tuple(self.ids[row] for row in numbers),
            representation=self.representation(numbers),
            error=torch.from_numpy(self._columns["error"][numbers]),
            tolerance=self.manifest.tolerance,
            origin=self.origin(level),
        )

    def values(
        self, columns: Sequence[int], rows: Rows = None, *, level: str | None = None
    ) -> Float[Tensor, "image component dim"]:
        """The numbers alone, of the components at these places."""
        level = level or self.manifest.levels[0]
        self.components(level)  # refuses a level that there is not
        values = self._values(writer.array(level), [int(column) for column in columns], rows)
        return torch.from_numpy(values).permute(1, 0, 2)

    def _values(self, name: str, columns: Sequence[int], rows: Rows) -> np.ndarray:
        """Numbers of an array, `[component, row, dim]`."""
        numbers, blocks = self.rows(rows), self.blocks[name]
        shape = len(columns), len(numbers), blocks.shape[-1]
        values = None
        for (at, _, within), (chunks, places) in self._parts(blocks, numbers, columns) if columns else ():
            if values is None:  # its first block is as large as it should be, so all of it may be
                values = np.empty(shape, blocks.dtype)
            if isinstance(within, slice) or len(places) < len(within):
                for column, place in enumerate(places):
                    values[column, at] = chunks[place, within]
            else:  # row by row there is less to do
                every = slice(None) if list(places) == list(range(len(chunks))) else list(places)
                for row, place in zip(np.arange(len(numbers))[at], within, strict=True):
                    values[:, row] = chunks[every, place]
        return np.empty(shape, blocks.dtype) if values is None else values

    def _parts(self, blocks: Blocks, numbers: np.ndarray, columns: Sequence[int]) -> Iterator[tuple[_Run, _Part]]:
        """Rows by block, each with the numbers of the block; several blocks at a time where they have to travel."""
        runs = list(self._runs(numbers))
        if self.place.local is not None:
            yield from ((run, blocks.read(run[1], columns)) for run in runs)
            return
        with ThreadPoolExecutor(_AT_ONCE) as hands:
            for start in range(0, len(runs), _AT_ONCE):
                some = runs[start : start + _AT_ONCE]
                yield from zip(some, hands.map(lambda run: blocks.read(run[1], columns), some), strict=True)

    def batches(
        self, components: Selection = None, rows: Rows = None, *, level: str | None = None, size: int = 1024
    ) -> Iterator[Contributions]:
        """The same as `read`, some rows at a time: memory for `size` rows is all that it takes."""
        numbers = self.rows(rows)
        for start in range(0, len(numbers), size):
            yield self.read(components, numbers[start : start + size], level=level)

    def representation(self, rows: Rows = None) -> Float[Tensor, "image dim"]:
        """What the model itself computed."""
        return torch.from_numpy(self._values(writer.REPRESENTATION, [0], rows)[0])

    def logits(self, rows: Rows = None) -> Float[Tensor, "image class"]:
        """What the model's classifier made of it.

        Raises:
            ModelError: The model has no classifier.
        """
        if self.manifest.classes is None:
            raise ModelError("The model has no classifier, so there are no logits.", where=str(self.place))
        return torch.from_numpy(self._values(writer.LOGITS, [0], rows)[0])

    @cached_property
    def blocks(self) -> dict[str, Blocks]:
        """The arrays of the store, block by block."""
        known = self.manifest
        arrays: dict[str, tuple[tuple[int, ...], str]] = {
            writer.array(level): ((len(own), known.dim), known.dtype) for level, own in self.all_components.items()
        }
        arrays[writer.REPRESENTATION] = (known.dim,), "float32"
        if known.classes is not None:
            arrays[writer.LOGITS] = (known.classes,), "float32"
        return {name: self._array(name, shape, dtype) for name, (shape, dtype) in arrays.items()}

    def _array(self, name: str, shape: tuple[int, ...], dtype: str) -> Blocks:
        def expected(block: int) -> list[int]:
            if block not in self._checksums:
                self._checksums[block] = writer.record(self.place, self.manifest, block)[1]["checksums"]
            return list(self._checksums[block].get(name, ()))

        if self.manifest.version == 1:
            from unweave.store.version1 import Shards

            return Shards(self.place, name, shape, dtype, self.manifest.rows, expected)
        rows = np.bincount(self._columns["block"], minlength=self.manifest.blocks)
        lengths = {int(block): length for block, length in self._lengths.get(name, {}).items()}
        return Blocks(self.place, name, shape, dtype, rows, lengths, expected, check=self._check)

    @cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        return {name: self.table[name].to_numpy() for name in ("block", "row", "error")}

    def _runs(self, numbers: np.ndarray) -> Iterator[_Run]:
        """Rows by block: where they go, which block, and which rows of it; as slices where they are consecutive."""
        blocks, within = self._columns["block"][numbers], self._columns["row"][numbers]
        order = np.argsort(blocks, kind="stable")
        edges = np.flatnonzero(np.diff(blocks[order])) + 1
        for at in np.split(order, edges) if len(order) else ():
            yield _compact(at), int(blocks[at[0]]), _compact(within[at])

    def origin(self, level: str) -> Origin:
        """Where the contributions of a level come from."""
        known = self.manifest
        chosen = ", ".join(known.selection) if known.selection else None
        return Origin(
            known.model,
            known.weights_hash,
            dict(known.preprocessing),
            level,  # type: ignore[arg-type]  # one of the manifest
            chosen,
            known.computed_in,
            tuple(self.skipped),
            known.loading,
            known.attention,
            known.nonlinear,
            tuple(
                Listed(
                    listing.data,
                    listing.split,
                    listing.fingerprint,
                    listing.white,
                    listing.max_pixels,
                    listing.regions,
                )
                for listing in known.listings
            ),
        )

    def agree(self, **other: Any) -> None:
        """Refuse rows of another model, or made in another way: see `Manifest.agree`."""
        self.manifest.agree(other, where=str(self.place))

    def fields(self) -> Mapping[str, str]:
        """What is known of images, and its type."""
        return {one.name: str(one.type) for one in self.table.schema if one.name not in (*writer.OWN, "id")}


@dataclasses.dataclass(frozen=True, eq=False)
class _Level:
    """A level of a store, as a view reads it."""

    store: Store
    name: str

    def __str__(self) -> str:
        return str(self.store.place)

    @property
    def components(self) -> tuple[Component, ...]:
        return self.store.components(self.name)

    @property
    def ids(self) -> Sequence[str]:
        return self.store.ids

    @property
    def dim(self) -> int:
        return self.store.manifest.dim

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.store.manifest.dtype)

    @cached_property
    def origin(self) -> Origin:
        return self.store.origin(self.name)

    @property
    def fields(self) -> Mapping[str, str]:
        return self.store.fields()

    def field(self, name: str) -> Sequence[Any]:
        return self.store.field(name)

    def as_code(self) -> str:  # the level is a step of the view
        return f"{self.store.as_code()}.view()"

    def level(self, name: str) -> _Level:
        self.store.components(name)
        return _Level(self.store, name)

    def values(self, columns: Sequence[int], rows: np.ndarray) -> Tensor:
        return self.store.values(columns, rows, level=self.name)

    def representation(self, rows: np.ndarray) -> Tensor:
        return self.store.representation(rows)

    def logits(self, rows: np.ndarray) -> Tensor:
        return self.store.logits(rows)


def _compact(numbers: np.ndarray) -> slice | np.ndarray:
    first, last = int(numbers[0]), int(numbers[-1])
    if last - first == len(numbers) - 1 and (np.diff(numbers) == 1).all():
        return slice(first, last + 1)
    return numbers


def open_store(place: str | os.PathLike[str], *, partial: bool = False, check: bool = False) -> Store:
    """Open what `unweave extract` wrote (see `Store`)."""
    return Store(place, partial=partial, check=check)


def view_of(source: Readable) -> View:
    """Contributions as a view.

    Args:
        source: A store or its folder, a view, or a batch in memory.

    Raises:
        StoreError: A folder is named that is no store.
    """
    return open_store(source).view() if isinstance(source, (str, os.PathLike)) else source.view()


def summary(store: Store) -> dict[str, Any]:
    """What a store holds, ready for JSON."""
    known = store.manifest
    errors, roundings = (store.table[name].to_numpy() for name in ("error", "rounding"))
    itemsize = np.dtype(known.dtype).itemsize
    width = sum(len(store.components(level)) for level in known.levels) * known.dim * itemsize
    return {
        "store": str(store.place),
        "model": known.model,
        "rows": len(store),
        "skipped": [{"id": name, "reason": reason} for name, reason in store.skipped],
        "components": {level: len(store.components(level)) for level in known.levels},
        "dim": known.dim,
        "dtype": known.dtype,
        "blocks": known.blocks,
        "missing": len(store.missing),
        "bytes": len(store) * (width + 4 * (known.dim + (known.classes or 0))),
        "tolerance": known.tolerance,
        "largest_error": float(errors.max()) if len(store) else None,
        "largest_rounding": float(roundings.max()) if len(store) else None,
        "manifest": json.loads(json.dumps(dataclasses.asdict(known))),
    }
