"""`unweave label`: names for components."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import unweave
from unweave.cli import options
from unweave.cli.console import reporting, show, working
from unweave.cli.views import in_words, view_of


def label(
    store: options.Store,
    output: options.Output,
    space: options.Space = None,
    vocabulary: Annotated[
        Path | None, typer.Option(help="A text file with one phrase on each line; the shipped vocabulary if not given.")
    ] = None,
    phrases: Annotated[
        int, typer.Option(min=1, max=options.MANY, help="The number of phrases for each component.")
    ] = 5,
    templates: options.Templates = None,
    where: options.Where = None,
    device: options.Device = "auto",
    top: Annotated[int, typer.Option(min=1, max=100, help="How many of the clearest components are drawn.")] = 10,
    no_figure: options.NoFigure = False,
    json: options.Json = False,
) -> None:
    """Name every component by phrases of a vocabulary, with the share of its variance that each explains."""
    with working(f"Reading {store}"):
        view, words = in_words(view_of(store, where), space, templates, device)
    with reporting() as on_progress:
        names = unweave.label(
            view, vocabulary, phrases=phrases, space=words, top=0 if no_figure else top, on_progress=on_progress
        )
    show(names, output, no_figure=no_figure, json=json)
