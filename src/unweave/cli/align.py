"""`unweave align`: a linear map for each component into a text space."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from unweave.cli import options
from unweave.cli.console import print_error, print_json, progress, table, working
from unweave.cli.results import written
from unweave.errors import AlignmentError, ArgumentError

_SPACE, _HOW = "The text space", "How to work"


def align(
    store: options.Store,
    text_space: Annotated[
        str,
        typer.Option(metavar="ID", help="Such as `open_clip/ViT-L-14/laion2b_s32b_b82k`.", rich_help_panel=_SPACE),
    ],
    output: options.Output,
    level: Annotated[str | None, typer.Option(help="Which level; the store's first if not given.")] = None,
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
        float, typer.Option(min=0, max=1e6, callback=options.finite, help="Of the penalty.", rich_help_panel=_HOW)
    ] = 1.0,
    form: Annotated[
        Literal["mean-squared", "frobenius"], typer.Option(help="Of the penalty.", rich_help_panel=_HOW)
    ] = "mean-squared",
    rounds: Annotated[int, typer.Option(min=0, max=10_000, help="At most (`ranged`).", rich_help_panel=_HOW)] = 12,
    epochs: Annotated[int, typer.Option(min=1, max=100_000, help="At most (`adam`).", rich_help_panel=_HOW)] = 2,
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
    json: options.Json = False,
) -> None:
    """Fit one linear map for each component into a text space, on images alone; go on where it was interrupted."""
    with working(f"Reading {text_space}"):
        import unweave
        from unweave import align as rooms
        from unweave.extraction.extractor import device_of

        if push is not None:
            _refuse_name(push)
        opened = unweave.open_store(store)
        for name in classes or ():
            opened.field(name)  # refuses one that there is not, before anything is computed
        space = unweave.text_space(
            text_space, checkpoint=space_checkpoint, random_weights=space_random_weights, device=device_of(device)
        )
    recipe = rooms.Recipe(weight=weight, form=form, seed=seed, rounds=rounds, epochs=epochs)
    say = Console(stderr=True, highlight=False)
    said: list[bool] = []

    def on_point(point: Any) -> None:
        if not said:
            say.print(Text("  step           seconds   held out    train  penalty", "dim"))
            said.append(True)
        line = f"  {point.step:12} {point.seconds:9.1f} {point.held_out:10.4f} {point.train:8.4f} {point.penalty:8.4f}"
        say.print(Text(line, "dim"))

    try:
        with progress("embedding", len(opened)) as advance:
            rooms.embeddings(opened, space, on_images=advance)
        with say.status(Text("Aligning, and then the controls")), redirect_stdout(sys.stderr):
            aligner = rooms.align(
                opened,
                space,
                solver=solver,
                recipe=recipe,
                share=held_out,
                level=level,
                classes=tuple(classes or ("label",)),
                random_images=random_images,
                kept=output / ".unfinished.safetensors",
                on_point=on_point,
            )
        file = aligner.save(output)
    except KeyboardInterrupt:
        print_error("Interrupted. What is done is kept; the same command goes on from there.")
        raise typer.Exit(130) from None
    written.append(str(file))
    found = {"aligner": str(file), **aligner.identity, "measured": dict(aligner.measured)}
    if push is not None:
        with working(f"Uploading to {push}"):
            try:
                found["address"] = aligner.push(push)
            except AlignmentError as error:
                raise AlignmentError(f"{error.what} It lies in {file}.", where=error.where, cure=error.cure) from error
    if json:
        print_json(found)
        return
    console = Console(highlight=False)
    console.print(table("", {"": "left", " ": "right"}, _card(aligner.measured)))
    console.print(Text(f"{len(aligner.components):,} maps in {file}"), soft_wrap=True)


def _refuse_name(repository: str) -> None:
    """Refuse a name that the hub would refuse when everything is done."""
    if not re.fullmatch(r"([\w.-]{1,96}/)?[\w.-]{1,96}", repository, re.ASCII):
        raise ArgumentError(f"The hub has no place called {repository[:80]!r}.", cure="write ORG/NAME after `--push`")


def _card(measured: Any) -> Iterator[list[str | Text]]:
    """What is worth a look of what was measured."""
    if "identity" in measured:
        yield ["the model is the space's own image encoder:", "nothing had to be aligned"]
    else:
        own = measured["objective"]
        yield ["1 - cosine, held-out images", f"{own['held out']:.4f}"]
        yield ["1 - cosine, images that were fitted", f"{own['train']:.4f}"]
        yield ["penalty", f"{own['penalty']:.4f}"]
    for name, value in measured.get("controls", {}).items():
        if not isinstance(value, dict):
            yield [f"control: {name}", f"{value:.4f}"]
        elif "left out" in value:
            yield [f"control: {name}", str(value["left out"]).splitlines()[0]]
        else:
            few = f"on {value['images']} images"
            yield [f"control: {name}, {few}", f"{value['random weights']:.4f}"]
            yield [f"this model, {few}", f"{value['this model']:.4f}"]
    quantiles = measured["cosine percentiles"]
    yield ["cosine, 5th, 50th and 95th percentile", " ".join(f"{quantiles[one]:.3f}" for one in ("5", "50", "95"))]
    for name, value in measured["zero-shot"].items():
        if "left out" in value:
            yield [f"zero-shot {name}", str(value["left out"]).splitlines()[0]]
        else:
            text = f"{value['aligned']:.3f}, the space's own encoder {value['space']:.3f}"
            yield [f"zero-shot {name}, {value['classes']} classes", text]
