"""`unweave models`: what model ids mean, which libraries are installed, and how far models are resolved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from unweave.cli import options
from unweave.cli.console import in_percent, print_json, table, working

if TYPE_CHECKING:
    from unweave.models.measurement import Measurement


def models(
    search: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Show how far the models were resolved that are called so.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Say what model ids mean and which libraries are installed, or how far models are resolved."""
    if search is None:
        _libraries(json)
    else:
        _searched(search, json)


def _libraries(json: bool) -> None:
    with working("Looking for libraries"):
        from unweave.models import available, measurements

        libraries, measured = available(), len(measurements().rows)
    if json:
        print_json({"libraries": libraries, "measured": measured})
        return
    rows: list[list[str | Text]] = []
    for library in libraries:
        version = library["version"]
        installed = Text(version, "green") if version else Text(f"no: {library['install']}", "yellow")
        rows.append([str(library["pattern"]), str(library["meaning"]), installed])
    console = Console(highlight=False)
    console.print(table("Model ids", {"id": "left", "what it names": "left", "installed": "left"}, rows))
    console.print(Text("\nFor example:"))
    for library in libraries:
        console.print(Text(f"  unweave explain {library['example']}"), soft_wrap=True)
    console.print(Text("\nIn Python, any torch.nn.Module: unweave.models.Model.from_module(module)"), soft_wrap=True)
    console.print(
        Text(f"\nHow far {measured} models are resolved, by name: unweave models --search dinov3"), soft_wrap=True
    )


def _searched(wanted: str, json: bool) -> None:
    with working("Looking for models"):
        from unweave.models import measurements, search

        found, versions = search(wanted), measurements().versions
    if json:
        print_json({"versions": dict(versions), "rows": [_plain(row) for row in found]})
        return
    console = Console(highlight=False)
    for row in found:
        console.print(Text.assemble((row.id, "bold"), "" if row.group in row.id else f"  {row.group}"), soft_wrap=True)
        for line in _lines(row):
            console.print(Text("  ") + line, soft_wrap=True)
    by = ", ".join(f"{name} {own}" for name, own in versions.items())
    console.print(Text(f"\nMeasured with random weights, at head level, by {by}", "dim"), soft_wrap=True)


def _plain(row: Measurement) -> dict[str, object]:
    values = {field.name: getattr(row, field.name) for field in fields(row)}
    return {**values, "components": dict(row.components), "whole": row.whole}


def _lines(row: Measurement) -> Iterator[Text]:
    """What is said of a model."""
    if row.error is None:
        yield Text("not decomposed", "yellow")
    else:
        yield Text(", ".join(f"{count} {kind}" for kind, count in row.components.items()))
        resolved = f"{row.resolved} of {row.attention} layers resolved" if row.attention else "none"
        yield Text("attention: ").append(resolved, "" if row.resolved == row.attention else "yellow")
        if row.components.get("lumped"):
            yield Text(f"lumped: {in_percent(row.lumped)} of the representation", "yellow")
        yield Text(f"error: {row.error:.0e} in {row.dtype}")
        yield Text(f"regions: {row.regions}")
        if row.frozen:
            yield Text(f"with nonlinear='freeze': {row.frozen}")
    yield from (Text(line, "dim") for line in (row.reason, *row.notes) if line)
