"""Files that appear under their names only when they are whole."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from unweave.errors import UnweaveError


@contextlib.contextmanager
def replacing(path: Path, what: str) -> Iterator[Path]:
    """Gives the name of a file to write, which takes the place of `path` at the end.

    Args:
        path: The file.
        what: What it is, for the error.

    Raises:
        UnweaveError: The place cannot be written.
    """
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise UnweaveError(f"The {what} cannot be written: {error.strerror or error}.", where=str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
