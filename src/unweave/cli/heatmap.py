"""`unweave heatmap`: where in images components read what speaks for a text or a class."""

from __future__ import annotations

from typing import Annotated

import typer

import unweave
from unweave.cli import options
from unweave.cli.console import print_note, print_warning, reporting, show, working
from unweave.cli.views import at_regions, chosen_of, model_of, pictures_of


def heatmap(
    model: options.Model,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES", help="Image files and folders, or one set of images as for `unweave extract`."
        ),
    ],
    output: options.Output,
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
    select: options.Select = None,
    scores: options.Scores = None,
    feature: options.Feature = None,
    components: options.Components = None,
    checkpoint: options.Checkpoint = None,
    checkpoint_key: options.CheckpointKey = None,
    random_weights: options.RandomWeights = False,
    seed: options.Seed = 0,
    image_size: options.ImageSize = None,
    representation: options.Representation = None,
    pool: options.Pool = None,
    token: options.Token = None,
    box: options.Box = None,
    mask: options.Mask = None,
    limit: options.Limit = None,
    white: options.White = None,
    max_pixels: options.MaxPixels = None,
    device: options.Device = "auto",
    no_figure: options.NoFigure = False,
    json: options.Json = False,
) -> None:
    """Draw where the chosen components read what speaks for a text or a class; everything adds up to the score."""
    chosen = chosen_of(select, scores, feature, components)
    loading = unweave.Loading(model, checkpoint, random_weights, seed, image_size, checkpoint_key, representation, pool)
    with working(f"Reading {model}"):
        loaded = model_of(loading, device)
        pictures = pictures_of(images, limit, white, max_pixels)
        pictures = at_regions(pictures, token, box, mask, lambda: unweave.plan(loaded, regions=True).everywhere)
    for note in loaded.notes:
        print_note(note)
    with reporting() as on_progress:
        heatmaps = unweave.heatmap(
            loaded,
            pictures,
            texts=text or (),
            classes=class_ or (),
            against=against or (),
            space=space,
            select=chosen,
            on_progress=on_progress,
        )
    show(heatmaps, output, no_figure=no_figure, json=json)
    for image in heatmaps.card["skipped"]:
        print_warning(f"{image['id']} was left out: {image['reason']}")
