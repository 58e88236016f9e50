"""Stores of version 1, whose arrays are zarr: they are read, through zarr, and no longer written.

contributions/head          zarr 3, [row, component, dim]; one shard for each block, one chunk for each component
representation, logits      zarr 3, [row, dim] and [row, class]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from unweave.errors import StoreError
from unweave.store.blocks import Blocks, undamaged
from unweave.store.place import Place

CURE = "restore the file, or extract again into another folder"


class Shards(Blocks):
    """An array of a store of version 1; every component is compared with its checksum.

    Args:
        place, name, shape, dtype: As for `Blocks`.
        rows: How many rows each block has, those that are empty too.
        expected: The checksums of a block.
    """

    cure = CURE

    def __init__(
        self,
        place: Place,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        rows: int,
        expected: Callable[[int], list[int]],
    ) -> None:
        super().__init__(place, name, shape, dtype, np.empty(0), {}, expected, check=True)
        try:
            import zarr
        except ImportError as error:
            raise StoreError(
                "A store of version 1 is read by zarr, which is not installed.",
                where=str(place),
                cure="pip install zarr, or extract again",
            ) from error
        local = place.local
        with undamaged(f"{place}/{name}", CURE):
            files = zarr.storage.LocalStore(local) if local else zarr.storage.FsspecStore.from_url(place.url)
            self._array: Any = zarr.open_array(files, path=name, mode="r")
            if self._array.shape[1:] != shape or self._array.dtype != self.dtype:
                raise ValueError(f"it holds {self._array.dtype} {self._array.shape}")
        self._each = rows

    def _read(self, block: int, columns: Sequence[int]) -> tuple[np.ndarray, Sequence[int]]:
        rows = slice(block * self._each, (block + 1) * self._each)
        with undamaged(f"{self.place}/{self.name}", CURE):
            if len(self.shape) == 1:
                return np.asarray(self._array[rows])[None], (0,)
            parts = [np.asarray(self._array[rows, column]) for column in columns]
        return np.stack(parts), range(len(parts))
