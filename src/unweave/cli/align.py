"""`unweave align`: a linear map for each component into a text space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

import unweave
from unweave.cli import given, options, settings
from unweave.cli.console import print_note, reporting, resumable, save, working

if TYPE_CHECKING:
    from unweave.alignment import Point


def align(
    view: given.View,
    space: given.Space,
    output: options.Output,
    recipe: settings.Recipe,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--classes",
            "--class",
            metavar="FIELD",
            help="Fields that name classes, for zero-shot accuracies.",
            rich_help_panel="How to work",
        ),
    ] = None,
    push: Annotated[str | None, typer.Option(metavar="ORG/NAME", help="Upload to the Hugging Face hub.")] = None,
    no_figure: options.NoFigure = False,
    json: options.Json = False,
) -> None:
    """Fit one linear map for each component into a text space, on images alone; go on where it was interrupted."""

    def on_point(point: Point) -> None:
        print_note(
            f"  {point.step:12} {point.seconds:9.1f} {point.held_out:10.4f} {point.train:8.4f} {point.penalty:8.4f}"
        )

    with resumable(), reporting() as on_progress:
        print_note("  step           seconds   held out    train  penalty")
        aligner = unweave.align(
            view,
            space,
            recipe,
            classes=classes,
            kept=output / ".unfinished.safetensors",
            on_progress=on_progress,
            on_point=on_point,
        )
    save(aligner, output, no_figure=no_figure or "identity" in aligner.measured, json=json)
    if push is not None:
        with working(f"Uploading to {push}"):
            address = aligner.push(push)
        print_note(f"uploaded to {address}")
