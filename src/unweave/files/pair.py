"""A pair of files: tensors as safetensors, and a JSON card beside them that says what they are.

The tensors open with any safetensors reader and the card with any editor; neither can run code. The tensors carry the
card's hash, so that a card is never read beside tensors that are not its own.

Tensors that do not fit in memory come some rows at a time: a `PairWriter` reserves the whole file first and writes each
row in its place. Where fewer rows came than were announced, they close up at the end.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unweave.errors import ArgumentError, StoreError, UnweaveError
from unweave.files.atomic import check_room, plainly, replacing
from unweave.files.fields import parsed

DAMAGED = (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OSError, RuntimeError)
"""What a damaged file makes its reader raise."""

_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_AT_ONCE = 1 << 24
"""Bytes that are moved at a time."""


@dataclass(frozen=True)
class Kind:
    """What a pair is one of.

    Attributes:
        what: In words, for errors.
        format, version: What its card says of itself.
        cure: What to do where it cannot be read.
        error: What is raised.
    """

    what: str
    format: str
    version: int
    cure: str
    error: type[UnweaveError] = StoreError

    @contextlib.contextmanager
    def reading(self, path: Path) -> Iterator[None]:
        """Turns whatever a damaged file trips over into an error that names the file."""
        try:
            yield
        except DAMAGED as error:
            raise self.error(
                f"The {self.what} cannot be read, or is damaged: {error}.", where=str(path), cure=self.cure
            ) from error

    def text(self, card: Mapping[str, Any]) -> bytes:
        """A card as JSON: a line for each field, and for each item of a list."""
        known = {"format": self.format, "version": self.version, **card}
        return (
            "{\n" + ",\n".join(f"  {json.dumps(name)}: {_line(value)}" for name, value in known.items()) + "\n}\n"
        ).encode()


def _line(value: object) -> str:
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(f"    {json.dumps(item)}" for item in value) + "\n  ]"
    return json.dumps(value)


def write_pair(tensors: Path, card: Path, kind: Kind, content: Mapping[str, Tensor], known: Mapping[str, Any]) -> Path:
    """Write tensors that are in memory, and their card.

    Args:
        tensors, card: The files.
        kind: What they are.
        content: The tensors; none may share memory with another.
        known: The card.

    Returns:
        The tensors' file.

    Raises:
        UnweaveError: They cannot be written.
    """
    text = kind.text(known)
    with (
        replacing(card, kind.what, error=kind.error) as noted,
        replacing(tensors, kind.what, error=kind.error) as partial,
    ):
        noted.write_bytes(text)
        metadata = {"format": "pt", "card": hashlib.sha256(text).hexdigest()}
        save_file({name: tensor.contiguous() for name, tensor in content.items()}, partial, metadata)
    return tensors


def read_pair(tensors: Path, card: Path, kind: Kind) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A card, and the tensors beside it; they are mapped, and read when they are used.

    Args:
        tensors, card: The files.
        kind: What they should be.

    Returns:
        The card without its format and version, and the tensors by name.

    Raises:
        UnweaveError: A file is missing or damaged, of another version, or they do not belong together.
    """
    for file in (tensors, card):
        if not file.is_file():
            raise kind.error(f"The {kind.what} cannot be read: a file is missing.", where=str(file), cure=kind.cure)
    with kind.reading(card):
        text = card.read_bytes()
        known = parsed(text)
        if known.pop("format", None) != kind.format:
            raise ValueError(f"it has another format than {kind.format!r}")
        version = known.pop("version", None)
        if version != kind.version:
            raise kind.error(
                f"The {kind.what} has version {version!s:.20}; this version of unweave reads {kind.version}.",
                where=str(card),
                cure=f"use a newer version of unweave, or make the {kind.what} again",
            )
    with kind.reading(tensors), safe_open(tensors, "pt") as file:
        if (file.metadata() or {}).get("card") != hashlib.sha256(text).hexdigest():
            raise ValueError("the card and the tensors do not belong together, or the card was changed")
        return known, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


class _Unfinished(Exception):
    """What was written is not to be kept."""


class PairWriter:
    """Writes a pair whose tensors come some rows at a time; the files appear when `finish` is called.

    Leaving the block before `finish`, by an error or an interrupt, removes every trace.

    Args:
        tensors, card: The files.
        kind: What they are.
        layout: For each tensor the type of its numbers, and its shape with the most rows that will come.

    Attributes:
        size: Bytes of numbers reserved on disk.

    Raises:
        UnweaveError: The place cannot be written or lacks the room, or numbers of this type cannot be stored.
    """

    def __init__(
        self, tensors: Path, card: Path, kind: Kind, layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    ) -> None:
        for dtype, _ in layout.values():
            if dtype not in _NAMES:
                raise ArgumentError(
                    f"Numbers of type {dtype} cannot be stored.", cure="use float32, float64 or bfloat16"
                )
        self._tensors, self._kind = tensors, kind
        # widest numbers first, so that every tensor is aligned
        self._layout = dict(sorted(layout.items(), key=lambda item: -item[1][0].itemsize))
        self._rows = dict.fromkeys(layout, 0)
        self.size = sum(size for _, size in _spans(self._layout).values())
        self._start = 8 + len(_header(self._layout, "0" * 64))
        self._open = ExitStack()
        try:
            self._card = self._open.enter_context(replacing(card, kind.what, error=kind.error))
            partial = self._open.enter_context(replacing(tensors, kind.what, error=kind.error))
            check_room(tensors.parent, self._start + self.size)
            with plainly(self._tensors, self._kind.what, self._kind.error):
                self._file = self._open.enter_context(partial.open("w+b", buffering=0))
                self._reserve(self._start + self.size)
        except BaseException:
            self.discard()
            raise

    def append(self, name: str, rows: Tensor) -> None:
        """Write rows of a tensor, behind those that are there.

        Raises:
            UnweaveError: More rows came than were announced, or the disk is full.
        """
        (start, size), (dtype, shape) = _spans(self._layout)[name], self._layout[name]
        first = self._rows[name]
        if first + len(rows) > shape[0]:
            raise self._kind.error(
                f"More than the {shape[0]} announced images came.",
                where=str(self._tensors),
                cure="announce as many images as will come",
            )
        data = rows.detach().to("cpu", dtype).contiguous().view(-1).view(torch.uint8).numpy()
        self._write(self._start + start + first * (size // max(1, shape[0])), data.data)
        self._rows[name] += len(rows)

    def finish(self, known: Mapping[str, Any]) -> Path:
        """Close the rows up, write the card, and give both files their names.

        Args:
            known: The card.

        Returns:
            The tensors' file.

        Raises:
            UnweaveError: The files cannot be written.
        """
        text = self._kind.text(known)
        layout = {name: (dtype, (self._rows[name], *shape[1:])) for name, (dtype, shape) in self._layout.items()}
        spans = _spans(layout)
        for name, (start, _) in _spans(self._layout).items():
            self._move(self._start + start, self._start + spans[name][0], spans[name][1])
        header, room = _header(layout, hashlib.sha256(text).hexdigest()), self._start - 8
        self._write(0, memoryview(room.to_bytes(8, "little") + header.ljust(room)))
        with plainly(self._tensors, self._kind.what, self._kind.error):
            self._file.truncate(self._start + sum(size for _, size in spans.values()))
            self._card.write_bytes(text)
        self._open.close()
        return self._tensors

    def discard(self) -> None:
        """Remove what was written, and the folders made for it; does nothing after `finish`."""
        with contextlib.suppress(_Unfinished), self._open:
            raise _Unfinished

    def __enter__(self) -> PairWriter:
        """The writer itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Discard what was not finished."""
        self.discard()

    def _write(self, offset: int, data: memoryview) -> None:
        if self._file.closed:
            what = f"This {self._kind.what} is already finished or discarded."
            raise self._kind.error(what, where=str(self._tensors), cure="begin another one")
        with plainly(self._tensors, self._kind.what, self._kind.error):
            self._file.seek(offset)
            while data:
                data = data[self._file.write(data) :]

    def _move(self, old: int, new: int, size: int) -> None:
        for done in range(0, size if old != new else 0, _AT_ONCE):
            with plainly(self._tensors, self._kind.what, self._kind.error):
                self._file.seek(old + done)
                block = self._file.read(min(_AT_ONCE, size - done))
            self._write(new + done, memoryview(block))

    def _reserve(self, size: int) -> None:
        self._file.truncate(size)
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(self._file.fileno(), 0, size)
            except OSError as error:
                # File systems that cannot reserve still grow the file as it is written.
                if error.errno == errno.ENOSPC:
                    raise


def _spans(layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> dict[str, tuple[int, int]]:
    """Of each tensor its first byte after the header, and how many it has."""
    spans, start = {}, 0
    for name, (dtype, shape) in layout.items():
        spans[name] = start, dtype.itemsize * prod(shape)
        start += spans[name][1]
    return spans


def _header(layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], card: str) -> bytes:
    """What a safetensors file begins with, after its length."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt", "card": card}}
    for name, (start, size) in _spans(layout).items():
        dtype, shape = layout[name]
        entries[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [start, start + size]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)
