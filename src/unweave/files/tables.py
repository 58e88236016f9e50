"""Tables as Parquet, JSON and Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from unweave.files.atomic import replacing

if TYPE_CHECKING:
    import pyarrow as pa


def write_table(table: pa.Table, folder: Path, name: str) -> dict[str, str]:
    """Write a table as Parquet and as Markdown.

    Args:
        table: The table.
        folder: The folder, which is made where there is none.
        name: The stem of the files.

    Returns:
        The files by their kind.

    Raises:
        UnweaveError: They cannot be written.
    """
    from pyarrow import parquet

    with replacing(folder / f"{name}.parquet", "table") as partial:
        parquet.write_table(table, partial, compression="zstd")
    with replacing(folder / f"{name}.md", "table") as partial:
        partial.write_text(markdown(table), "utf-8")
    return {suffix: str(folder / f"{name}.{suffix}") for suffix in ("parquet", "md")}


def markdown(table: pa.Table) -> str:
    """A table in Markdown; numbers with three digits behind the point."""
    from pyarrow import types

    numbers = [types.is_floating(field.type) or types.is_integer(field.type) for field in table.schema]
    head = f"| {' | '.join(table.column_names)} |"
    sides = f"| {' | '.join('--:' if number else '---' for number in numbers)} |"
    rows = (f"| {' | '.join(map(_cell, row.values()))} |" for row in table.to_pylist())
    return "\n".join([head, sides, *rows]) + "\n"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return "" if value is None else str(value).replace("|", "\\|")
