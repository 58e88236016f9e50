"""Files that appear under their names only when they are whole, and on the disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from unweave.errors import StoreError, UnweaveError

PARTIAL = ".*.partial*"
"""The names of files that are being written; what a killed process leaves behind is one of them."""


@contextlib.contextmanager
def replacing(
    path: Path, what: str, *, error: type[UnweaveError] | None = StoreError, claim: bool = False
) -> Iterator[Path]:
    """Gives the name of a file to write, which takes the place of `path` at the end, when its bytes are on the disk.

    Where the block is left by an error or an interrupt, nothing has changed: `path` is what it was, and folders that
    were made for it are gone.

    Args:
        path: The file; its folder is made where there is none.
        what: What it is, for the error.
        error: What is raised; None for the operating system's own OSError.
        claim: Whether a file that is there already is kept, and a FileExistsError raised.

    Raises:
        UnweaveError, OSError: The place cannot be written.
    """
    partial = path.with_name(f".{uuid.uuid4().hex}.partial{path.suffix}")
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        with plainly(path, what, error):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            _settle(partial)
            if claim:
                path.hardlink_to(partial)
            else:
                partial.replace(path)
        with contextlib.suppress(OSError):  # some file systems cannot wait for a folder
            _settle(path.parent)
    finally:
        for remove in (partial.unlink, *(folder.rmdir for folder in made)):
            with contextlib.suppress(OSError):
                remove()


@contextlib.contextmanager
def plainly(path: Path, what: str, error: type[UnweaveError] | None = StoreError) -> Iterator[None]:
    """Turns what the operating system refuses into an error that names the file (arguments as of `replacing`)."""
    try:
        yield
    except OSError as refusal:
        if error is None:
            raise
        raise error(
            f"The {what} cannot be written: {refusal.strerror or refusal}.",
            where=str(path),
            cure="make room, or choose another place to write to",
        ) from refusal


def _settle(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
