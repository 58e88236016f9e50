"""A shard: the file that holds one block of rows, one chunk for each component.

zarr 3 writes it, and any program that knows zarr 3 reads it. Chunks are not compressed, so each lies in the file as it
is in memory; on disk they are mapped instead of being read through zarr, which takes ten times as long
(`benchmarks/store.md`).
"""

from __future__ import annotations

import mmap
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec

from unweave.errors import StoreError
from unweave.store.place import Place

_NONE = np.iinfo(np.uint64).max


def create(place: Place, name: str, *, blocks: int, rows: int, inner: tuple[int, ...], dtype: str) -> None:
    """Make an array of rows, `[row, *inner]`: one shard for each block of rows, one chunk for each of `inner[:-1]`.

    Args:
        place: The store.
        name: The array.
        blocks: How many shards.
        rows: Of each.
        inner: The shape of a row.
        dtype: Of its numbers.
    """
    zarr.create_array(
        place.arrays,
        name=name,
        shape=(blocks * rows, *inner),
        chunks=(rows, *(1 for _ in inner[:-1]), inner[-1]),
        shards=(rows, *inner),
        dtype=dtype,
        serializer=BytesCodec(endian="little"),
        compressors=None,
        # What was not written is NaN, which no contribution is: so zarr leaves nothing out, zeros neither.
        fill_value=float("nan"),
        overwrite=True,
    )


def lengthen(place: Place, name: str, *, blocks: int, rows: int) -> None:
    """Make room for more blocks; those that are there stay as they are."""
    array = zarr.open_array(place.arrays, path=name, mode="r+")
    array.resize((blocks * rows, *array.shape[1:]))


def put(place: Place, name: str, block: int, values: np.ndarray) -> None:
    """Write a whole shard, `[row, *inner]`, and wait until it is on the disk.

    Raises:
        StoreError: It cannot be written.
    """
    path = _file(name, block, values.ndim)
    place.remove(path)  # zarr would first read what is there, which may be half a shard
    with place.plainly(path):
        array = zarr.open_array(place.arrays, path=name, mode="r+")
        array[block * len(values) : (block + 1) * len(values)] = values
    place.sync(path)


def _file(name: str, block: int, axes: int) -> str:
    return f"{name}/c/{block}" + "/0" * (axes - 1)


class Shards:
    """The chunks of an array.

    Args:
        place: The store.
        name: The array.

    Attributes:
        shape: Of a row.
        rows: Of each block.
    """

    def __init__(self, place: Place, name: str) -> None:
        self._place, self._name = place, name
        try:
            self._array: Any = zarr.open_array(place.arrays, path=name, mode="r")
        except (OSError, ValueError, KeyError) as error:
            raise StoreError(
                f"An array of the store cannot be opened: {error}.", where=f"{place}/{name}", cure="restore the file"
            ) from error
        self.rows: int = self._array.shards[0]
        self.shape: tuple[int, ...] = self._array.shape[1:]
        # Written by something else, or compressed: zarr reads it.
        plain = not self._array.compressors and self._array.chunks == (self.rows, *self._array.chunks[1:])
        self._mapped = place.local is not None and plain
        self._open = lru_cache(maxsize=256)(_opened)  # its files are let go with it

    def chunk(self, block: int, component: int | None = None) -> np.ndarray:
        """The rows of a block, `[row, dim]`, of one component where there are several; not copied where it is on disk.

        Raises:
            StoreError: It is missing, or is not as long as it should be.
        """
        if self._mapped:
            content, starts = self._shard(block)
            return self._rows(block, content, int(starts[component or 0]), 1)[0]
        rows = slice(block * self.rows, (block + 1) * self.rows)
        return np.asarray(self._array[rows] if component is None else self._array[rows, component])

    def whole(self, block: int) -> np.ndarray | None:
        """All chunks of a block at once, `[component, row, dim]`, where they lie side by side on disk; not copied.

        Raises:
            StoreError: As for `chunk`.
        """
        if not self._mapped:
            return None
        content, starts = self._shard(block)
        if (np.diff(starts) != self.rows * self.shape[-1] * self._array.dtype.itemsize).any():
            return None
        return self._rows(block, content, int(starts[0]), len(starts))

    def _shard(self, block: int) -> tuple[mmap.mmap, np.ndarray]:
        path = Path(self._place.local or "", _file(self._name, block, self._array.ndim))
        try:
            return self._open(path, path.stat().st_mtime_ns, _prod(self.shape[:-1]))
        except (OSError, ValueError) as error:
            raise self._damaged(block, error) from error

    def _rows(self, block: int, content: mmap.mmap, start: int, chunks: int) -> np.ndarray:
        shape = (chunks, self.rows, self.shape[-1])
        try:
            return np.frombuffer(content, self._array.dtype, _prod(shape), start).reshape(shape)
        except (ValueError, OverflowError) as error:
            raise self._damaged(block, error) from error

    def _damaged(self, block: int, error: Exception) -> StoreError:
        return StoreError(
            f"A block of the store is missing or damaged: {error}.",
            where=f"{self._place}/{_file(self._name, block, self._array.ndim)}",
            cure="run `unweave store verify`, then extract again",
        )


def _prod(lengths: tuple[int, ...]) -> int:
    """How many entries there are."""
    return int(np.prod(lengths, dtype=np.int64))


def _opened(path: Path, changed: int, chunks: int) -> tuple[mmap.mmap, np.ndarray]:
    """A shard's bytes, mapped, and where each of its chunks starts (its index, at its end, has offsets and lengths)."""
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    tail = 16 * chunks + 4  # and a checksum
    index = np.frombuffer(content, "<u8", 2 * chunks, len(content) - tail)
    if (index == _NONE).any():
        raise ValueError("a component is missing")
    return content, index[::2]
