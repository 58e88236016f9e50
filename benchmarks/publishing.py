"""The rows of the table of models as data of the package, and as a page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from catalogue import NEWEST
from reasons import reason

from unweave.components import KINDS
from unweave.models.measurement import TABLE, Measurement, measurements

PAGE = Path(__file__).parents[1] / "docs" / "models.md"

LISTS = ("transformers", "open_clip", "torchvision", "timm", "named in the README")
VERSIONS = {"torch": "torch", "timm": "timm", "open_clip": "open_clip_torch"}
VERSIONS |= {name: name for name in ("transformers", "torchvision")}

_OF_FILES = ("Of ", "Pictures are resized", "There is no processor")
"""Notes on what the files of a model hold, which the configurations that are measured here lack."""

FROZEN = "it is not linear; `nonlinear='freeze'` passes it as a gate held at its value"


def published(rows: Mapping[str, dict[str, Any]], listed: Mapping[str, str]) -> list[Path]:
    """Writes the table in the package, and the page; gives their files."""
    versions = {name: metadata.version(own) for name, own in VERSIONS.items()}
    lines = [json.dumps(_told(rows[id], group)) for id, group in listed.items() if id in rows]
    _write(TABLE, f'{{"versions": {json.dumps(versions)}, "rows": [\n' + ",\n".join(lines) + "\n]}\n")
    measurements.cache_clear()
    _write(PAGE, page(measurements().rows, measurements().versions, [id for id in listed if id not in rows]))
    return [TABLE, PAGE]


def _write(file: Path, text: str) -> None:
    fresh = file.with_name(file.name + ".new")
    fresh.write_text(text, "utf-8")
    shutil.move(fresh, file)


def _told(row: dict[str, Any], group: str) -> dict[str, Any]:
    """What of a row is published (see `unweave.models.Measurement`)."""
    told: dict[str, Any] = {"id": row["id"], "group": group, "date": row["date"], "components": {}}
    if "failure" in row:
        return told | {"reason": _first(row["failure"])}
    told["components"] = {kind: row["kinds"][kind] for kind in KINDS if kind in row["kinds"]}
    told |= {"attention": row["attention"], "resolved": row["resolved"], "error": row["error"]}
    if row["dtype"] != "float32":
        told["dtype"] = row["dtype"]
    if "lumped" in row["kinds"]:
        told["lumped"] = round(row["share"], 3)
    told |= {"regions": _first(row["regions"]), "frozen": _opened(row), "reason": _why(row)}
    notes = [row["cut"]] if row.get("cut") else []
    if "same" in row:
        notes.append(f"the same image tower as {row['same']}, measured there")
    notes += [note for note in row["notes"] if not note.startswith(_OF_FILES)]
    return {name: value for name, value in (told | {"notes": notes}).items() if value not in ("", [])}


def _why(row: dict[str, Any]) -> str:
    found = [*row["lumps"], *row["unresolved"]]
    if not found:
        return ""
    more = f" ({len(found) - 1} more)" if found[1:] else ""
    return f"{reason(row['id'])} {found[0].replace(FROZEN, 'it is not linear (freeze passes it)')}{more}".strip()


def _opened(row: dict[str, Any]) -> str:
    """What freezing resolves."""
    frozen = row.get("frozen")
    if frozen is None or "failure" in frozen:
        return "" if frozen is None else _first(frozen["failure"])
    kinds = ", ".join(f"{frozen['kinds'][kind]} {kind}" for kind in KINDS if kind in frozen["kinds"])
    layers = f"; attention {frozen['resolved']}/{row['attention']}" if row["attention"] else ""
    return f"{kinds}{layers}; {frozen['share']:.0%} lumped"


def _first(text: str) -> str:
    line = text.splitlines()[0].strip()
    return line if len(line) < 300 else line[:297] + "..."


def page(rows: Iterable[Measurement], versions: Mapping[str, str], missing: list[str]) -> str:
    """The page that shows the table."""
    rows = tuple(rows)
    by_id = {row.id: row for row in rows}
    dates = sorted({row.date for row in rows})
    ran = [row for row in rows if row.error is not None]
    whole, regional = sum(row.whole for row in ran), sum(row.regions.startswith("yes") for row in ran)
    lines = [
        _HEAD.format(
            rows=len(rows),
            ran=len(ran),
            whole=whole,
            regional=regional,
            failed=len(rows) - len(ran),
            dates=" to ".join(dict.fromkeys((dates[0], dates[-1]))),
            versions=", ".join(f"{name} {own}" for name, own in versions.items()),
        ),
        "## Asked for in 2026",
        "",
        "Each by the name that it goes by; the rows of one library's own list are further down.",
    ]
    for group, ids in NEWEST.items():
        lines += ["", f"### {group}", "", *_table(by_id[id] for id in ids if id in by_id)]
    for library in LISTS:
        own = [row for row in rows if row.group == library]
        lines += ["", f"## {library}", "", _HEADS[library], "", *_table(own)]
    if missing:
        lines += ["", "## Not measured yet", "", ", ".join(f"`{id}`" for id in missing)]
    return "\n".join(lines) + "\n"


def _table(rows: Iterable[Measurement]) -> list[str]:
    head = ("model", "components", "attention", "lumped", "error", "regions", "what is missing, and notes")
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *map(_line, rows)]


def _line(row: Measurement) -> str:
    frozen = row.frozen and f"Frozen: {row.frozen}."
    said = " ".join(filter(None, [row.reason, frozen, *(f"*{note.rstrip('.')}*." for note in row.notes)]))
    if row.error is None:
        cells = [row.id, "none", "", "", "", "", said]
    else:
        cells = [
            row.id,
            ", ".join(f"{count} {kind}" for kind, count in row.components.items()),
            f"{row.resolved}/{row.attention}",
            f"{row.lumped:.0%}" if row.components.get("lumped") else "",
            f"{row.error:.0e}" + ("" if row.dtype == "float32" else f" ({row.dtype})"),
            row.regions,
            said,
        ]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


_HEAD = """\
# Models: how far each is resolved

This page is made by `python -m benchmarks.models --publish`; do not edit it. Search it with your browser, or on the
command line: `unweave models --search dinov3`.

{rows} models; {ran} are decomposed, {whole} of them to the end: every attention layer resolved, nothing lumped.
{regional} have plans of regions. {failed} are not decomposed, and say why. Measured {dates}
with {versions}, by

    OMP_NUM_THREADS=1 python -m benchmarks.models

Every model has random weights and two random images, at head level in float32, in a process of its own that may take
five minutes and 8 GB. The columns:

* *attention*: layers whose heads are components, or that are passed through, of all that the representation depends on;
* *lumped*: how long the sum of all lumped components is, relative to the representation. A single lumped component
  is exact by construction: its error says nothing;
* *error*: the relative error of the sum, which is to be at most 1e-5;
* *regions*: whether `unweave.plan(model, regions=True)` decomposes any region, exactly;
* the last: why it is not resolved to the end, with the first place and how many others there are. Where "freeze passes
  it", `nonlinear="freeze"` takes the activation as a gate that is held; what that resolves is said behind "Frozen". In
  italics what was cut to measure it, and what was assumed.

Models that are not here are planned in seconds, and say the same of themselves:

```python
import unweave

model = unweave.load_model("timm/vit_tiny_patch16_224", random_weights=True)
coverage = unweave.plan(model).coverage
assert coverage.resolved == coverage.attention_layers == 12
```
"""

_HEADS = {
    "transformers": "Every vision class that a configuration of its own builds: that of its class by default, cut to "
    "fewer layers and smaller images. Classes that are built of the same tower share a measurement.",
    "open_clip": "Every configuration; those with the same image tower share a measurement. Text towers are not built.",
    "torchvision": "Every classifier.",
    "timm": "A small model of each module.",
    "named in the README": "Models of timm that the README names, at full size.",
}
