"""`unweave debias`: the components that carry what misleads a classifier, found and ablated."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

import unweave
from unweave.cli import options, settings
from unweave.cli.console import print_files, reporting, save
from unweave.errors import ArgumentError


def counted(text: str) -> str:
    """A number of components, or `auto`."""
    if text != "auto" and not text.isdecimal():
        raise ArgumentError(f"-k must be a number or `auto`, got {text!r}.", cure="use `-k 10`")
    return text


def debias(
    sides: settings.Sides,
    output: options.Output,
    classification: settings.Probing,
    ranking: settings.Ranking,
    attribute: Annotated[str, typer.Option(metavar="FIELD", help="The field that has what misleads.")] = "background",
    k: Annotated[
        str,
        typer.Option(
            "-k", metavar="N", callback=counted, help="How many components to ablate; `auto` chooses without groups."
        ),
    ] = "10",
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the edit into the weights: an ordinary checkpoint, ending in `.safetensors`, measured again.",
        ),
    ] = None,
    export_k: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=options.MANY,
            help="How many components the checkpoint ablates; chosen on held-out images if not given.",
        ),
    ] = None,
    draws: Annotated[
        int, typer.Option(min=1, max=10_000, help="Of random components, a control.", rich_help_panel="How to work")
    ] = 20,
    seed: options.DrawSeed = 0,
    no_figure: options.NoFigure = False,
    json: options.Json = False,
) -> None:
    """Rank components by what misleads a classifier, and ablate the first; groups before and after, beside controls."""
    with reporting() as on_progress:
        debiasing = unweave.debias(
            sides,
            attribute,
            classification=classification,
            ranking=ranking,
            k=None if k == "auto" else int(k),
            draws=draws,
            seed=seed,
            on_progress=on_progress,
        )
        written = None
        if export is not None:
            written = unweave.checkpoint(debiasing, sides, export, k=export_k, on_progress=on_progress)
            debiasing = debiasing.with_checkpoint(written.about())
    save(debiasing, output, no_figure=no_figure, json=json)
    if written is not None and not json:
        Console(highlight=False).print(Text(), written, soft_wrap=True)
        print_files({"checkpoint": written.path})
