"""A place: the folder, or the URL, that a store lies at."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from unweave.errors import StoreError
from unweave.files.atomic import PARTIAL, replacing


class Place:
    """Files below a folder on disk, or below any URL that fsspec knows.

    Args:
        url: Such as `out/store` or `s3://bucket/store`.

    Attributes:
        url: The same.
        local: The folder on disk; None where it is not on disk.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        self.url = os.fspath(url)
        try:
            self._files, self._root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise StoreError(f"There is no such place: {error}.", where=self.url) from error
        self.local = Path(self._root) if isinstance(self._files, LocalFileSystem) else None

    def __str__(self) -> str:
        return self.url

    def __reduce__(self) -> tuple[Any, ...]:
        return Place, (self.url,)

    def at(self, name: str) -> str:
        """Where a file lies."""
        return f"{self._root}/{name}"

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        with self.plainly(name):
            return bool(self._files.exists(self.at(name)))

    def sizes(self, folder: str) -> dict[str, int]:
        """The names in a folder, sorted, and how long each file is; none where there is no such folder."""
        with self.plainly(folder):
            self._files.invalidate_cache()
            try:
                listed = self._files.ls(self.at(folder), detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return {}
        return dict(sorted((file["name"].rstrip("/").rpartition("/")[2], int(file["size"] or 0)) for file in listed))

    def read(self, name: str, most: int | None = None) -> bytes:
        """A file's content.

        Args:
            name: The file.
            most: How many bytes it may have.

        Raises:
            StoreError: It cannot be read.
        """
        with self.plainly(name):
            if self.local is not None or most is not None:
                status = self._files.info(self.at(name))
                if status["type"] != "file":  # a pipe would wait
                    raise OSError("it is no file")
                if most is not None and status["size"] > most:
                    raise OSError(f"it is longer than {most:,} bytes")
            return bytes(self._files.cat_file(self.at(name)))

    def spans(self, name: str, spans: Sequence[tuple[int, int]]) -> bytes:
        """Parts of a file, one behind the other, each from its first byte to before its last.

        Raises:
            StoreError: They cannot be read.
        """
        with self.plainly(name):
            starts, ends = zip(*spans, strict=True) if spans else ((), ())
            return b"".join(self._files.cat_ranges([self.at(name)] * len(spans), list(starts), list(ends)))

    def write(self, name: str, content: bytes) -> None:
        """Write a file that is either the old one or the new one, never half of it.

        Raises:
            StoreError: It cannot be written.
        """
        with self.plainly(name):
            if self.local is None:  # object stores put whole objects
                self._files.pipe_file(self.at(name), content)
                return
            with replacing(self.local / name, "file of the store", error=None) as partial:
                partial.write_bytes(content)

    def claim(self, name: str, content: bytes) -> bool:
        """Write a file only if there is none; says whether it was written."""
        with self.plainly(name):
            if self.local is None:
                if self._files.exists(self.at(name)):
                    return False
                self._files.pipe_file(self.at(name), content)
                return True
            with contextlib.suppress(FileExistsError):
                with replacing(self.local / name, "lease", error=None, claim=True) as partial:
                    partial.write_bytes(content)
                return True
            return False

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self.plainly(name), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self.at(name))

    def sweep(self) -> None:
        """Remove what writers that were killed have left half written."""
        for path in self.local.rglob(PARTIAL) if self.local is not None else ():
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def plainly(self, name: str) -> Iterator[None]:
        """Turns what the file system refuses into an error that names the file."""
        try:
            yield
        except FileExistsError:
            raise
        except FileNotFoundError as error:
            cure = "run the same `unweave extract` again: it makes this file anew"
            raise StoreError("A file of the store is missing.", where=f"{self.url}/{name}", cure=cure) from error
        except OSError as error:
            raise StoreError(
                f"The store cannot be used: {error.strerror or error}.",
                where=f"{self.url}/{name}",
                cure="make room or choose another place, then run the same command again: what is done is kept",
            ) from error
