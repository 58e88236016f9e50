"""`unweave label`: names for components."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import unweave
from unweave.cli import given, options
from unweave.cli.console import reporting, save, working


def label(
    view: given.View,
    output: options.Output,
    space: options.Space = None,
    vocabulary: Annotated[
        Path | None, typer.Option(help="A text file with one phrase on each line; the shipped vocabulary if not given.")
    ] = None,
    phrases: Annotated[
        int, typer.Option(min=1, max=options.MANY, help="The number of phrases for each component.")
    ] = 5,
    templates: options.Templates = None,
    device: options.Device = "auto",
    top: Annotated[int, typer.Option(min=1, max=100, help="How many of the clearest components are drawn.")] = 10,
    no_figure: options.NoFigure = False,
    json: options.Json = False,
) -> None:
    """Name every component by phrases of a vocabulary, with the share of its variance that each explains."""
    with working("Reading the text space"):
        view, words = given.in_words(view, space, templates, device)
    with reporting() as on_progress:
        names = unweave.label(
            view, vocabulary, phrases=phrases, space=words, top=0 if no_figure else top, on_progress=on_progress
        )
    save(names, output, no_figure=no_figure, json=json)
