"""Blocks: for each block of rows and each array one safetensors file with one tensor, `[component, row, dim]`.

A component of a block is one piece of its file, so that it can be read by itself. On disk files are mapped; elsewhere
only the bytes of the components that are asked for travel: a file that holds one tensor ends with its numbers, and how
long it is stands in the block's record, so nothing has to be parsed. Lengths are compared whenever a block is opened.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from unweave.errors import StoreError
from unweave.files.pair import DAMAGED
from unweave.store.place import Place

TENSOR = "values"
ALTERED = "The bytes of a block are not those that were written."
AGAIN = "run the same `unweave extract` again: it makes this block anew"
REPAIR = "run `unweave store verify STORE --repair` and then the same `unweave extract` again: it makes this block anew"


def stem(block: int) -> str:
    """The name of a block's file."""
    return f"{block:08}.safetensors"


def file(name: str, block: int) -> str:
    """Where a block of an array lies."""
    return f"{name}/{stem(block)}"


def put(place: Place, name: str, block: int, values: np.ndarray) -> tuple[int, list[int]]:
    """Write a block, `[component, row, dim]` or `[row, dim]`.

    Returns:
        The length of the file, and the CRC-32 of each component.

    Raises:
        StoreError: It cannot be written.
    """
    values = np.ascontiguousarray(values)
    content = save({TENSOR: values})
    place.write(file(name, block), content)
    return len(content), checksums(values if values.ndim == 3 else values[None])


def checksums(values: np.ndarray) -> list[int]:
    """CRC-32 of each component of a block, `[component, row, dim]`."""
    return [zlib.crc32(np.ascontiguousarray(chunk).data) for chunk in values]


@contextlib.contextmanager
def undamaged(where: str, cure: str = REPAIR) -> Iterator[None]:
    """Turns whatever a damaged block trips over into an error that names it."""
    try:
        yield
    except DAMAGED as error:
        raise StoreError(f"A block of the store is missing or damaged: {error}.", where=where, cure=cure) from error


class Blocks:
    """An array of a store, block by block.

    Args:
        place: The store.
        name: The array.
        shape: Of a row: how many components, and numbers of each; one number where there are no components.
        dtype: Of its numbers.
        rows: How many rows each block has.
        lengths: How long the file of each block is.
        expected: The checksums of a block.
        check: Whether these are compared when a component is read for the first time.
    """

    cure = REPAIR

    def __init__(
        self,
        place: Place,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        rows: np.ndarray,
        lengths: dict[int, int],
        expected: Callable[[int], list[int]],
        *,
        check: bool = False,
    ) -> None:
        self.place, self.name, self.shape, self.dtype = place, name, shape, np.dtype(dtype)
        self._rows, self._lengths, self._expected, self._check = rows, lengths, expected, check
        self._sizes: dict[str, int] | None = None
        self._compared: set[tuple[int, int]] = set()
        self._open = lru_cache(maxsize=256)(self._mapped)  # its files are let go with it

    def read(self, block: int, columns: Sequence[int]) -> tuple[np.ndarray, Sequence[int]]:
        """Some components of a block.

        Args:
            block: Which.
            columns: Their places.

        Returns:
            Numbers `[component, row, dim]`, not copied where they are on disk, and where in them each component is.

        Raises:
            StoreError: The block is missing or damaged.
        """
        chunks, places = self._read(block, columns)
        fresh = [pair for pair in zip(columns, places, strict=True) if (block, pair[0]) not in self._compared]
        if self._check and fresh:
            expected = self._expected(block)
            for column, at in fresh:
                if checksums(chunks[at : at + 1]) != expected[column : column + 1]:
                    raise StoreError(
                        ALTERED,
                        where=f"{self.place}/{file(self.name, block)}, component {column}",
                        cure=self.cure,
                    )
                self._compared.add((block, column))
        return chunks, places

    def _read(self, block: int, columns: Sequence[int]) -> tuple[np.ndarray, Sequence[int]]:
        name = file(self.name, block)
        if self.place.local is None:
            if self._sizes is None:
                self._sizes = self.place.sizes(self.name)
            self._compare(name, self._sizes.get(Path(name).name), self._lengths.get(block))
            return self._fetched(block, columns), range(len(columns))
        path = self.place.local / name
        status = path.stat() if path.is_file() else None
        self._compare(name, status and status.st_size, self._lengths.get(block))
        assert status is not None
        with undamaged(f"{self.place}/{name}"):
            return self._open(block, status.st_mtime_ns), columns

    def _compare(self, name: str, length: int | None, expected: int | None) -> None:
        if length is None or length != expected:
            what = "missing" if length is None else f"damaged: it has {length} bytes and should have {expected}"
            raise StoreError(f"A block of the store is {what}.", where=f"{self.place}/{name}", cure=AGAIN)

    def _shape(self, block: int) -> tuple[int, ...]:
        return (*self.shape[:-1], int(self._rows[block]), self.shape[-1])

    def _mapped(self, block: int, changed: int) -> np.ndarray:
        """All of a block."""
        assert self.place.local is not None
        with safe_open(self.place.local / file(self.name, block), "pt") as content:
            values: np.ndarray = content.get_tensor(TENSOR).numpy()
        if values.shape != self._shape(block) or values.dtype != self.dtype:
            raise ValueError(f"it holds {values.dtype} {list(values.shape)}, not {self.dtype} {self._shape(block)}")
        return values if values.ndim == 3 else values[None]

    def _fetched(self, block: int, columns: Sequence[int]) -> np.ndarray:
        """The components, from the end of the file; those that lie side by side come together."""
        rows, dim = self._shape(block)[-2:]
        size = rows * dim * self.dtype.itemsize
        start = self._lengths[block] - size * (self.shape[0] if len(self.shape) > 1 else 1)
        spans = []
        for _, group in groupby(enumerate(columns), key=lambda pair: pair[1] - pair[0]):
            run = [column for _, column in group]
            spans.append((start + run[0] * size, start + (run[-1] + 1) * size))
        content = self.place.spans(file(self.name, block), spans)
        if len(content) != size * len(columns):
            self._compare(file(self.name, block), len(content), size * len(columns))
        return np.frombuffer(content, self.dtype).reshape(len(columns), rows, dim)
