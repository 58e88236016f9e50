"""The tables of the paper as commands: ours beside the published figures.

reproduce("waterbirds", Setting("work", data="waterbirds_v1.0", fitted="imagenet/train"), PUBLISHED)
reproduce("waterbirds", pocket_setting("work"), POCKET)
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from os import PathLike
from typing import Any

import pyarrow as pa
from matplotlib.figure import Figure
from rich.console import RenderableType

from unweave.errors import ArgumentError
from unweave.figures import Curve, curves_figure
from unweave.reproduction.setting import POCKET, POCKET_SPACE, PUBLISHED, SPACE, Say, Setting, Subject, chosen
from unweave.reproduction.tables import TABLES
from unweave.results import Result, rich_table, verb

__all__ = [
    "POCKET",
    "PUBLISHED",
    "SPACE",
    "TABLES",
    "Reproduction",
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
    text = resources.files("unweave.reproduction").joinpath("published.toml").read_text("utf-8")
    return dict(tomllib.loads(text).get(table, {}))


def pocket_setting(work: str | PathLike[str], *, say: Say = lambda what: None, **options: Any) -> Setting:
    """The pocket world, which needs nothing."""
    return Setting(work, pocket=True, fitted="pocket/world/5/4000", space=POCKET_SPACE, say=say, **options)


@dataclass(frozen=True, eq=False, repr=False)
class Reproduction(Result):
    """A table of the paper, ours beside the published figures.

    Attributes:
        which: The table (one of `TABLES`).
        says: What it shows.
        rows: One for each model and line; columns `... (published)` where there are such figures.
    """

    name = "reproduction"
    width = 180  # a table of many columns is read sideways rather than in syllables

    which: str
    says: str
    rows: tuple[dict[str, Any], ...]

    def table(self) -> pa.Table:
        """The rows."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        return pa.Table.from_pylist([{name: row.get(name) for name in names} for row in self.rows])

    def figure(self) -> Figure:
        """A panel for each of the first figures, a line for each model."""
        models = list(dict.fromkeys(row["model"] for row in self.rows))
        table = self.table()
        columns = [field.name for field in table.schema if pa.types.is_floating(field.type)][:_PANELS]
        panels = {
            name: [Curve(model, [row[name] or 0.0 for row in self.rows if row["model"] == model]) for model in models]
            for name in columns
        }
        return curves_figure(panels, title=self.says, across="line of the table", up="")

    def told(self) -> list[RenderableType]:
        """The table."""
        table = self.table()
        columns = {name: "left" if name == "model" else "right" for name in table.column_names}
        rows = [
            [
                "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
                for value in row.values()
            ]
            for row in table.to_pylist()
        ]
        return [rich_table(self.says, columns, rows)]


_PANELS = 4
"""Columns that are drawn."""


@verb
def reproduce(which: str, setting: Setting, subjects: Sequence[Subject]) -> Reproduction:
    """Make a table of the paper; what is done is kept in the work folder, and not done again.

    Args:
        which: One of `TABLES`.
        setting: On which images, and where results are kept.
        subjects: The models.

    Raises:
        ArgumentError: There is no such table, or a step cannot be done.
    """
    if which not in TABLES:
        raise ArgumentError(f"There is no table {which!r}.", cure=f"use one of {', '.join(TABLES)}")
    rows: list[dict[str, Any]] = []
    for subject in subjects:
        known = {} if setting.pocket else published(which).get(subject.name, {})
        for row in setting.result(which, subject, lambda subject=subject: TABLES[which].make(setting, subject)):  # type: ignore[misc]
            ours = all(row.get(name) == value for name, value in TABLES[which].ours.items())
            beside = {f"{name} (published)": known[name] for name in row if name in known and ours}
            rows.append({"model": subject.name, **row, **beside})
    about = {"pocket": setting.pocket, "data": setting.data, "fitted": setting.fitted, "space": setting.space}
    options = {"limit": setting.limit, "random_weights": setting.random_weights, "seed": setting.seed}
    return Reproduction(which, TABLES[which].says, tuple(rows), card={"table": which, **about, **options})
