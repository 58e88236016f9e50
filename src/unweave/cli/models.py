"""`unweave models`: what model ids mean, which libraries are installed, and how far models are resolved."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from unweave.cli import options
from unweave.cli.console import print_json, working


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
        from unweave.results import rich_table

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
    console.print(rich_table("Model ids", {"id": "left", "what it names": "left", "installed": "left"}, rows))
    lines = [
        "\nFor example:",
        *(f"  unweave explain {library['example']}" for library in libraries),
        "\nIn Python, any torch.nn.Module: unweave.models.Model.from_module(module)",
        f"\nHow far {measured} models are resolved, by name: unweave models --search dinov3",
    ]
    console.print(Text("\n".join(lines)), soft_wrap=True)


def _searched(wanted: str, json: bool) -> None:
    with working("Looking for models"):
        from unweave.models import measurements, search

        rows, versions = search(wanted), measurements().versions
    if json:
        print_json({"versions": dict(versions), "rows": [row.about() for row in rows]})
        return
    console = Console(highlight=False)
    for row in rows:
        console.print(*row.told(), sep="\n", soft_wrap=True)
    by = ", ".join(f"{name} {version}" for name, version in versions.items())
    console.print(Text(f"\nMeasured with random weights, at head level, by {by}", "dim"), soft_wrap=True)
