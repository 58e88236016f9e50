"""Reading a store: every row knows its image, and only the bytes that are asked for are touched.

store = unweave.open_store("out")
store.view().where(label="swan").select("blocks.9.*").values()     # [image, component, dim]
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
from jaxtyping import Int
from pyarrow import compute
from rich.console import RenderableType
from rich.text import Text
from torch import Tensor

from unweave.components import Component
from unweave.errors import DataError, ModelError, StoreError
from unweave.results import Shown, in_bytes, rich_table
from unweave.source import Listed, Origin
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


class Store(Shown):
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
        rows, known = writer.merged(self.place, self.manifest)
        self._lengths: dict[str, dict[str, int]] = known.get("lengths", {})
        self._checksums: dict[int, dict[str, list[int]]] = {}
        self.missing = sorted(set(range(self.manifest.blocks)) - set(rows["block"].unique().to_pylist()))
        if self.missing and not partial:
            there = self.manifest.blocks - len(self.missing)
            raise StoreError(
                f"The extraction has not finished: {there} of {self.manifest.blocks} blocks are there.",
                where=str(self.place),
                cure="run the same `unweave extract` again, or open it with `partial=True`",
            )
        kept = compute.is_valid(rows["row"])
        left_out = rows.filter(compute.invert(kept))
        self.skipped = [
            (str(name), str(reason))
            for name, reason in zip(left_out["id"].to_pylist(), left_out["reason"].to_pylist(), strict=True)
        ]
        self.table = rows.filter(kept).drop_columns(["reason"])

    def __len__(self) -> int:
        """How many rows there are."""
        return self.table.num_rows

    def __repr__(self) -> str:
        """One line: what it holds."""
        sizes = ", ".join(f"{len(self.components(level))} components ({level})" for level in self.manifest.levels)
        return f"Store({self.place}, {self.manifest.model}, {len(self)} images, {sizes}, {self.manifest.dim} dim)"

    def about(self) -> dict[str, Any]:
        """What it holds, ready for JSON."""
        known = self.manifest
        errors, roundings = (self.table[name].to_numpy() for name in ("error", "rounding"))
        width = sum(map(len, self.all_components.values())) * known.dim * np.dtype(known.dtype).itemsize
        return {
            "store": str(self.place),
            "model": known.model,
            "rows": len(self),
            "skipped": [{"id": name, "reason": reason} for name, reason in self.skipped],
            "components": {level: len(components) for level, components in self.all_components.items()},
            "dim": known.dim,
            "dtype": known.dtype,
            "blocks": known.blocks,
            "missing": len(self.missing),
            "bytes": len(self) * (width + 4 * (known.dim + (known.classes or 0))),
            "tolerance": known.tolerance,
            "largest_error": float(errors.max()) if len(self) else None,
            "largest_rounding": float(roundings.max()) if len(self) else None,
            "manifest": json.loads(json.dumps(dataclasses.asdict(known))),
        }

    @property
    def content(self) -> str:
        """What it holds, in a sentence or two."""
        about = self.about()
        levels = ", ".join(f"{count:,} components ({level})" for level, count in about["components"].items())
        text = f"{self.place} holds {len(self):,} images x {levels} x {about['dim']:,} numbers"
        text += f" of {about['model']}: {in_bytes(about['bytes'])}."
        if self.missing:
            blocks = about["blocks"]
            text += f" It is not complete: {blocks - len(self.missing)} of {blocks} blocks are there."
        if len(self):
            text += (
                f" The components add up to the representation within {about['largest_error']:.1e}; "
                f"{about['dtype']} moves the sum by at most {about['largest_rounding']:.1e}."
            )
        return text

    def told(self) -> list[RenderableType]:
        """What it holds, and how it was made."""
        known = self.manifest
        rows = [
            ["model", known.model],
            ["weights", known.weights_hash],
            ["selection", ", ".join(known.selection) if known.selection else "all components"],
            ["computed in", known.computed_in],
            ["stored in", known.dtype],
            ["images in a block", str(known.rows)],
            ["left out", f"{len(self.skipped):,}"],
            *(["images from", f"{listing.data}: {listing.images:,}"] for listing in known.listings),
            *([f"field {name}", kind] for name, kind in self.fields().items()),
            ["made by", ", ".join(f"{name} {version}" for name, version in known.versions.items())],
        ]
        return [Text(self.content), rich_table("", {"": "left", " ": "left"}, rows)]

    @cached_property
    def ids(self) -> list[str]:
        """The image of each row."""
        return self.table["id"].to_pylist()

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

    def as_code(self) -> str:
        """The Python that opens it again."""
        return f"unweave.open_store({str(self.place)!r})"

    def as_options(self, name: str) -> list[str]:
        """The words of a command line that open it again: its place, behind the name of an argument of its own."""
        option = [] if name == "source" else [f"--{name.replace('_', '-')}"]
        return [*option, str(self.place)]

    def view(self, level: str | None = None) -> View:
        """All images and components of a level, which every task reads.

        Args:
            level: The level; the first one if none is named.

        Raises:
            StoreError: The store does not have this level.
        """
        first = self.manifest.levels[0]
        self.components(level)  # a damaged table is an error here
        return View.of(_Level(self, first)).level(level or first)

    def numbers(self, name: str, columns: Sequence[int], rows: Int[np.ndarray, " image"]) -> np.ndarray:
        """Numbers of an array (see `unweave.store`), `[component, image, dim]`, as they are stored; only the bytes of
        these columns and rows are read.

        Raises:
            StoreError: A block is damaged.
        """
        blocks = self.blocks[name]
        shape = len(columns), len(rows), blocks.shape[-1]
        values = None
        for (at, _, within), (chunks, places) in self._parts(blocks, rows, columns) if columns else ():
            if values is None:  # its first block is as large as it should be, so all of it may be
                values = np.empty(shape, blocks.dtype)
            if isinstance(within, slice) or len(places) < len(within):
                for column, place in enumerate(places):
                    values[column, at] = chunks[place, within]
            else:  # row by row there is less to do
                every = slice(None) if list(places) == list(range(len(chunks))) else list(places)
                for row, place in zip(np.arange(len(rows))[at], within, strict=True):
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

    @cached_property
    def blocks(self) -> dict[str, Blocks]:
        """The arrays of the store, block by block."""
        known = self.manifest
        arrays: dict[str, tuple[tuple[int, ...], str]] = {
            writer.array(level): ((len(components), known.dim), known.dtype)
            for level, components in self.all_components.items()
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
        return {name: self.table[name].to_numpy() for name in ("block", "row")}

    def _runs(self, numbers: np.ndarray) -> Iterator[_Run]:
        """Rows by block: where they go, which block, and which rows of it; as slices where they are consecutive."""
        blocks, within = self._columns["block"][numbers], self._columns["row"][numbers]
        order = np.argsort(blocks, kind="stable")
        edges = np.flatnonzero(np.diff(blocks[order])) + 1
        for at in np.split(order, edges) if len(order) else ():
            yield _compact(at), int(blocks[at[0]]), _compact(within[at])

    def fields(self) -> Mapping[str, str]:
        """What is known of images, and its type."""
        return {column.name: str(column.type) for column in self.table.schema if column.name not in (*writer.OWN, "id")}


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
        known = self.store.manifest
        chosen = ", ".join(known.selection) if known.selection else None
        return Origin(
            known.model,
            known.weights_hash,
            dict(known.preprocessing),
            self.name,  # type: ignore[arg-type]  # one of the manifest
            chosen,
            known.computed_in,
            tuple(self.store.skipped),
            known.loading,
            known.attention,
            known.nonlinear,
            tuple(
                Listed(**{part.name: getattr(listing, part.name) for part in dataclasses.fields(Listed)})
                for listing in known.listings
            ),
        )

    @property
    def tolerance(self) -> float:
        return self.store.manifest.tolerance

    @property
    def fields(self) -> Mapping[str, str]:
        return self.store.fields()

    def field(self, name: str) -> Sequence[Any]:
        return self.store.field(name)

    def as_code(self) -> str:  # the level is a step of the view
        return f"{self.store.as_code()}.view()"

    def as_options(self, name: str) -> list[str]:
        return self.store.as_options(name)

    def level(self, name: str) -> _Level:
        self.store.components(name)
        return _Level(self.store, name)

    def values(self, columns: Sequence[int], rows: np.ndarray) -> Tensor:
        values = self.store.numbers(writer.array(self.name), [int(column) for column in columns], rows)
        return torch.from_numpy(values).permute(1, 0, 2)

    def representation(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(self.store.numbers(writer.REPRESENTATION, [0], rows)[0])

    def error(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(self.store.table["error"].to_numpy()[rows])

    def logits(self, rows: np.ndarray) -> Tensor:
        if self.store.manifest.classes is None:
            raise ModelError("The model has no classifier, so there are no logits.", where=str(self))
        return torch.from_numpy(self.store.numbers(writer.LOGITS, [0], rows)[0])


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
