"""Tables of a store: Parquet with a checksum of each page, and one of all that they say."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from pyarrow import compute, parquet

from unweave.errors import StoreError
from unweave.notation import parse_json
from unweave.store.place import Place

AGAIN = "run the same `unweave extract` again: it makes this file anew"


def write_table(place: Place, name: str, table: pa.Table, known: Mapping[str, Any] | None = None) -> None:
    """Write a table.

    Args:
        place: The store.
        name: The file.
        table: What is written; its own metadata are not.
        known: What else is known of it, ready for JSON.

    Raises:
        StoreError: It cannot be written.
    """
    text, content = json.dumps(known or {}), io.BytesIO()
    table = table.replace_schema_metadata({"unweave": text, "checksum": str(_checksum(table, text))})
    parquet.write_table(table, content, compression="zstd", write_page_checksum=True)
    place.write(name, content.getvalue())


def read_table(place: Place, name: str, *, version: int) -> tuple[pa.Table, dict[str, Any]]:
    """A table, and what else is known of it.

    Args:
        place: The store.
        name: The file.
        version: Of the store; tables of version 1 have no checksums.

    Raises:
        StoreError: It is missing or damaged.
    """
    content = place.read(name)
    try:
        table = parquet.read_table(io.BytesIO(content), page_checksum_verification=True)
        noted = table.schema.metadata or {}
        if version > 1 and noted[b"checksum"] != str(_checksum(table, noted[b"unweave"].decode())).encode():
            raise ValueError("its checksum is another")
        known = parse_json(noted.get(b"unweave", b"{}"))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, MemoryError) as error:
        raise StoreError(
            f"A table of the store is damaged: {error!s:.200}", where=f"{place}/{name}", cure=AGAIN
        ) from error
    if b"blocks" in noted:  # as version 1 wrote it
        known["blocks"] = noted[b"blocks"].decode()
    return table.replace_schema_metadata(None), known


def _checksum(table: pa.Table, text: str) -> int:
    """The CRC-32 of what a table says, however it is stored."""
    total = zlib.crc32(text.encode())
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            content = column.is_valid().to_numpy().tobytes() + column.fill_null(0).to_numpy().tobytes()
        elif pa.types.is_string(column.type):
            whole = pa.LargeListArray.from_arrays([0, len(column)], column.fill_null("\0").combine_chunks())
            content = compute.binary_join(whole, "\n")[0].as_buffer()
        else:
            content = repr(column.to_pylist()).encode()
        total = zlib.crc32(content, zlib.crc32(name.encode(), total))
    return total
