"""Writing a store: it is made, blocks are put into it in any order by anybody, and an index ties them together.

A block is written in two steps: its shards, then the record that says which image each row is. What has no record does
not exist, so a process may be killed at any moment; whoever writes the block again writes the same bytes.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from unweave.components import Component
from unweave.errors import StoreError
from unweave.store import shards
from unweave.store.manifest import FILE, Listing, Manifest
from unweave.store.place import Place

CONTRIBUTIONS, REPRESENTATION, LOGITS, INDEX = "contributions", "representation", "logits", "index.parquet"
_RECORDS = "records"

OWN = ("block", "row", "error", "rounding", "reason")
"""Columns of the index beside `id` and the images' own fields."""


def array(level: str) -> str:
    """The name of the array of a level."""
    return f"{CONTRIBUTIONS}/{level}"


def components_file(level: str) -> str:
    """The table of a level's components."""
    return f"components-{level}.parquet"


def listing_file(number: int) -> str:
    """The table of the images that were listed at one time."""
    return f"listings/{number:04}.parquet"


def record_file(block: int) -> str:
    """What says that a block is there."""
    return f"{_RECORDS}/{block:08}.parquet"


@dataclass(frozen=True, eq=False)
class Block:
    """What is known of a block of images.

    Attributes:
        number: Which block.
        values: For each level, the contributions of all images but the broken ones, `[image, component, dim]`.
        representation: `[image, dim]`.
        logits: `[image, class]`, where the model classifies.
        error: Of each image's sum, relative.
        rounding: How far rounding moved each image's sum, relative.
        reasons: For each place of the listing, why the image was left out; None where it was not.
    """

    number: int
    values: Mapping[str, np.ndarray]
    representation: np.ndarray
    logits: np.ndarray | None
    error: np.ndarray
    rounding: np.ndarray
    reasons: Sequence[str | None]


def create(place: Place, manifest: Manifest, components: Mapping[str, Sequence[Component]]) -> None:
    """Make what a store consists of; it is there once `extend` has written its manifest.

    Args:
        place: Where.
        manifest: What it will say; it has no listings yet.
        components: Of each level.

    Raises:
        StoreError: It cannot be written.
    """
    for level, own in components.items():
        rows = [{"name": str(component), **dataclasses.asdict(component)} for component in own]
        place.write(components_file(level), table_bytes(pa.Table.from_pylist(rows)))
    with place.plainly(CONTRIBUTIONS):
        for name, inner, dtype in _arrays(manifest, components):
            shards.create(place, name, blocks=0, rows=manifest.rows, inner=inner, dtype=dtype)


def components(place: Place, level: str) -> tuple[Component, ...]:
    """The components of a level, in the order of its array.

    Raises:
        StoreError: Their table is missing or damaged.
    """
    rows = read_table(place, components_file(level)).to_pylist()
    return tuple(Component(**{name: value for name, value in row.items() if name != "name"}) for row in rows)


def _arrays(
    manifest: Manifest, components: Mapping[str, Sequence[Component]]
) -> list[tuple[str, tuple[int, ...], str]]:
    found: list[tuple[str, tuple[int, ...], str]] = [
        (array(level), (len(own), manifest.dim), manifest.dtype) for level, own in components.items()
    ]
    found.append((REPRESENTATION, (manifest.dim,), "float32"))
    if manifest.classes is not None:
        found.append((LOGITS, (manifest.classes,), "float32"))
    return found


def names(manifest: Manifest) -> list[str]:
    """The arrays of a store."""
    logits = [] if manifest.classes is None else [LOGITS]
    return [*map(array, manifest.levels), REPRESENTATION, *logits]


def extend(place: Place, manifest: Manifest, table: pa.Table, listing: Listing) -> Manifest:
    """Make room for more images.

    Args:
        place: The store.
        manifest: As it is.
        table: Ids and fields of the images.
        listing: What is known of them; where they begin is set here.

    Returns:
        The manifest as it is now.

    Raises:
        StoreError: The images have a field whose name the store needs for itself, or it cannot be written.
    """
    taken = sorted(set(OWN) & set(table.column_names))
    if taken:
        raise StoreError(
            f"The images have a field {taken[0]!r}, which a store needs for itself.",
            where=listing.data,
            cure=f"give that column another name; a store's own are {', '.join(OWN)}",
        )
    listing = replace(listing, first=manifest.blocks, blocks=-(-listing.images // manifest.rows))
    larger = replace(manifest, listings=(*manifest.listings, listing))
    place.write(listing_file(len(manifest.listings)), table_bytes(table))
    with place.plainly(CONTRIBUTIONS):
        for name in names(manifest):
            shards.lengthen(place, name, blocks=larger.blocks, rows=manifest.rows)
    larger.save(place)
    return larger


def done(place: Place) -> set[int]:
    """The blocks that are there."""
    found = (name.removesuffix(".parquet") for name in place.names(_RECORDS) if name.endswith(".parquet"))
    return {int(name) for name in found if name.isdecimal()}


def put(place: Place, manifest: Manifest, block: Block) -> None:
    """Write a block.

    Raises:
        StoreError: It cannot be written.
    """
    written: dict[str, np.ndarray] = {array(level): values for level, values in block.values.items()}
    written[REPRESENTATION] = block.representation
    if block.logits is not None:
        written[LOGITS] = block.logits
    sums = {}
    for name, values in written.items():
        full = np.zeros((manifest.rows, *values.shape[1:]), values.dtype)
        full[: len(values)] = values
        shards.put(place, name, block.number, full)
        sums[name] = checksums(full)
    rows = iter(range(len(block.reasons)))
    kept = [next(rows) if reason is None else None for reason in block.reasons]
    columns = {
        "row": pa.array(kept, pa.int64()),
        "error": _spread(block.error, kept),
        "rounding": _spread(block.rounding, kept),
        "reason": pa.array(block.reasons, pa.string()),
    }
    known = {"block": block.number, "checksums": sums}
    table = pa.table(columns).replace_schema_metadata({"unweave": json.dumps(known)})
    place.write(record_file(block.number), table_bytes(table))


def _spread(values: np.ndarray, kept: Sequence[int | None]) -> pa.Array:
    return pa.array([None if row is None else float(values[row]) for row in kept], pa.float32())


def checksums(values: np.ndarray) -> list[int]:
    """CRC-32 of each chunk of a block, `[row, *inner]`."""
    apart = values.reshape(len(values), -1, values.shape[-1]).swapaxes(0, 1)
    return [zlib.crc32(np.ascontiguousarray(chunk).data) for chunk in apart]


def record(place: Place, block: int) -> tuple[pa.Table, dict[str, Any]]:
    """What is known of a block's images, and of its bytes.

    Raises:
        StoreError: The record is damaged.
    """
    table = read_table(place, record_file(block))
    try:
        return table, json.loads(table.schema.metadata[b"unweave"])
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            "The record of a block is damaged.",
            where=f"{place}/{record_file(block)}",
            cure="remove this file and extract again: only this block is made anew",
        ) from error


def index(place: Place, manifest: Manifest) -> pa.Table:
    """Every listed image of the blocks that are there: `id`, its fields, and the columns in `OWN`.

    `row` counts within the block; it is null, and `reason` says why, for an image that was left out.
    """
    tables = []
    listed = [read_table(place, listing_file(number)) for number in range(len(manifest.listings))]
    for block in sorted(done(place)):
        if block < manifest.blocks:
            number, places = manifest.listing(block)
            own = listed[number].slice(places.start, len(places))
            known, _ = record(place, block)
            if known.num_rows != own.num_rows:
                raise StoreError("A block and its listing differ.", where=f"{place}/{record_file(block)}")
            own = own.append_column("block", pa.array([block] * len(places), pa.int64()))
            for name in OWN[1:]:
                own = own.append_column(name, known[name].combine_chunks())
            tables.append(own)
    if not tables:
        return pa.table({"id": pa.array([], pa.string())} | {name: pa.array([], pa.int64()) for name in OWN})
    return pa.concat_tables(tables, promote_options="permissive")


def merge(place: Place, manifest: Manifest) -> bool:
    """Tie the blocks together, if all of them are there: from then on the store opens at once.

    Returns:
        Whether all were there.
    """
    if done(place) < set(range(manifest.blocks)):
        return False
    table = index(place, manifest).replace_schema_metadata({"blocks": str(manifest.blocks)})
    place.write(INDEX, table_bytes(table))
    return True


def table_bytes(table: pa.Table) -> bytes:
    """A table as a Parquet file."""
    file = io.BytesIO()
    parquet.write_table(table, file, compression="zstd")
    return file.getvalue()


def read_table(place: Place, name: str) -> pa.Table:
    """A Parquet file of the store.

    Raises:
        StoreError: It is missing or damaged.
    """
    try:
        return parquet.read_table(io.BytesIO(place.read(name)))
    except (pa.ArrowException, OSError) as error:
        raise StoreError(
            f"A table of the store is damaged: {error}",
            where=f"{place}/{name}",
            cure="restore the file; a record may also be removed, and its block extracted again",
        ) from error


def is_store(place: Place) -> bool:
    """Whether a store lies there."""
    return place.exists(FILE)
