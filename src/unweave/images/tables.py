"""Tables of text: CSV files, column by column, where every cell is what the file says."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from unweave.errors import DataError
from unweave.images.imageset import Field


def read_csv(path: Path, needed: Sequence[str]) -> dict[str, list[str]]:
    """The columns of a CSV file, cells as text.

    Args:
        path: The file; its first row names the columns.
        needed: Columns that have to be there.

    Raises:
        DataError: The file cannot be read, a row has more or fewer cells than there are columns, a column is missing
            or there twice.
    """
    names: list[str] = []
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a file")
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True)
            names = next(lines, [])
            if not names:
                raise ValueError("its first row is empty")
            check_names(names, needed, where=str(path))
            rows = []
            for cells in filter(None, lines):
                if len(cells) != len(names):
                    raise ValueError(f"line {lines.line_num} has {len(cells)} cells for {len(names)} columns")
                if any("\0" in cell for cell in cells):
                    raise ValueError(f"line {lines.line_num} has a NUL character")
                rows.append(cells)
    except (OSError, ValueError, csv.Error) as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", None)
        raise DataError(
            f"The table cannot be read: {reason or error}.",
            where=str(path),
            cure="write it as CSV in UTF-8, with the columns' names in the first row",
        ) from error
    return {name: [cells[place] for cells in rows] for place, name in enumerate(names)}


def check_names(names: Sequence[str], needed: Sequence[str], *, where: str) -> None:
    """Refuse a table without a column that is needed, or with one twice.

    Raises:
        DataError: A column is missing, or there twice.
    """
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"The table has the column {twice!r} twice.", where=where, cure="rename or remove one of them")
    missing = next((name for name in needed if name not in names), None)
    if missing is not None:
        raise DataError(
            f"The table has no column `{missing}`.", where=where, cure=f"its columns are {', '.join(names) or 'none'}"
        )


_KINDS: tuple[tuple[Callable[[str], Field], re.Pattern[str]], ...] = (
    (int, re.compile(r"0|-?[1-9][0-9]{0,17}")),
    (float, re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]+|-?[1-9](\.[0-9]+)?e[-+][0-9]{2,3}")),
    (lambda text: text == "True", re.compile("True|False")),
)
"""What cells may be besides text, and how each is written."""


def plain(cells: Sequence[str]) -> list[Field]:
    """Cells as numbers or truth values, where each is written as that value is: its text is the cell's; else as text.

    `7` and `1.0` are numbers; `007`, `1.50` and `true` are text, and so is a column of `1` and `1.0`.

    Args:
        cells: Of one column; an empty one is a value that is missing, where the others are numbers or truth values.
    """
    texts = set(cells) - {""}
    for kind, form in _KINDS:
        values = {text: kind(text) for text in texts} if all(map(form.fullmatch, texts)) else {}
        if values and all(str(value) == text for text, value in values.items()):
            return [values.get(cell) for cell in cells]
    return list(cells)
