"""Taking a part of a store elsewhere: as the pair of files of `Contributions.save`, or as one Parquet table."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import torch
from pyarrow import parquet

from unweave.contributions import Contributions
from unweave.errors import DataError
from unweave.files import replacing
from unweave.saving import ContributionsWriter
from unweave.view import View

_ROWS = 256
"""Images that are in memory at a time."""


def export(view: View, path: str | os.PathLike[str]) -> Path:
    """Write some components of some images to files of their own.

    Args:
        view: Which, in the model's own space.
        path: A file ending in `.parquet`: one row for each image, with its id, its fields, its representation and one
            list of numbers for each component. Or a folder, or a file ending in `.safetensors`: see
            `Contributions.save`.

    Returns:
        The file.

    Raises:
        DataError, ArgumentError: There is nothing to write, or it is in a text space.
        StoreError: A block is damaged, or the file cannot be written.
    """
    if not len(view):
        raise DataError("No image was chosen.", where=str(view.source), cure="choose rows that there are")
    target, parts = Path(path), map(Contributions.of, view.batches(_ROWS))
    if target.suffix == ".parquet":
        return _table(parts, {name: pa.array(view.field(name)) for name in view.fields}, target)
    dim, dtype = view.source.dim, view.source.dtype
    with ContributionsWriter(target, view.components, images=len(view), dim=dim, dtype=dtype) as writer:
        for part in parts:
            writer.append(part)
        return writer.finish(view.origin)


def _table(parts: Iterable[Contributions], fields: Mapping[str, pa.Array], path: Path) -> Path:
    with replacing(path, "table") as partial, contextlib.ExitStack() as open_files:
        writer, start = None, 0
        for part in parts:
            count = len(part.ids)
            columns = {"id": list(part.ids), **{name: values.slice(start, count) for name, values in fields.items()}}
            columns["representation"] = _lists(part.representation)
            for column, component in enumerate(part.components):
                columns[str(component)] = _lists(part.values[:, column])
            table = pa.table(columns)
            writer = writer or open_files.enter_context(
                parquet.ParquetWriter(partial, table.schema, compression="zstd")
            )
            writer.write_table(table)
            start += count
    return path


def _lists(values: torch.Tensor) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.contiguous().numpy().reshape(-1)), values.shape[-1])
