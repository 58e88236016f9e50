"""An image set: images in a fixed order, each with an id and fields, read one by one when their turn comes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool
from PIL import Image

from unweave.errors import ArgumentError, DataError
from unweave.images.batches import Source
from unweave.images.reading import Reading
from unweave.regions import check as check_regions

Field = str | int | float | bool | None


@dataclass(frozen=True)
class Picture:
    """One image of a set, or a region of one.

    Attributes:
        id: Its name, unlike that of any other image of the set.
        fields: What is known of it, such as `label`, `group` or `split`.
        row: Its place in the set it was found in.
    """

    id: str
    fields: dict[str, Field]
    row: int
    _set: ImageSet

    @property
    def region(self) -> str | None:
        """What of it is meant, such as `token 3,4`; None for the whole."""
        return str(self.fields["region"]) if self._set.regions else None

    def read(self) -> Image.Image:
        """The upright RGB picture; raises an DataError where there is none."""
        return self._set.read(self.row)

    def mask(self) -> Bool[np.ndarray, "height width"]:
        """Where the object is; raises an DataError where that is not known."""
        if self._set.read_mask is None:
            raise DataError("These images have no masks.", where=self._set.origin, cure="use a set with masks")
        return self._set.read_mask(self.row)


@dataclass(frozen=True, eq=False)
class ImageSet(Sequence[Picture]):
    """Images in a fixed order.

    The table costs about 100 bytes for each image; pictures are not held.

    Attributes:
        origin: What it was opened as; opens it again. Empty where nothing does.
        table: One row for each image: the column `id`, and one column for each field.
        read: The picture of a row of the set as it was found; raises an DataError where there is none.
        read_mask: Where the object is in it; None where that is not known.
        split: The split that it was opened with.
        mark: What else tells this set from another with the same table.
        reading: How its files are read, and what was said of them.
        regions: The regions of each image that rows are of (see `at`); none where each row is a whole image.
    """

    origin: str
    table: pa.Table
    read: Callable[[int], Image.Image]
    read_mask: Callable[[int], Bool[np.ndarray, "height width"]] | None = None
    split: str | None = None
    mark: str = ""
    reading: Reading = field(default_factory=Reading)
    regions: tuple[str, ...] = ()
    _rows: Sequence[int] | None = None
    _opened: Sequence[int] | None = None

    def __post_init__(self) -> None:
        """Refuse ids that repeat.

        Raises:
            DataError: Two images have one id.
        """
        if self._rows is None and len(set(self.ids)) < len(self.ids):
            name, count = Counter(self.ids).most_common(1)[0]
            raise DataError(f"{count} images have the id {name!r}.", where=self.origin, cure="give each its own id")

    @cached_property
    def ids(self) -> list[str]:
        """The names of the images, in order."""
        return self.table["id"].to_pylist()

    @property
    def fields(self) -> list[str]:
        """What is known of images."""
        return [name for name in self.table.column_names if name != "id"]

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, place: Any) -> Any:
        """The picture at a place, or the set of the pictures at a slice."""
        if isinstance(place, slice):
            return self.take(range(len(self))[place])
        place = range(len(self))[place]
        fields = {name: self.table[name][place].as_py() for name in self.fields}
        return Picture(self.ids[place], fields, place if self._rows is None else self._rows[place], self)

    def __iter__(self) -> Iterator[Picture]:
        return (self[place] for place in range(len(self)))

    def as_code(self) -> str:
        """The Python that opens it again; a name to fill in where nothing does."""
        places = self._places
        some = "" if places is None else f"[:{len(places)}]" if _is_first(places) else f".take({places})"
        if self.regions:
            some += f".at({', '.join(map(repr, self.regions))})"
        given = ({} if self.split is None else {"split": self.split}) | dict(self.reading.options)
        options = "".join(f", {name}={value!r}" for name, value in given.items())
        return f"unweave.open_images({self.origin!r}{options}){some}" if self.origin else "images"

    def as_options(self, name: str) -> list[str]:
        """The words of a command line that open it again.

        Raises:
            ArgumentError: No words choose these images, or nothing opens them again.
        """
        places = self._places
        if not self.origin or (places is not None and not _is_first(places)):
            raise ArgumentError("No option chooses single images of a set.", where=self.origin or None)
        words = [self.origin, *([] if self.split is None else ["--split", self.split])]
        words += [] if places is None else ["--limit", str(len(places))]
        words += self.reading.as_options()
        return words + [
            word for region in self.regions for word in (f"--{region.split(' ')[0]}", region.split(" ", 1)[1])
        ]

    @property
    def _places(self) -> list[int] | None:
        """The places of the images among those that were opened, each once; None for all of them."""
        if self._rows is None:
            return None
        rows = list(dict.fromkeys(self._rows))
        if self._opened is None:
            return rows
        place = {row: number for number, row in enumerate(self._opened)}
        return None if rows == list(self._opened) else [place[row] for row in rows]

    def take(self, places: Sequence[int]) -> ImageSet:
        """Only the images at these places, in this order."""
        rows = places if self._rows is None else [self._rows[place] for place in places]
        return replace(self, table=self.table.take(pa.array(places, pa.int64())), _rows=rows)

    def at(self, *regions: str) -> ImageSet:
        """The regions of these images, one row for each: their fields are `image` and `region` and those of the image.

        What is made of such a set explains what the model makes of each region (see `unweave.regions`).

        Args:
            regions: `token ROW,COLUMN` of the model's grid, `prefix NUMBER` for a token beside it, such as the class
                token; `box LEFT,TOP,RIGHT,BOTTOM` in pixels of the picture; `mask FILE`, where a picture of the same
                size is not black, or `mask each` for the mask that the set has for each image.

        Raises:
            ArgumentError: There are none, one comes twice, or it is no region.
            DataError: These are regions already, the images have no masks, or have fields of these names.
        """
        if self.regions or {"image", "region"} & set(self.fields):
            raise DataError(
                "These images have a field `image` or `region` already.",
                where=self.origin,
                cure="take the regions of the images as they were opened, without such a field",
            )
        named = check_regions(regions)
        if "mask each" in named and self.read_mask is None:
            raise DataError(
                "These images have no masks.", where=self.origin, cure="use a set with masks, or `mask FILE`"
            )
        places = [place for place in range(len(self)) for _ in named]
        rows, table = self.take(places), self.table.take(pa.array(places, pa.int64()))
        ids, each = table["id"], pa.array(list(named) * len(self))
        both = pa.array([f"{image} {region}" for image, region in zip(ids.to_pylist(), each.to_pylist(), strict=True)])
        table = table.set_column(0, "id", both).append_column("image", ids).append_column("region", each)
        return replace(rows, table=table, regions=named)

    def without(self, ids: Collection[str]) -> ImageSet:
        """Only the images whose ids are none of these."""
        known = set(ids)
        return self.take([place for place, id_ in enumerate(self.ids) if id_ not in known])

    def where(self, field: str, value: Field) -> ImageSet:
        """Only the images of which a field has a value, or one of the same text.

        Raises:
            DataError: There is no such field, or no image has this value; the message lists those that there are.
        """
        if field not in self.fields:
            raise DataError(
                f"Nothing is known of the {field} of these images.",
                where=self.origin,
                cure=f"their fields are {', '.join(self.fields)}" if self.fields else "leave it out",
            )
        values = self.table[field].to_pylist()
        places = [place for place, entry in enumerate(values) if entry == value or str(entry) == str(value)]
        if not places:
            known = sorted({str(entry) for entry in values})[:10]
            raise DataError(f"No image has the {field} {value!r}.", where=self.origin, cure=f"use {', '.join(known)}")
        return self.take(places)

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of ids and fields in their order, and of what is white: the same wherever the same images lie."""
        white = f"white={self.reading.white:g}" if self.reading.white is not None else ""
        return fingerprint(self.table, self.mark + white)


def set_of(sources: Sequence[Source]) -> ImageSet:
    """Images that were found otherwise, as a set, which nothing opens again.

    Args:
        sources: Files, or drawn samples.

    Raises:
        DataError: There are none.
    """
    table = columns({"id": [source.id for source in sources]}, where="the images")
    return ImageSet("", table, lambda row: sources[row].read())


def _is_first(places: Sequence[int]) -> bool:
    return list(places) == list(range(len(places)))


def fingerprint(table: pa.Table, mark: str = "") -> str:
    """The SHA-256 of a table of images, column by column."""
    digest = hashlib.sha256(mark.encode())
    for name in table.column_names:
        digest.update(f"\0{name}\0".encode())
        for chunk in table[name].chunks:
            for value in chunk.to_pylist():
                digest.update(f"{json.dumps(value)}\n".encode())
    return digest.hexdigest()


def columns(rows: Mapping[str, Sequence[Field]], *, where: str) -> pa.Table:
    """A table from columns; a column of mixed types becomes text.

    Raises:
        DataError: There are no images.
    """
    if not rows["id"]:
        raise DataError("There are no images here.", where=where, cure="check what was named")
    arrays = {}
    for name, values in rows.items():
        try:
            arrays[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            arrays[name] = pa.array([None if value is None else str(value) for value in values])
    return pa.table(arrays)
