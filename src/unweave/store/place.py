"""A place: the folder, or the URL, that a store lies at."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import zarr
from fsspec.implementations.local import LocalFileSystem

from unweave.errors import StoreError


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

    def names(self, folder: str) -> list[str]:
        """The files of a folder, sorted; none where there is no such folder."""
        with self.plainly(folder):
            self._files.invalidate_cache()
            try:
                found = self._files.ls(self.at(folder), detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    def read(self, name: str) -> bytes:
        """A file's content.

        Raises:
            StoreError: It cannot be read.
        """
        with self.plainly(name):
            return bytes(self._files.cat_file(self.at(name)))

    def write(self, name: str, content: bytes) -> None:
        """Write a file that is either the old one or the new one, never half of it.

        Raises:
            StoreError: It cannot be written.
        """
        with self.plainly(name):
            if self.local is None:  # object stores put whole objects
                self._files.pipe_file(self.at(name), content)
                return
            path = self.local / name
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex}.writing")
            try:
                with fresh.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                fresh.replace(path)
            except BaseException:
                fresh.unlink(missing_ok=True)
                raise

    def claim(self, name: str, content: bytes) -> bool:
        """Write a file only if there is none; says whether it was written."""
        with self.plainly(name):
            if self.local is None:
                if self._files.exists(self.at(name)):
                    return False
                self._files.pipe_file(self.at(name), content)
                return True
            path = self.local / name
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex}.writing")
            fresh.write_bytes(content)
            try:
                path.hardlink_to(fresh)
            except FileExistsError:
                return False
            finally:
                fresh.unlink(missing_ok=True)
            return True

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self.plainly(name), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self.at(name))

    def sweep(self) -> None:
        """Remove what writers that were killed have left half written."""
        for pattern in ("*.partial", ".*.writing") if self.local is not None else ():
            for path in (self.local or Path()).rglob(pattern):
                path.unlink(missing_ok=True)

    def sync(self, name: str) -> None:
        """Wait until a file is on the disk."""
        if self.local is not None:
            with self.plainly(name):
                handle = os.open(self.local / name, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)

    @cached_property
    def arrays(self) -> Any:
        """The same place as zarr sees it."""
        if self.local is not None:
            return zarr.storage.LocalStore(self.local)
        return zarr.storage.FsspecStore.from_url(self.url)

    @contextlib.contextmanager
    def plainly(self, name: str) -> Iterator[None]:
        """Turns what the file system refuses into an error that names the file."""
        try:
            yield
        except FileExistsError:
            raise
        except OSError as error:
            raise StoreError(
                f"The store cannot be used: {error.strerror or error}.",
                where=f"{self.url}/{name}",
                cure="make room or choose another place, then run the same command again: what is done is kept",
            ) from error
