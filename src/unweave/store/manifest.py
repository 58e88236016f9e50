"""A manifest: what a store holds, of which model and which images, and how it was made."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from unweave.components import LEVELS, Level
from unweave.errors import StoreError
from unweave.files.fields import parsed, record, typed
from unweave.loading import Loading
from unweave.store.place import Place

FORMAT = "unweave store"
VERSION = 2
READ = (1, 2)
FILE = "manifest.json"

_LONGEST = 2**26
"""Bytes of a manifest, at most."""

_LARGEST = 2**24
"""What the width of a row, or a number of images at a time, may be."""

IDENTITY = (
    "model",
    "weights_hash",
    "preprocessing",
    "levels",
    "selection",
    "attention",
    "nonlinear",
    "computed_in",
    "dtype",
    "dim",
    "regional",
)
"""What has to agree before rows may stand beside each other."""


@dataclass(frozen=True)
class Listing:
    """Images that were listed at one time, and where their rows are.

    Attributes:
        data, split, white, max_pixels: What they were opened as (see `unweave.images.open_images`).
        regions: The regions of each that rows are of (see `ImageSet.at`); none where each row is a whole image.
        images: How many there are.
        fingerprint: Of their ids and fields.
        first, blocks: The first of the blocks that hold them, and how many those are.
    """

    data: str
    split: str | None
    images: int
    fingerprint: str
    first: int
    blocks: int
    white: float | int | None = None
    max_pixels: int | None = None
    regions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """What a store says of itself; a JSON file.

    Attributes:
        model: The model's id.
        loading: How it is loaded again; None where it was made of a module.
        weights_hash: Of its weights.
        preprocessing: How pictures became inputs.
        levels: The levels at which it was decomposed; each has an array of its own.
        selection: The components that were asked for; None for all.
        attention, nonlinear: As in `unweave.plan`.
        computed_in: The numbers that the model computed in.
        dtype: The numbers that contributions are stored in.
        dim: The width of the representation.
        classes: The width of the logits; None where there are none.
        rows: Of each block.
        batch: Images that were decomposed at a time: another number may round differently.
        tolerance: The largest error of a sum that was allowed.
        listings: The images, in the order in which they were added.
        versions: Of the libraries that made it.
        regional: Whether rows are regions of images, rather than whole images.
        version: Of the format of the store.
    """

    model: str
    loading: Loading | None
    weights_hash: str
    preprocessing: Mapping[str, Any]
    levels: tuple[Level, ...]
    selection: tuple[str, ...] | None
    attention: Literal["through", "stop"]
    nonlinear: Literal["stop", "freeze"]
    computed_in: Literal["float32", "float64", "bfloat16"]
    dtype: Literal["float16", "float32"]
    dim: int
    classes: int | None
    rows: int
    batch: int
    tolerance: float
    listings: tuple[Listing, ...]
    versions: Mapping[str, str]
    regional: bool = False
    version: int = VERSION

    @property
    def blocks(self) -> int:
        """How many blocks of rows there are."""
        return sum(listing.blocks for listing in self.listings)

    @property
    def images(self) -> int:
        """How many images were listed."""
        return sum(listing.images for listing in self.listings)

    @property
    def identity(self) -> dict[str, Any]:
        """The fields in `IDENTITY`."""
        return {name: getattr(self, name) for name in IDENTITY}

    def listing(self, block: int) -> tuple[int, range]:
        """Which listing a block belongs to, and the places of its images there."""
        for number, listing in enumerate(self.listings):
            if listing.first <= block < listing.first + listing.blocks:
                start = (block - listing.first) * self.rows
                return number, range(start, min(start + self.rows, listing.images))
        raise StoreError(f"The store has {self.blocks} blocks, so there is none with the number {block}.")

    def agree(self, other: Mapping[str, Any], *, where: str) -> None:
        """Refuse what is of another model, or made in another way.

        Args:
            other: Values of some of the fields in `IDENTITY`.
            where: The store.

        Raises:
            StoreError: A field differs; the message names it and both values.
        """
        known = json.loads(json.dumps(dataclasses.asdict(self)))
        for name in IDENTITY:
            if name in other and known[name] != json.loads(json.dumps(other[name])):
                raise StoreError(
                    f"The store differs in its {name.replace('_', ' ')}: it was made with {_short(known[name])}, "
                    f"this is {_short(other[name])}.",
                    where=f"{where}, field `{name}`",
                    cure="use the same model and settings, or write to another store",
                )

    def save(self, place: Place) -> None:
        """Write it, replacing the one that is there."""
        known = {"format": FORMAT, **dataclasses.asdict(self)}
        place.write(FILE, (json.dumps(known, indent=2) + "\n").encode())

    @classmethod
    def load(cls, place: Place) -> Manifest:
        """Read it.

        Raises:
            StoreError: There is none, it is damaged, or it is of a newer version.
        """
        if not place.exists(FILE):
            raise StoreError(
                "There is no store here.", where=str(place), cure="name a folder that `unweave extract` wrote"
            )
        try:
            known = parsed(place.read(FILE, most=_LONGEST))
            if known.pop("format", None) != FORMAT:
                raise ValueError("it has another format")
            if isinstance(version := known.get("version"), int) and version > VERSION:
                raise StoreError(
                    f"The store has version {version}; this version of unweave reads {VERSION}.",
                    where=f"{place}/{FILE}",
                    cure="use a newer version of unweave, or extract again",
                )
            manifest = record(cls, _first(known) if known.get("version") == 1 else known)
            manifest._check()
            return manifest
        except ValueError as error:
            raise StoreError(
                f"The store's manifest is damaged: {error}.",
                where=f"{place}/{FILE}",
                cure="restore the file, or extract into another folder",
            ) from error

    def _check(self) -> None:
        """Refuse numbers that cannot be, before anything is made of their size.

        Raises:
            ValueError: One cannot be; the message names it.
        """
        if not self.levels or len(set(self.levels)) < len(self.levels) or not set(self.levels) <= set(LEVELS):
            raise ValueError(f"the field `levels` cannot be {', '.join(self.levels) or 'empty'}")
        for name in ("dim", "classes", "rows", "batch"):
            number = getattr(self, name)
            if number is not None and not 1 <= number <= _LARGEST:
                raise ValueError(f"the field `{name}` cannot be {number}")
        if self.version not in READ or self.tolerance < 0:
            raise ValueError("the field `version` or `tolerance` is out of range")
        first = 0
        for listing in self.listings:
            if listing.images < 0 or listing.first != first or listing.blocks != -(-listing.images // self.rows):
                raise ValueError(f"a listing of {listing.images} images cannot have {listing.blocks} blocks")
            first += listing.blocks


def _first(known: dict[str, Any]) -> dict[str, Any]:
    """A manifest of version 1 (a model loaded by keywords, listings with a limit), as one of now."""
    listings = typed(tuple[Mapping[str, Any], ...], known.get("listings"), "listings")
    return {
        **known,
        "loading": {"id": known.get("model"), **typed(Mapping[str, Any], known.get("loading"), "loading")},
        "listings": [{name: value for name, value in listing.items() if name != "limit"} for listing in listings],
    }


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
