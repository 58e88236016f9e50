"""`unweave align`: a linear map for each component into a text space."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

import unweave
from unweave.cli import options
from unweave.cli.console import print_error, reporting, show, working
from unweave.cli.views import view_of

if TYPE_CHECKING:
    from unweave.alignment import Point

_SPACE, _HOW = "The text space", "How to work"


def align(
    store: options.Store,
    space: Annotated[
        str,
        typer.Option(metavar="ID", help="Such as `open_clip/ViT-L-14/laion2b_s32b_b82k`.", rich_help_panel=_SPACE),
    ],
    output: options.Output,
    level: Annotated[str | None, typer.Option(help="The level; the store's first if not given.")] = None,
    space_checkpoint: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A file of its weights.", rich_help_panel=_SPACE),
    ] = None,
    space_random_weights: Annotated[
        bool, typer.Option("--space-random-weights", help="Random weights, to try it out.", rich_help_panel=_SPACE)
    ] = False,
    solver: Annotated[
        Literal["ranged", "adam"], typer.Option(help="The default, or as published.", rich_help_panel=_HOW)
    ] = "ranged",
    weight: Annotated[
        float,
        typer.Option(min=0, max=1e6, callback=options.finite, help="The weight of the penalty.", rich_help_panel=_HOW),
    ] = 1.0,
    form: Annotated[
        Literal["mean-squared", "frobenius"], typer.Option(help="The form of the penalty.", rich_help_panel=_HOW)
    ] = "mean-squared",
    rounds: Annotated[
        int, typer.Option(min=0, max=options.MANY, help="The most rounds (`ranged`).", rich_help_panel=_HOW)
    ] = 12,
    epochs: Annotated[
        int, typer.Option(min=1, max=options.MANY, help="The most epochs (`adam`).", rich_help_panel=_HOW)
    ] = 2,
    held_out: Annotated[
        float,
        typer.Option(
            min=0, max=1, callback=options.finite, help="Share of the images to stop by.", rich_help_panel=_HOW
        ),
    ] = 0.1,
    classes: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD", help="Fields that name classes, for zero-shot accuracies.", rich_help_panel=_HOW),
    ] = None,
    random_images: Annotated[
        int,
        typer.Option(
            min=0,
            max=options.MANY,
            help="To align the same model with random weights, a control.",
            rich_help_panel=_HOW,
        ),
    ] = 500,
    seed: options.DrawSeed = 0,
    device: options.Device = "auto",
    push: Annotated[str | None, typer.Option(metavar="ORG/NAME", help="Upload to the Hugging Face hub.")] = None,
    no_figure: options.NoFigure = False,
    json: options.Json = False,
) -> None:
    """Fit one linear map for each component into a text space, on images alone; go on where it was interrupted."""
    with working(f"Reading {space}"):
        view = view_of(store, level=level)
        words = unweave.text_space(
            space,
            checkpoint=space_checkpoint,
            random_weights=space_random_weights,
            device=unweave.device_of(device),
        )
        recipe = unweave.Recipe(
            solver=solver,
            weight=weight,
            form=form,
            held_out=held_out,
            seed=seed,
            rounds=rounds,
            epochs=epochs,
            random_images=random_images,
        )
    say = Console(stderr=True, highlight=False)

    def on_point(point: Point) -> None:
        line = f"  {point.step:12} {point.seconds:9.1f} {point.held_out:10.4f} {point.train:8.4f} {point.penalty:8.4f}"
        say.print(Text(line, "dim"))

    try:
        with reporting() as on_progress:
            say.print(Text("  step           seconds   held out    train  penalty", "dim"))
            aligner = unweave.align(
                view,
                words,
                recipe,
                classes=classes,
                kept=output / ".unfinished.safetensors",
                on_progress=on_progress,
                on_point=on_point,
            )
    except KeyboardInterrupt:
        print_error("Interrupted. What is done is kept; the same command goes on from there.")
        raise typer.Exit(130) from None
    show(aligner, output, no_figure=no_figure or "identity" in aligner.measured, json=json)
    if push is not None:
        with working(f"Uploading to {push}"):
            address = aligner.push(push)
        say.print(Text(f"uploaded to {address}"))
