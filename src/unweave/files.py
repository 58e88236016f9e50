"""Files that appear under their names only when they are whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from unweave.errors import StoreError


@contextlib.contextmanager
def replacing(path: Path, what: str) -> Iterator[Path]:
    """Gives the name of a file to write, which takes the place of `path` at the end.

    Args:
        path: The file.
        what: What it is, for the error.

    Raises:
        StoreError: The place cannot be written.
    """
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise StoreError(f"The {what} cannot be written: {error.strerror or error}.", where=str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def read_pair(
    tensors: Path, card: Path, *, what: str, format: str, version: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A JSON card, and the tensors beside it, which carry its hash; they are mapped, and read when they are used.

    Args:
        tensors, card: The files.
        what: What they are, for errors.
        format, version: What the card has to say of itself.

    Returns:
        The card without these two, and the tensors by name.

    Raises:
        StoreError: The version is another.
        ValueError, OSError, SafetensorError, KeyError: A file is missing or damaged, or they do not belong together.
    """
    from safetensors import safe_open

    text = card.read_text("utf-8")
    known = json.loads(text)
    if known.pop("format") != format:
        raise ValueError("it has another format")
    found = known.pop("version")
    if found != version:
        raise StoreError(
            f"The {what} has version {found}; this version of unweave reads {version}.",
            where=str(card),
            cure=f"use a newer version of unweave, or make the {what} again",
        )
    with safe_open(tensors, "pt") as file:
        if (file.metadata() or {}).get("card") != hashlib.sha256(text.encode()).hexdigest():
            raise ValueError("the card and the tensors do not belong together")
        return known, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def write_table(table: pa.Table, card: Mapping[str, Any], folder: Path, name: str) -> dict[str, str]:
    """Write a table as Parquet, as JSON beside what it is, and as Markdown.

    Args:
        table: The table.
        card: What it is, ready for JSON.
        folder: Where; made where there is none.
        name: Of the files.

    Returns:
        The files by their kind.

    Raises:
        UnweaveError: They cannot be written.
    """
    with replacing(folder / f"{name}.parquet", "table") as partial:
        folder.mkdir(parents=True, exist_ok=True)
        parquet.write_table(table, partial, compression="zstd")
    rows = table.to_pylist()
    for suffix, text in (("json", json.dumps({**card, "rows": rows}, indent=1) + "\n"), ("md", markdown(table))):
        with replacing(folder / f"{name}.{suffix}", "table") as partial:
            partial.write_text(text, "utf-8")
    return {suffix: str(folder / f"{name}.{suffix}") for suffix in ("parquet", "json", "md")}


def markdown(table: pa.Table) -> str:
    """A table in Markdown; numbers with three digits behind the point."""
    head = f"| {' | '.join(table.column_names)} |"
    sides = f"| {' | '.join('--:' if _is_number(field.type) else '---' for field in table.schema)} |"
    rows = (f"| {' | '.join(map(_cell, row.values()))} |" for row in table.to_pylist())
    return "\n".join([head, sides, *rows]) + "\n"


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return "" if value is None else str(value).replace("|", "\\|")
