"""`unweave search`: images that a text names, or that are like an image in a property."""

from __future__ import annotations

from typing import Annotated

import typer

import unweave
from unweave.cli import given, options, settings
from unweave.cli.console import reporting, save

_how = options.panel("How to search")


def search(
    view: given.View,
    output: options.Output,
    choice: settings.Choice,
    text: Annotated[str | None, typer.Option(help="What to look for, in words.")] = None,
    image: Annotated[str | None, typer.Option(metavar="ID|FILE", help="An image to look for others like.")] = None,
    space: options.Space = None,
    count: Annotated[int, _how("How many images to find.", min=1, max=options.MANY)] = 10,
    uncentred: Annotated[bool, _how("Leave the mean of the images in, as published.", "--uncentred")] = False,
    no_figure: options.NoFigure = False,
    json: options.Json = False,
) -> None:
    """Find images that a text names, or that are like an image in a property: one row of results for each feature."""
    with reporting() as on_progress:
        retrieval = unweave.search(
            view,
            text=text,
            image=image,
            choice=choice,
            space=space,
            count=count,
            centred=not uncentred,
            on_progress=on_progress,
        )
    save(retrieval, output, no_figure=no_figure, json=json)
