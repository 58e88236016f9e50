"""Contributions on disk: a safetensors file of numbers beside a JSON card that says what they are.

    NAME.safetensors   values [image, component, dim], representation [image, dim], error [image]
    NAME.json          model, weights, preprocessing, level, selection, components, ids, error, versions, images skipped

The numbers open with any safetensors reader and the card with any editor; neither can run code. The tensors carry the
card's hash, so that a card is never read beside numbers that are not its own.

Many images do not fit in memory, so a `ContributionsWriter` reserves the whole file before the first batch, whose
size is known from the plan, and writes each batch's rows in their place. The files appear under their names when all
is written: an interrupted run leaves nothing behind. Where images were skipped, the rows close up at the end.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

import unweave
from unweave.components import Component
from unweave.contributions import Contributions
from unweave.errors import ArgumentError, StoreError
from unweave.view import Origin

FORMAT, VERSION = "unweave contributions", 1
NAME = "contributions"
"""The files' stem where only a folder is given."""

_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_KNOWN = ("model", "weights_hash", "preprocessing", "level", "selection", "computed_in")
_BLOCK = 1 << 24


def files_at(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """The tensors' file and the card that a path stands for: a folder, or either of the two files."""
    path = Path(path)
    if path.suffix in (".safetensors", ".json") and not path.is_dir():
        return path.with_suffix(".safetensors"), path.with_suffix(".json")
    return path / f"{NAME}.safetensors", path / f"{NAME}.json"


@dataclass(frozen=True)
class _Layout:
    """Where each tensor lies in the file, widest numbers first so that every tensor is aligned."""

    images: int
    components: int
    dim: int
    dtype: torch.dtype

    @property
    def tensors(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        exact = torch.promote_types(self.dtype, torch.float32)
        tensors = {
            "values": (self.dtype, (self.images, self.components, self.dim)),
            "representation": (exact, (self.images, self.dim)),
            "error": (exact, (self.images,)),
        }
        return dict(sorted(tensors.items(), key=lambda item: -item[1][0].itemsize))

    def spans(self) -> Iterator[tuple[str, int, int]]:
        """Name, first byte after the header, and bytes of each tensor."""
        start = 0
        for name, (dtype, shape) in self.tensors.items():
            size = dtype.itemsize * prod(shape)
            yield name, start, size
            start += size

    @property
    def size(self) -> int:
        return sum(size for _, _, size in self.spans())

    def header(self, card_hash: str) -> bytes:
        entries: dict[str, object] = {"__metadata__": {"format": FORMAT, "version": str(VERSION), "card": card_hash}}
        for name, start, size in self.spans():
            dtype, shape = self.tensors[name]
            entries[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [start, start + size]}
        text = json.dumps(entries, separators=(",", ":")).encode()
        return text + b" " * (-len(text) % 8)


class ContributionsWriter:
    """Writes contributions batch by batch into files that appear when `finish` is called.

        with ContributionsWriter("out", plan.components, images=1000, dim=plan.dim) as writer:
            for ids, batch in loader:
                writer.append(plan.run(batch, ids))
            writer.finish(origin)

    Leaving the block before `finish`, by an error or an interrupt, removes every trace.

    Attributes:
        tensors: The file of numbers.
        card: The file beside it.
        size: Bytes of numbers reserved on disk.
        written: Images appended so far.
        largest_error: The largest relative error among them.
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
        """Reserve the room.

        Args:
            path: A folder, or a file name ending in `.safetensors`.
            components: What the columns are.
            images: The most images that will come.
            dim: Width of the representation.
            dtype: What values are stored as; the representation and error are kept in float32 at least.

        Raises:
            ArgumentError: The place cannot be written or lacks the room, or numbers of this type cannot be stored.
        """
        if dtype not in _NAMES:
            raise ArgumentError(f"Numbers of type {dtype} cannot be stored.", cure="use float32, float64 or bfloat16")
        self.tensors, self.card = files_at(path)
        self.written, self.largest_error = 0, 0.0
        self._components, self._ids, self._tolerance = tuple(components), list[str](), 0.0
        self._layout = _Layout(images, len(self._components), dim, dtype)
        self.size = self._layout.size
        self._start = 8 + len(self._layout.header("0" * 64))
        self._partial = self.tensors.with_name(f".{self.tensors.name}.{os.getpid()}.partial")
        self._partial_card = self.card.with_name(f".{self.card.name}.{os.getpid()}.partial")
        self._made: list[Path] = []
        self._file: BinaryIO | None = None
        try:
            with _plainly(self.tensors):
                self._make_folder(self.tensors.parent)
                check_room(self.tensors.parent, self._start + self.size)
                self._file = self._partial.open("w+b", buffering=0)
                _reserve(self._file, self._start + self.size)
        except BaseException:
            self.discard()
            raise

    def append(self, contributions: Contributions) -> None:
        """Write one batch's rows.

        Raises:
            StoreError: They are not of these components, more images came than were announced, or the disk is full.
        """
        images = len(contributions.ids)
        if contributions.components != self._components or contributions.values.shape[-1] != self._layout.dim:
            raise StoreError("A batch of other components cannot be appended.", where=str(self.tensors))
        if self.written + images > self._layout.images:
            raise StoreError(
                f"More than the {self._layout.images} announced images came.",
                where=str(self.tensors),
                cure="announce as many images as will come",
            )
        for name, start, size in self._layout.spans():
            dtype, _ = self._layout.tensors[name]
            offset = self._start + start + self.written * (size // self._layout.images)
            self._write(offset, _bytes(getattr(contributions, name), dtype))
        self.written += images
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
        layout = _Layout(self.written, len(self._components), self._layout.dim, self._layout.dtype)
        card = self._describe(layout, origin).encode()
        header = layout.header(hashlib.sha256(card).hexdigest())
        for (_, old, _), (_, new, size) in zip(self._layout.spans(), layout.spans(), strict=True):
            self._move(self._start + old, self._start + new, size)
        room = self._start - 8
        self._write(0, memoryview(room.to_bytes(8, "little") + header.ljust(room)))
        with _plainly(self.tensors):
            file = self._opened()
            file.truncate(self._start + layout.size)
            os.fsync(file.fileno())
            file.close()
            self._partial_card.write_bytes(card)
            self._partial.replace(self.tensors)
            self._partial_card.replace(self.card)
        self._file = None
        return self.tensors

    def discard(self) -> None:
        """Remove what was written, and the folders made for it; does nothing after `finish`."""
        if self._file is not None:
            self._file.close()
            self._file = None
            for path in (self._partial, self._partial_card):
                path.unlink(missing_ok=True)
        if not self.tensors.exists():
            for folder in self._made:
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def __enter__(self) -> ContributionsWriter:
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Discard what was not finished."""
        self.discard()

    def _make_folder(self, folder: Path) -> None:
        missing = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        self._made = missing

    def _opened(self) -> BinaryIO:
        if self._file is None:
            raise StoreError("The contributions are already finished or discarded.", where=str(self.tensors))
        return self._file

    def _write(self, offset: int, data: memoryview) -> None:
        file = self._opened()
        with _plainly(self.tensors):
            file.seek(offset)
            while data:
                data = data[file.write(data) :]

    def _move(self, old: int, new: int, size: int) -> None:
        if old == new:
            return
        file = self._opened()
        for done in range(0, size, _BLOCK):
            with _plainly(self.tensors):
                file.seek(old + done)
                block = file.read(min(_BLOCK, size - done))
            self._write(new + done, memoryview(block))

    def _describe(self, layout: _Layout, origin: Origin | None) -> str:
        known = {name: getattr(origin, name) for name in _KNOWN} if origin else dict.fromkeys(_KNOWN)
        return _lines(
            {
                "format": FORMAT,
                "version": VERSION,
                **known,
                "images": layout.images,
                "dim": layout.dim,
                "dtype": str(layout.dtype).removeprefix("torch."),
                "tolerance": self._tolerance,
                "largest_error": self.largest_error,
                "versions": {
                    "unweave": unweave.__version__,
                    "torch": torch.__version__,
                    "timm": metadata.version("timm"),
                },
                "skipped": [{"id": name, "reason": reason} for name, reason in (origin.skipped if origin else ())],
                "components": [component.as_dict() for component in self._components],
                "ids": self._ids,
            }
        )


def save(contributions: Contributions, path: str | os.PathLike[str]) -> Path:
    """Write contributions that are in memory (see `Contributions.save`)."""
    images, _, dim = contributions.values.shape
    with ContributionsWriter(
        path, contributions.components, images=images, dim=dim, dtype=contributions.values.dtype
    ) as writer:
        writer.append(contributions)
        return writer.finish(contributions.origin)


def load(path: str | os.PathLike[str]) -> Contributions:
    """Read contributions; values are mapped from the file, not copied (see `Contributions.load`)."""
    tensors_path, card_path = files_at(path)
    for file in (tensors_path, card_path):
        if not file.is_file():
            raise StoreError(
                "There are no contributions here: a file is missing.",
                where=str(file),
                cure="give the folder that `unweave decompose` wrote, with both of its files",
            )
    text = card_path.read_bytes()
    with _undamaged(tensors_path), safe_open(tensors_path, framework="pt") as file:
        noted = (file.metadata() or {}).get("card")
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    with _undamaged(card_path):
        card = json.loads(text)
        if card["format"] != FORMAT:
            raise ValueError(f"its format is {card['format']!r}")
        if card["version"] != VERSION:
            raise StoreError(
                f"The contributions have format version {card['version']}; this version of unweave reads {VERSION}.",
                where=str(card_path),
                cure="use the version of unweave named in the card, or decompose again",
            )
    if noted != hashlib.sha256(text).hexdigest():
        raise StoreError(
            "The card and the tensors do not belong together, or the card was changed.",
            where=f"{tensors_path} and {card_path}",
            cure="keep the two files of one run together, or decompose again",
        )
    with _undamaged(card_path):
        ids = tuple(card["ids"])
        components = tuple(_component(fields) for fields in card["components"])
        origin = None if card["model"] is None else _origin(card)
        tolerance = float(card["tolerance"])
        images, dim = len(ids), card["dim"]
    with _undamaged(tensors_path):
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if shapes != {"values": (images, len(components), dim), "representation": (images, dim), "error": (images,)}:
            raise ValueError(f"its tensors have the shapes {shapes}")
    return Contributions(components=components, ids=ids, tolerance=tolerance, origin=origin, **tensors)


def _origin(card: dict[str, Any]) -> Origin:
    return Origin(
        **{name: card[name] for name in _KNOWN},
        skipped=tuple((image["id"], image["reason"]) for image in card["skipped"]),
    )


def _component(fields: dict[str, Any]) -> Component:
    return Component(**{name: value for name, value in fields.items() if name != "name"})


def _bytes(tensor: Tensor, dtype: torch.dtype) -> memoryview:
    return tensor.detach().to("cpu", dtype).contiguous().view(-1).view(torch.uint8).numpy().data


def _lines(card: dict[str, object]) -> str:
    """JSON with one line for each field and for each item of a list: readable, and short for many components."""
    return "{\n" + ",\n".join(f"  {json.dumps(name)}: {_line(value)}" for name, value in card.items()) + "\n}\n"


def _line(value: object) -> str:
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(f"    {json.dumps(item)}" for item in value) + "\n  ]"
    return json.dumps(value)


def check_room(folder: Path, needed: int) -> None:
    """Refuse a disk that is too small.

    Args:
        folder: Where something will be written; it need not exist yet.
        needed: Bytes.

    Raises:
        StoreError: The disk has fewer bytes left.
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise StoreError(
            f"The disk lacks the room: {needed:,} bytes are needed and {free:,} are free.",
            where=str(folder),
            cure="select fewer components, take fewer images, or write to another disk",
        )


def _reserve(file: BinaryIO, size: int) -> None:
    file.truncate(size)
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            # File systems that cannot reserve still grow the file as it is written.
            if error.errno == errno.ENOSPC:
                raise


@contextlib.contextmanager
def _plainly(path: Path) -> Iterator[None]:
    """Turns what the operating system refuses into an error that names the file."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"The contributions cannot be written: {error.strerror or error}.",
            where=str(error.filename or path),
            cure="choose another place to write to",
        ) from error


@contextlib.contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    """Turns whatever a damaged file trips over into an error that names the file."""
    try:
        yield
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise StoreError(
            f"The file is damaged or is not one of unweave's: {error}.",
            where=str(path),
            cure="copy it again from where it was made, or decompose again",
        ) from error
