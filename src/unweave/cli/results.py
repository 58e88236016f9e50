"""The files of a verb: they appear under their names together, or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from unweave.errors import StoreError

_PREFIX = ".unweave-"

written: list[str] = []
"""The files that the verb has written so far, for what is said where it is interrupted."""


def interrupted() -> str:
    """What is said of files where a verb is interrupted."""
    if not written:
        return "Interrupted. Nothing was written."
    return f"Interrupted. What was written: {', '.join(written)}."


@contextlib.contextmanager
def results(folder: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A place to write into, whose files take their places in a folder when all of them are there.

    Where something goes wrong, or the verb is interrupted, none of them is. What a process left behind that was
    killed is removed by the next that writes there.

    Args:
        folder: Where the files will lie; made where there is none.

    Yields:
        Where they are written meanwhile; and an empty table for their names, in which the paths are those under which
        they appear in the end.

    Raises:
        StoreError: The folder cannot be written.
    """
    files: dict[str, str] = {}
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    # Libraries take what looks like a URL for one, unless the path begins at the root.
    fresh = folder.absolute() / f"{_PREFIX}{socket.gethostname()}-{os.getpid()}"
    whole = False
    try:
        with _plainly(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(folder)
            fresh.mkdir()
        yield fresh, files
        with _plainly(folder), _undisturbed():
            for made in sorted(fresh.iterdir()):
                made.replace(folder / made.name)
            for what, path in files.items():
                if Path(path).parent == fresh:
                    files[what] = str(folder / Path(path).name)
            written.extend(files.values())
            whole = True
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if not whole:
            for place in missing:
                with contextlib.suppress(OSError):
                    place.rmdir()


def _remove_abandoned(folder: Path) -> None:
    """What processes of this machine were writing that are no more."""
    for left in folder.glob(f"{_PREFIX}{socket.gethostname()}-*"):
        number = left.name.rpartition("-")[2]
        if number.isdecimal() and not _is_running(int(number)):
            shutil.rmtree(left, ignore_errors=True)


def _is_running(process: int) -> bool:
    import psutil

    return process != os.getpid() and psutil.pid_exists(process)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """An interrupt that comes now changes nothing: what it would stop takes no time."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {sign: signal.signal(sign, signal.SIG_IGN) for sign in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for sign, handler in handlers.items():
            signal.signal(sign, handler)


@contextlib.contextmanager
def _plainly(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"The results cannot be written: {error.strerror or error}.",
            where=str(folder),
            cure="choose another folder with `--output`",
        ) from error
