"""`unweave segment`: how well maps find the object that an image shows."""

from __future__ import annotations

from typing import Annotated

import typer

import unweave
from unweave.cli import given, options
from unweave.cli.console import print_note, print_warning, reporting, save, working


def segment(
    loading: given.Loading,
    images: options.Images,
    output: options.Output,
    reading: given.Reading,
    components: given.Components,
    label: options.Label = "label",
    predicted: Annotated[
        bool, typer.Option("--predicted", help="Map the class that the model itself says, rather than the image's own.")
    ] = False,
    space: options.Space = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Only this one: `components`, `evidence`, `raw attention`, `rollout`, ...")
    ] = None,
    device: options.Device = "auto",
    shown: Annotated[int, typer.Option(min=1, max=1000, help="How many images to draw.")] = 5,
    no_figure: options.NoFigure = False,
    json: options.Json = False,
) -> None:
    """Threshold each image's map for its own class at the mean, and compare it with the object's mask."""
    with working(f"Reading {loading.id}"):
        model = given.model_of(loading, device)
        pictures = unweave.open_images(images, **reading)
    print_note(*model.notes)
    with reporting() as on_progress:
        segmentation = unweave.segment(
            model,
            pictures,
            label=None if predicted else label,
            space=space,
            select=components,
            methods=method,
            shown=0 if no_figure else shown,
            on_progress=on_progress,
        )
    save(segmentation, output, no_figure=no_figure, json=json)
    for name, reason in segmentation.skipped[:5]:
        print_warning(f"{name} was left out: {reason}")
    if len(segmentation.skipped) > 5:
        print_warning(f"{len(segmentation.skipped) - 5} more were left out.")
