"""Writing a store: it is made, blocks are put into it in any order by anybody, and an index ties them together.

A block is written in two steps: its files, then the record that says which image each row is. What has no record does
not exist, so a process may be killed at any moment; whoever writes the block again writes the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from unweave.components import Component
from unweave.errors import StoreError
from unweave.saving import components_of
from unweave.store import blocks
from unweave.store.manifest import FILE, VERSION, Listing, Manifest
from unweave.store.place import Place
from unweave.store.tables import read_table, write_table

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


def create(place: Place, components: Mapping[str, Sequence[Component]]) -> None:
    """Make what a store consists of; it is there once `extend` has written its manifest.

    Args:
        place: Where.
        components: Of each level.

    Raises:
        StoreError: It cannot be written.
    """
    for level, parts in components.items():
        rows = [{"name": str(component), **dataclasses.asdict(component)} for component in parts]
        write_table(place, components_file(level), pa.Table.from_pylist(rows))


def components(place: Place, manifest: Manifest, level: str) -> tuple[Component, ...]:
    """The components of a level, in the order of its array.

    Raises:
        StoreError: Their table is missing or damaged.
    """
    rows, _ = read_table(place, components_file(level), version=manifest.version)
    return components_of(rows.to_pylist())


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
    write_table(place, listing_file(len(manifest.listings)), table)
    larger.save(place)
    return larger


def listing(place: Place, manifest: Manifest, number: int) -> pa.Table:
    """Ids and fields of the images that were listed at one time.

    Raises:
        StoreError: Their table is missing or damaged.
    """
    table, _ = read_table(place, listing_file(number), version=manifest.version)
    _whole(table, manifest.listings[number].images, f"{place}/{listing_file(number)}")
    return table


def _whole(table: pa.Table, images: int, where: str) -> None:
    if table.num_rows != images:
        raise StoreError(
            f"The manifest says that there are {images} images, and their table has {table.num_rows}.",
            where=where,
            cure="restore the manifest, or extract into another folder",
        )


def done(place: Place) -> set[int]:
    """The blocks that are there."""
    stems = (name.removesuffix(".parquet") for name in place.sizes(_RECORDS) if name.endswith(".parquet"))
    return {int(stem) for stem in stems if stem.isdecimal()}


def put(place: Place, manifest: Manifest, block: Block) -> None:
    """Write a block.

    Raises:
        StoreError: It cannot be written.
    """
    written = {array(level): values.swapaxes(0, 1) for level, values in block.values.items()}
    written[REPRESENTATION] = block.representation
    if block.logits is not None:
        written[LOGITS] = block.logits
    known: dict[str, Any] = {"block": block.number, "lengths": {}, "checksums": {}}
    for name, values in written.items():
        known["lengths"][name], known["checksums"][name] = blocks.put(place, name, block.number, values)
    rows = iter(range(len(block.reasons)))
    kept = [next(rows) if reason is None else None for reason in block.reasons]
    columns = {
        "row": pa.array(kept, pa.int64()),
        "error": _spread(block.error, kept),
        "rounding": _spread(block.rounding, kept),
        "reason": pa.array(block.reasons, pa.string()),
    }
    write_table(place, record_file(block.number), pa.table(columns), known)


def _spread(values: np.ndarray, kept: Sequence[int | None]) -> pa.Array:
    return pa.array([None if row is None else float(values[row]) for row in kept], pa.float32())


def record(place: Place, manifest: Manifest, block: int) -> tuple[pa.Table, dict[str, Any]]:
    """What is known of a block's images, and of its bytes: `lengths` and `checksums` by array.

    Raises:
        StoreError: The record is damaged.
    """
    return read_table(place, record_file(block), version=manifest.version)


def forget(place: Place, block: int) -> None:
    """Set the record of a block aside, so that it is computed again."""
    for name in (INDEX, record_file(block)):
        place.remove(name)


def mend(
    place: Place, manifest: Manifest, levels: Mapping[str, Sequence[Component]], images: pa.Table, fingerprint: str
) -> None:
    """Forget the blocks that are damaged, so that an extraction makes them anew, and write damaged tables again.

    A block is damaged if its record cannot be read, or if its files are missing or not as long as they should be.

    Args:
        place: The store.
        manifest: What it says of itself.
        levels: The components of each level.
        images: Ids and fields of the images that are extracted.
        fingerprint: Theirs.

    Raises:
        StoreError: The store is of a version that is no longer written.
    """
    if manifest.version != VERSION:
        raise StoreError(
            f"The store has version {manifest.version}, which is still read and no longer written.",
            where=str(place),
            cure="extract into another folder",
        )
    for level, own in levels.items():
        with _or_else(create, place, {level: own}):
            components(place, manifest, level)
    for number, listed in enumerate(manifest.listings):
        if listed.fingerprint == fingerprint:
            with _or_else(write_table, place, listing_file(number), images):
                listing(place, manifest, number)
    there = sorted(done(place))  # before the files: others may write more blocks meanwhile
    sizes = {name: place.sizes(name) for name in names(manifest)}
    for block in there:
        with _or_else(forget, place, block):
            _, known = record(place, manifest, block)
            if known["lengths"] != {name: own.get(blocks.stem(block)) for name, own in sizes.items()}:
                raise StoreError("A file of a block is missing or damaged.", where=f"{place}/{record_file(block)}")


@contextlib.contextmanager
def _or_else(mended: Callable[..., None], *given: Any) -> Iterator[None]:
    """What is done where something cannot be read."""
    try:
        yield
    except StoreError:
        mended(*given)


def index(place: Place, manifest: Manifest) -> tuple[pa.Table, dict[str, Any]]:
    """Every listed image of the blocks that are there: `id`, its fields, and the columns in `OWN`.

    `row` counts within the block; it is null, and `reason` says why, for an image that was left out.

    Returns:
        The table; and `blocks`, how many there are, and `lengths`, how long the files of each are, by array.

    Raises:
        StoreError: A table is missing or damaged.
    """
    listed = [listing(place, manifest, number) for number in range(len(manifest.listings))]
    lengths: dict[str, dict[str, int]] = {name: {} for name in names(manifest)}
    tables = [_beside(table.slice(0, 0), -1, _NOTHING) for table in listed]  # the fields, where no block is there
    for block in sorted(done(place)):
        if block < manifest.blocks:
            number, places = manifest.listing(block)
            own = listed[number].slice(places.start, len(places))
            rows, known = record(place, manifest, block)
            _whole(rows, own.num_rows, f"{place}/{record_file(block)}")
            tables.append(_beside(own, block, rows))
            for name in lengths:
                lengths[name][str(block)] = known.get("lengths", {}).get(name)
    return pa.concat_tables(tables, promote_options="permissive"), {"blocks": str(manifest.blocks), "lengths": lengths}


_NOTHING = pa.table(
    {"row": pa.array([], pa.int64()), "error": pa.array([], pa.float32()), "rounding": pa.array([], pa.float32())}
    | {"reason": pa.array([], pa.string())}
)


def _beside(images: pa.Table, block: int, rows: pa.Table) -> pa.Table:
    """The images of a block, and what is known of each."""
    images = images.append_column("block", pa.array([block] * len(images), pa.int64()))
    for name in OWN[1:]:
        images = images.append_column(name, rows[name].combine_chunks())
    return images


def merged(place: Place, manifest: Manifest) -> tuple[pa.Table, dict[str, Any]]:
    """The same as `index`, from one file where the blocks were tied together."""
    if place.exists(INDEX):
        table, known = read_table(place, INDEX, version=manifest.version)
        if known.get("blocks") == str(manifest.blocks):
            _whole(table, manifest.images, f"{place}/{INDEX}")
            return table, known
    return index(place, manifest)


def merge(place: Place, manifest: Manifest) -> bool:
    """Tie the blocks together, if all of them are there: from then on the store opens at once.

    Returns:
        Whether all were there.
    """
    there = done(place)
    if len(there) < manifest.blocks or not there >= set(range(manifest.blocks)):
        return False
    table, known = index(place, manifest)
    write_table(place, INDEX, table, known)
    return True


def is_store(place: Place) -> bool:
    """Whether a store lies there."""
    return place.exists(FILE)
