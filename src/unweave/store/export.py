"""Taking a part of a store elsewhere: as the pair of files of `Contributions.save`, or as one Parquet table."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet

from unweave.components import Selection, select
from unweave.errors import StoreError
from unweave.files import replacing
from unweave.saving import ContributionsWriter
from unweave.source import Rows
from unweave.store.reader import Store
from unweave.store.writer import OWN

_ROWS = 256
"""Images that are in memory at a time."""


def export(
    store: Store,
    path: str | os.PathLike[str],
    components: Selection = None,
    rows: Rows = None,
    *,
    level: str | None = None,
) -> Path:
    """Write some components of some images to files of their own.

    Args:
        store: Where they are.
        path: A file ending in `.parquet`: one row for each image, with its id, its fields, its representation and one
            list of numbers for each component. Or a folder, or a file ending in `.safetensors`: see
            `Contributions.save`.
        components, rows, level: As in `Store.read`.

    Returns:
        The file.

    Raises:
        StoreError, ArgumentError: There is nothing to write, or the file cannot be written.
    """
    own = store.components(level)
    columns = range(len(own)) if components is None else select(own, components)
    chosen, numbers = tuple(own[column] for column in columns), store.rows(rows)
    if not len(numbers):
        raise StoreError("No image was chosen.", where=str(store.place), cure="choose rows that there are")
    target = Path(path)
    if target.suffix == ".parquet":
        return _table(store, target, components, numbers, level)
    with ContributionsWriter(
        target, chosen, images=len(numbers), dim=store.manifest.dim, dtype=getattr(torch, store.manifest.dtype)
    ) as writer:
        origin = None
        for part in store.batches(components, numbers, level=level, size=_ROWS):
            writer.append(part)
            origin = part.origin
        return writer.finish(origin)


def _table(store: Store, path: Path, components: Selection, numbers: np.ndarray, level: str | None) -> Path:
    known = [name for name in store.table.column_names if name not in OWN]
    with replacing(path, "table") as partial, contextlib.ExitStack() as open_files:
        writer = None
        start = 0
        for part in store.batches(components, numbers, level=level, size=_ROWS):
            places = numbers[start : start + len(part.ids)]
            start += len(part.ids)
            columns = {name: store.table[name].take(pa.array(places)).combine_chunks() for name in known}
            columns["representation"] = _lists(part.representation)
            for column, component in enumerate(part.components):
                columns[str(component)] = _lists(part.values[:, column])
            table = pa.table(columns)
            writer = writer or open_files.enter_context(
                parquet.ParquetWriter(partial, table.schema, compression="zstd")
            )
            writer.write_table(table)
    return path


def _lists(values: torch.Tensor) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.contiguous().numpy().reshape(-1)), values.shape[-1])
