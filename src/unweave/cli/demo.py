"""`unweave demo`: the whole program on its own small models and images, offline, as a report to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unweave.cli import options
from unweave.cli.console import reporting, show, working
from unweave.cli.results import written


def demo(
    model: Annotated[
        str, typer.Option(help="Which of the pocket models (see `unweave models`).", metavar="pocket/NAME")
    ] = "pocket/deit",
    output: Annotated[
        Path, typer.Option("--output", "-o", callback=options.possible, help="The HTML file to write.")
    ] = Path("unweave-demo.html"),
    json: options.Json = False,
) -> None:
    """Take a small shipped model apart on shipped images, and write a report. Nothing is fetched."""
    with working(f"Reading {model}"):
        from unweave.demo import demonstrate
    with reporting() as on_progress:
        demonstration = demonstrate(output, model=model, on_progress=on_progress)
    written.append(str(demonstration.report))
    show(demonstration, json=json)
