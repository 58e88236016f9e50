"""Tables as Parquet, JSON and Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unweave.files.atomic import replacing

if TYPE_CHECKING:
    import pyarrow as pa


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
    from pyarrow import parquet

    with replacing(folder / f"{name}.parquet", "table") as partial:
        parquet.write_table(table, partial, compression="zstd")
    rows = table.to_pylist()
    for suffix, text in (("json", json.dumps({**card, "rows": rows}, indent=1) + "\n"), ("md", markdown(table))):
        with replacing(folder / f"{name}.{suffix}", "table") as partial:
            partial.write_text(text, "utf-8")
    return {suffix: str(folder / f"{name}.{suffix}") for suffix in ("parquet", "json", "md")}


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
