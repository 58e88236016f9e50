"""`unweave segment`: how well maps find the object that an image shows."""

from __future__ import annotations

from typing import Annotated

import typer

import unweave
from unweave.cli import options
from unweave.cli.console import print_note, print_warning, reporting, show, working
from unweave.cli.views import chosen_of, model_of


def segment(
    model: options.Model,
    images: options.Images,
    output: options.Output,
    label: options.Label = "label",
    predicted: Annotated[
        bool, typer.Option("--predicted", help="Map the class that the model itself says, rather than the image's own.")
    ] = False,
    space: options.Space = None,
    select: options.Select = None,
    scores: options.Scores = None,
    feature: options.Feature = None,
    components: options.Components = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Only this one: `components`, `evidence`, `raw attention`, `rollout`, ..."),
    ] = None,
    checkpoint: options.Checkpoint = None,
    checkpoint_key: options.CheckpointKey = None,
    random_weights: options.RandomWeights = False,
    seed: options.Seed = 0,
    image_size: options.ImageSize = None,
    representation: options.Representation = None,
    pool: options.Pool = None,
    limit: options.Limit = None,
    white: options.White = None,
    max_pixels: options.MaxPixels = None,
    device: options.Device = "auto",
    shown: Annotated[int, typer.Option(min=1, max=1000, help="How many images to draw.")] = 5,
    no_figure: options.NoFigure = False,
    json: options.Json = False,
) -> None:
    """Threshold each image's map for its own class at the mean, and compare it with the object's mask."""
    chosen = chosen_of(select, scores, feature, components)
    loading = unweave.Loading(model, checkpoint, random_weights, seed, image_size, checkpoint_key, representation, pool)
    with working(f"Reading {model}"):
        loaded = model_of(loading, device)
        pictures = unweave.open_images(images, limit=limit, white=white, max_pixels=max_pixels)
    for note in loaded.notes:
        print_note(note)
    with reporting() as on_progress:
        segmentation = unweave.segment(
            loaded,
            pictures,
            label=None if predicted else label,
            space=space,
            select=chosen,
            methods=method,
            shown=0 if no_figure else shown,
            on_progress=on_progress,
        )
    show(segmentation, output, no_figure=no_figure, json=json)
    for name, reason in segmentation.skipped[:5]:
        print_warning(f"{name} was left out: {reason}")
    if len(segmentation.skipped) > 5:
        print_warning(f"{len(segmentation.skipped) - 5} more were left out.")
