"""The table of models: how far each was resolved when it was measured, with random weights, at head level.

It is written by `python -m benchmarks.models` (docs/models.md shows it whole), and says nothing of models that are not
in it: those are planned in seconds by `unweave.plan`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.text import Text

from unweave.errors import ModelError
from unweave.models.library import nearest
from unweave.notation import parse_json, read_text

TABLE = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class Measurement:
    """A row of the table.

    Attributes:
        id: The library and the name of the model; of transformers the class (`hf/DINOv3ViTModel`), unless it is a model
            on the hub.
        group: What it is listed under: a name that people use, or the library.
        components: How many there are of each kind; empty where it was not decomposed.
        attention: How many attention layers the representation depends on.
        resolved: Of how many of these the heads are components, or are passed through.
        error: The largest relative error of the sum.
        dtype: What that was computed in.
        lumped: The length of the sum of all lumped components, relative to the representation's.
        regions: `yes`, or why there is no plan of regions.
        frozen: What `nonlinear="freeze"` resolves, in words, where an activation on the trunk stops the plan.
        reason: Why it is not resolved to the end, or not decomposed at all; empty where nothing is missing.
        notes: What was assumed and left out when it was loaded, and what was cut of it to measure it.
        date: When it was measured.
    """

    id: str
    group: str
    components: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    attention: int = 0
    resolved: int = 0
    error: float | None = None
    dtype: str = "float32"
    lumped: float = 0.0
    regions: str = ""
    frozen: str = ""
    reason: str = ""
    notes: tuple[str, ...] = ()
    date: str = ""

    @property
    def whole(self) -> bool:
        """Whether nothing is lumped and every attention layer is resolved."""
        return self.error is not None and self.resolved == self.attention and not self.components.get("lumped")

    def about(self) -> dict[str, Any]:
        """The row, ready for JSON."""
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        return {**values, "components": dict(self.components), "whole": self.whole}

    def told(self) -> Iterator[Text]:
        """The row in sentences, for a terminal."""
        yield Text.assemble((self.id, "bold"), "" if self.group in self.id else f"  {self.group}")
        if self.error is None:
            yield Text("  not decomposed", "yellow")
        else:
            yield Text("  " + ", ".join(f"{count} {kind}" for kind, count in self.components.items()))
            resolved = f"{self.resolved} of {self.attention} layers resolved" if self.attention else "none"
            yield Text("  attention: ").append(resolved, "" if self.resolved == self.attention else "yellow")
            if self.components.get("lumped"):
                yield Text(f"  lumped: {100 * self.lumped:.2f} % of the representation", "yellow")
            yield Text(f"  error: {self.error:.0e} in {self.dtype}")
            yield Text(f"  regions: {self.regions}")
            if self.frozen:
                yield Text(f"  with nonlinear='freeze': {self.frozen}")
        yield from (Text(f"  {line}", "dim") for line in (self.reason, *self.notes) if line)


@dataclass(frozen=True)
class Measurements:
    """The table.

    Attributes:
        rows: In its order.
        versions: Of the libraries that it was measured with.
    """

    rows: tuple[Measurement, ...]
    versions: Mapping[str, str]


@cache
def measurements() -> Measurements:
    """The table of models."""
    found = parse_json(read_text(TABLE))
    return Measurements(tuple(map(_row, found["rows"])), MappingProxyType(found["versions"]))


def search(wanted: str) -> tuple[Measurement, ...]:
    """The rows whose id or group hold some text, whatever is between its letters: `siglip2` is also `SigLIP 2`.

    Raises:
        ModelError: There is none.
    """
    rows, text = measurements().rows, _letters(wanted)
    found = tuple(row for row in rows if text in _letters(row.id) or text in _letters(row.group))
    if found and text:
        return found
    names = {name: None for row in rows for name in (row.group, row.id.rpartition("/")[2])}
    raise ModelError(
        f"No model in the table is called {wanted!r}.",
        cure=f"the nearest: {', '.join(nearest(wanted, names))}; a model need not be in it: "
        "`unweave explain ID --random-weights` plans any",
    )


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.casefold())


def _row(values: dict[str, Any]) -> Measurement:
    return Measurement(
        **{**values, "notes": tuple(values.get("notes", ())), "components": MappingProxyType(values["components"])}
    )
