"""The tables of the paper as commands: ours beside the published figures.

reproduce("waterbirds", Setting(Path("work"), data="waterbirds_v1.0", fitted="imagenet/train"), PUBLISHED)
reproduce("waterbirds", pocket_setting(Path("work")), POCKET)
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa

from unweave.errors import ArgumentError
from unweave.reproduce.setting import POCKET, POCKET_SPACE, PUBLISHED, SPACE, Say, Setting, Subject, chosen
from unweave.reproduce.tables import TABLES

__all__ = [
    "POCKET",
    "PUBLISHED",
    "SPACE",
    "TABLES",
    "Setting",
    "Subject",
    "chosen",
    "pocket_setting",
    "published",
    "reproduce",
]


@cache
def published(table: str) -> dict[str, dict[str, float]]:
    """The figures of the paper, by model and column; none where it has a drawing only."""
    text = resources.files("unweave.reproduce").joinpath("published.toml").read_text("utf-8")
    return dict(tomllib.loads(text).get(table, {}))


def pocket_setting(work: Path, *, say: Say = lambda what: None, **options: Any) -> Setting:
    """The pocket world, which needs nothing."""
    return Setting(work, pocket=True, fitted="pocket/world/5/4000", space=POCKET_SPACE, say=say, **options)


def reproduce(table: str, setting: Setting, subjects: Sequence[Subject]) -> pa.Table:
    """Make a table; what is done is kept in the work folder, and not done again.

    Args:
        table: One of `TABLES`.
        setting: On which images, and where results are kept.
        subjects: The models.

    Returns:
        One row for each model and line of the table; columns `... (published)` where there are such figures.

    Raises:
        ArgumentError: There is no such table, or a step cannot be done.
    """
    if table not in TABLES:
        raise ArgumentError(f"There is no table {table!r}.", cure=f"use one of {', '.join(TABLES)}")
    rows = []
    for subject in subjects:
        known = {} if setting.pocket else published(table).get(subject.name, {})
        for row in setting.result(table, subject, lambda subject=subject: TABLES[table].make(setting, subject)):  # type: ignore[misc]
            whole: dict[str, Any] = {"model": subject.name}
            ours = all(row.get(name) == value for name, value in TABLES[table].ours.items())
            for name, value in row.items():
                whole[name] = value
                if name in known and ours:
                    whole[f"{name} (published)"] = known[name]
            rows.append(whole)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows])
