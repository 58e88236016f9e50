"""`unweave heatmap`: where in images components read what speaks for a text or a class."""

from __future__ import annotations

from typing import Annotated

import typer

import unweave
from unweave.cli import given, options
from unweave.cli.console import print_note, print_warning, reporting, save, working


def heatmap(
    loading: given.Loading,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES", help="Image files and folders, or one set of images as for `unweave extract`."
        ),
    ],
    output: options.Output,
    reading: given.Reading,
    regions: given.Regions,
    components: given.Components,
    text: Annotated[list[str] | None, typer.Option(help="A text. May be given several times.")] = None,
    class_: Annotated[
        list[str] | None, typer.Option("--class", help="A class of the model's classifier. May be given several times.")
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Texts (or classes) whose mean is taken off: maps show what speaks for one rather than these."
        ),
    ] = None,
    space: options.Space = None,
    device: options.Device = "auto",
    no_figure: options.NoFigure = False,
    json: options.Json = False,
) -> None:
    """Draw where the chosen components read what speaks for a text or a class; everything adds up to the score."""
    with working(f"Reading {loading.id}"):
        model = given.model_of(loading, device)
        pictures = given.pictures_of(images, reading)
        pictures = given.at_regions(pictures, regions, lambda: unweave.plan(model, regions=True).everywhere)
    print_note(*model.notes)
    with reporting() as on_progress:
        heatmaps = unweave.heatmap(
            model,
            pictures,
            texts=text or (),
            classes=class_ or (),
            against=against or (),
            space=space,
            select=components,
            on_progress=on_progress,
        )
    save(heatmaps, output, no_figure=no_figure, json=json)
    for image in heatmaps.card["skipped"]:
        print_warning(f"{image['id']} was left out: {image['reason']}")
