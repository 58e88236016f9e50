"""An explanation: what a plan consists of, by which rules it was made, and what running it costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from matplotlib.figure import Figure
from rich.console import RenderableType
from rich.text import Text

from unweave.components import KINDS, Component
from unweave.figures import share_figure
from unweave.results import Result, rich_table


@dataclass(frozen=True, eq=False, repr=False)
class Explanation(Result):
    """What a model is decomposed into, before any image is read.

    Attributes:
        components: The components of the plan, in the order of execution.
        report: The plan as data (see `Plan.report`).
    """

    name = "explanation"

    components: tuple[Component, ...]
    report: Mapping[str, Any]

    def table(self) -> pa.Table:
        """One row for each component."""
        numbers = ("layer", "head", "token", "neuron")
        columns: dict[str, pa.Array] = {
            "component": pa.array(map(str, self.components), pa.string()),
            "kind": pa.array((part.kind for part in self.components), pa.string()),
            **{name: pa.array((getattr(part, name) for part in self.components), pa.int64()) for name in numbers},
        }
        return pa.table(columns)

    @property
    def coverage(self) -> Text:
        """How many attention layers were resolved into heads, and why not the others."""
        coverage = self.report["coverage"]
        layers, resolved = coverage["attention_layers"], coverage["resolved"]
        if not layers:
            return Text("attention: this model has none")
        style = "green" if resolved == layers else "yellow"
        text = Text.assemble("attention: ", (f"{resolved} of {layers} layers resolved", style))
        if coverage["passed"]:
            text.append(f", {len(coverage['passed'])} of them passed through: {', '.join(coverage['passed'])}")
        for reason in coverage["unresolved"]:
            text.append(f"\n  {reason}", "yellow")
        return text

    def about(self) -> dict[str, Any]:
        """The card and the plan as data, ready for JSON."""
        return {**super().about(), **self.report}

    def figure(self) -> Figure:
        """Layers by heads, with the other branches beside: where each component stands."""
        equal = [1 / len(self.components)] * len(self.components)
        return share_figure(self.components, equal, title=f"{self.report['model']}: components")

    def told(self) -> list[RenderableType]:
        """The components of each layer, how far attention was resolved, the operations, and the costs."""
        report = self.report
        heading = f": {len(self.components)} components at level {report['level']}, {report['dim']} dim"
        memory = (
            f"memory: {_in_mebibytes(report['memory_per_image'])} per image beside the forward pass, "
            f"{_in_mebibytes(report['constant_bytes'])} of constants"
        )
        rows = [
            [
                entry["operation"],
                entry["rule"],
                str(entry["count"]),
                ", ".join(m or "the model" for m in entry["modules"]),
            ]
            for entry in report["operations"]
        ]
        columns = {"operation": "left", "rule": "left", "times": "right", "for example in": "left"}
        parts: list[RenderableType] = [
            Text.assemble((str(report["model"]), "bold"), heading),
            *map(Text, report["notes"]),
            Text(),
            _components_table(self.components),
            Text(),
            self.coverage,
            Text(memory),
            Text(),
            rich_table("Operations on the path", columns, rows),
        ]
        if report["dense"]:
            parts += [Text(), Text(f"dense fall-backs, as large as the values themselves: {_several(report['dense'])}")]
        if report["lumps"]:
            rows = [[lump["operation"], lump["module"], lump["line"], lump["reason"]] for lump in report["lumps"]]
            columns = {"stopped at": "left", "module": "left", "line": "left", "because": "left"}
            parts += [Text(), rich_table("Where nothing can be followed", columns, rows)]
        if "frozen" in report:
            parts += [Text(), Text(_opened(report["frozen"]))]
        for path, place in report["unplaced"].items():
            parts.append(Text(f"where the tokens of {path} lie in the image is lost at {place}"))
        for rule in dict.fromkeys(lump["rule"] for lump in report["lumps"] if lump["rule"]):
            parts += [Text("\nthe rule to write:", "dim"), Text(rule)]
        return parts


def _components_table(components: Sequence[Component]) -> RenderableType:
    """How many components of each kind every layer has, equal neighbours in one row."""
    layers: dict[int | str, Counter[str]] = {}
    paths: dict[int | str, str] = {}
    for component in components:
        key = component.layer if component.layer is not None else component.path or component.kind
        layers.setdefault(key, Counter())[component.kind] += 1
        paths.setdefault(key, component.path or component.kind)
    kinds = [kind for kind in KINDS if any(counts[kind] for counts in layers.values())]
    runs: list[list[int | str]] = []
    for key, counts in layers.items():
        before = runs[-1][-1] if runs else None
        if isinstance(key, int) and isinstance(before, int) and layers[before] == counts:
            runs[-1].append(key)
        else:
            runs.append([key])
    rows = [
        [
            _span([str(key) if isinstance(key, int) else "" for key in run]),
            _span([paths[key] for key in run]),
            *(str(layers[run[0]][kind] or "") for kind in kinds),
        ]
        for run in runs
    ]
    total = ["", "all", *(str(sum(counts[kind] for counts in layers.values())) for kind in kinds)]
    columns = {"layer": "left", "from": "left"} | {str(kind): "right" for kind in kinds}
    return rich_table("Components of each layer", columns, [*rows, total])


def _opened(frozen: Mapping[str, Any]) -> str:
    """What a plan resolves that freezes nonlinearities on the trunk."""
    kinds = ", ".join(f"{frozen['kinds'][kind]} {kind}" for kind in KINDS if kind in frozen["kinds"])
    coverage, memory = frozen["coverage"], _in_mebibytes(frozen["memory_per_image"])
    layers = f"{coverage['resolved']} of {coverage['attention_layers']} attention layers resolved"
    return f"with nonlinear='freeze': {kinds}; {layers}; {memory} per image"


def _in_mebibytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


def _span(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"


def _several(names: list[str], number: int = 12) -> str:
    return ", ".join(names[:number]) + (f" and {len(names) - number:,} more" if len(names) > number else "")
