"""`unweave demo`: the whole program on its own small models and images, offline, as a report to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from unweave.cli import options
from unweave.cli.console import in_percent, print_json, table, working
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
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    with working(f"Reading {model}"):
        from unweave.demo import demonstrate

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress("decomposing", *columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=None)
        found = demonstrate(
            output, model=model, advance=lambda done, total: progress.update(task, completed=done, total=total)
        )
    written.append(str(found.report))
    components, error = found.contributions.components, float(found.contributions.error.max())
    if json:
        print_json(
            {
                "model": model,
                "images": len(found.contributions.ids),
                "components": len(components),
                "largest_error": error,
                "seconds": round(found.seconds, 3),
                "carried": {
                    factor: [
                        {**part.as_dict(), "explained": float(value)}
                        for part, value in zip(components, values, strict=True)
                    ]
                    for factor, values in found.carried.items()
                },
                "files": {"report": str(found.report)},
            }
        )
        return
    console = Console(highlight=False)
    rows = [
        [factor, str(components[place]), in_percent(float(found.carried[factor][place]))]
        for factor, place in found.carriers.items()
    ]
    headings = {"factor": "left", "is carried most by": "left", "of its variance": "right"}
    console.print(table("What the components carry", headings, rows))
    console.print(
        Text(
            f"\n{len(found.contributions.ids):,} images in {found.seconds:.1f} s. The {len(components)} components of "
            f"{model} add up to the representation within {error:.1e} (relative, largest of all images)."
        ),
        soft_wrap=True,
    )
    console.print(Text.assemble(("report  ", "dim"), str(found.report)), soft_wrap=True)
