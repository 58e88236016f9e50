"""`unweave search`: images that a text names, or that are like an image in a property."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import unweave
from unweave.cli import options
from unweave.cli.console import reporting, show, working
from unweave.cli.views import pairs_of, view_of

_COMPONENTS, _HOW = "Which components", "How to search"


def search(
    store: options.Store,
    output: options.Output,
    text: Annotated[str | None, typer.Option(help="What to look for, in words.")] = None,
    image: Annotated[str | None, typer.Option(metavar="ID|FILE", help="An image to look for others like.")] = None,
    feature: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|PHRASE",
            help="A property; components are chosen for it. May be given several times.",
            rich_help_panel=_COMPONENTS,
        ),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(help="A TOML file of the features that are scored.", rich_help_panel=_COMPONENTS),
    ] = None,
    by: Annotated[
        Literal["score", "margin"] | None,
        typer.Option(help="What components are ranked by; as published if not given.", rich_help_panel=_COMPONENTS),
    ] = None,
    k: Annotated[
        int | None,
        typer.Option(
            "-k",
            min=1,
            max=options.MANY,
            help="How many components; what can be told from chance if not.",
            rich_help_panel=_COMPONENTS,
        ),
    ] = None,
    best: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FEATURE=FIELD",
            help="As many components as find images with the same value of a field best.",
            rich_help_panel=_COMPONENTS,
        ),
    ] = None,
    scored_on: Annotated[
        str | None,
        typer.Option(
            metavar="STORE", help="Score on the images of this store, of the same model.", rich_help_panel=_COMPONENTS
        ),
    ] = None,
    space: options.Space = None,
    where: options.Where = None,
    count: Annotated[
        int, typer.Option(min=1, max=options.MANY, help="How many images to find.", rich_help_panel=_HOW)
    ] = 10,
    uncentred: Annotated[
        bool, typer.Option("--uncentred", help="Leave the mean of the images in, as published.", rich_help_panel=_HOW)
    ] = False,
    samples: Annotated[int, typer.Option(min=20, max=100_000, help="Of the bootstrap.", rich_help_panel=_HOW)] = 400,
    seed: options.DrawSeed = 0,
    no_figure: options.NoFigure = False,
    json: options.Json = False,
) -> None:
    """Find images that a text names, or that are like an image in a property: one row of results for each feature."""
    with working(f"Reading {store}"):
        choice = unweave.Choice(
            tuple(feature or ()),
            features,
            by,
            k,
            {name: fields[0] for name, fields in pairs_of(best, "colour=colour").items()},
            unweave.open_store(scored_on) if scored_on else None,
            samples,
            seed,
        )
        view = view_of(store, where)
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
    show(retrieval, output, no_figure=no_figure, json=json)
