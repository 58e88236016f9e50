"""Contributions on disk: a pair of files (see `unweave.files.pair`), numbers beside a card that says what they are.

NAME.safetensors   values [image, component, dim], representation [image, dim], error [image]
NAME.json          model, weights, preprocessing, level, selection, components, ids, error, versions, images skipped
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.components import Component
from unweave.errors import StoreError
from unweave.files.fields import record, typed
from unweave.files.pair import Kind, PairWriter, read_pair
from unweave.source import Origin

NAME = "contributions"
"""The files' stem where only a folder is given."""

KIND = Kind(
    "set of contributions",
    "unweave contributions",
    1,
    "give the folder that `unweave decompose` wrote, with both of its files; or decompose again",
)

_ORIGIN = (
    "model",
    "weights_hash",
    "preprocessing",
    "level",
    "selection",
    "computed_in",
    "loading",
    "attention",
    "nonlinear",
)


def files_at(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """The tensors' file and the card that a path stands for: a folder, or either of the two files."""
    path = Path(path)
    if path.suffix in (".safetensors", ".json") and not path.is_dir():
        return path.with_suffix(".safetensors"), path.with_suffix(".json")
    return path / f"{NAME}.safetensors", path / f"{NAME}.json"


@runtime_checkable
class Batch(Protocol):
    """What is written: contributions of some images."""

    @property
    def values(self) -> Float[Tensor, "image component dim"]:
        """What each component adds."""

    @property
    def components(self) -> tuple[Component, ...]:
        """The columns."""

    @property
    def ids(self) -> tuple[str, ...]:
        """The names of the images."""

    @property
    def error(self) -> Float[Tensor, " image"]:
        """The relative error of each sum."""

    @property
    def tolerance(self) -> float:
        """The largest error that was allowed."""


class ContributionsWriter:
    """Writes contributions batch by batch into files that appear when `finish` is called.

        with ContributionsWriter("out", plan.components, images=1000, dim=plan.dim) as writer:
            for ids, batch in loader:
                writer.append(plan.run(batch, ids))
            writer.finish(origin)

    Leaving the block before `finish`, by an error or an interrupt, removes every trace.

    Args:
        path: A folder, or a file name ending in `.safetensors`.
        components: What the columns are.
        images: The most images that will come.
        dim: Width of the representation.
        dtype: What values are stored as; the representation and error are kept in float32 at least.

    Attributes:
        tensors: The file of numbers.
        card: The file beside it.
        size: Bytes of numbers reserved on disk.
        written: Images appended so far.
        largest_error: The largest relative error among them.

    Raises:
        UnweaveError: The place cannot be written or lacks the room, or numbers of this type cannot be stored.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        components: Sequence[Component],
        *,
        images: int,
        dim: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.tensors, self.card = files_at(path)
        self.written, self.largest_error = 0, 0.0
        self._components, self._ids, self._tolerance = tuple(components), list[str](), 0.0
        self._dim, self._dtype, exact = dim, dtype, torch.promote_types(dtype, torch.float32)
        layout = {
            "values": (dtype, (images, len(self._components), dim)),
            "representation": (exact, (images, dim)),
            "error": (exact, (images,)),
        }
        self._files = PairWriter(self.tensors, self.card, KIND, layout)
        self.size = self._files.size

    def append(self, contributions: Batch) -> None:
        """Write one batch's rows.

        Raises:
            StoreError: They are not of these components, more images came than were announced, or the disk is full.
        """
        if contributions.components != self._components or contributions.values.shape[-1] != self._dim:
            raise StoreError("A batch of other components cannot be appended.", where=str(self.tensors))
        for name in ("values", "representation", "error"):
            self._files.append(name, getattr(contributions, name))
        self.written += len(contributions.ids)
        self._ids += contributions.ids
        self._tolerance = max(self._tolerance, contributions.tolerance)
        self.largest_error = max([self.largest_error, *contributions.error.tolist()])

    def finish(self, origin: Origin | None = None) -> Path:
        """Close the rows up, write the card, and give both files their names.

        Args:
            origin: Where the contributions come from, with the images that were skipped.

        Returns:
            The tensors' file.

        Raises:
            UnweaveError: The files cannot be written.
        """
        return self._files.finish(
            {
                **{name: getattr(origin, name, None) for name in _ORIGIN},
                "loading": asdict(origin.loading) if origin and origin.loading else None,
                "data": [asdict(listed) for listed in origin.images] if origin else [],
                "images": self.written,
                "dim": self._dim,
                "dtype": str(self._dtype).removeprefix("torch."),
                "tolerance": self._tolerance,
                "largest_error": self.largest_error,
                "versions": {name: metadata.version(name) for name in ("unweave", "torch", "timm")},
                "skipped": [{"id": name, "reason": reason} for name, reason in (origin.skipped if origin else ())],
                "notes": list(origin.notes) if origin else [],
                "components": [component.as_dict() for component in self._components],
                "ids": self._ids,
            }
        )

    def __enter__(self) -> ContributionsWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._files.discard()


@dataclass(frozen=True, eq=False)
class Saved:
    """What is read of a pair of files; values are mapped from the file, not copied."""

    values: Float[Tensor, "image component dim"]
    components: tuple[Component, ...]
    ids: tuple[str, ...]
    representation: Float[Tensor, "image dim"]
    error: Float[Tensor, " image"]
    tolerance: float
    origin: Origin | None


def load(path: str | os.PathLike[str]) -> Saved:
    """Read a pair of files (see `Contributions.load`)."""
    tensors_file, card_file = files_at(path)
    card, tensors = read_pair(tensors_file, card_file, KIND)
    with KIND.reading(card_file):
        ids = typed(tuple[str, ...], card["ids"], "ids")
        components = components_of(card["components"])
        origin = None
        if card["model"] is not None:
            skipped = [[image["id"], image["reason"]] for image in card["skipped"]]
            about = {name: card[name] for name in _ORIGIN}
            notes = card.get("notes", [])
            origin = record(Origin, {**about, "skipped": skipped, "images": card["data"], "notes": notes})
        tolerance = typed(float, card["tolerance"], "tolerance")
        images, dim = len(ids), card["dim"]
    with KIND.reading(tensors_file):
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if shapes != {"values": (images, len(components), dim), "representation": (images, dim), "error": (images,)}:
            raise ValueError(f"its tensors have the shapes {shapes}")
    return Saved(tensors["values"], components, ids, tensors["representation"], tensors["error"], tolerance, origin)


def components_of(fields: Sequence[dict[str, object]]) -> tuple[Component, ...]:
    """The components that a card lists, with or without their names.

    Raises:
        ValueError, AttributeError: A field is of another type.
    """
    return tuple(
        record(Component, {name: value for name, value in component.items() if name != "name"}) for component in fields
    )
