"""`unweave debias`: the components that carry what misleads a classifier, found and ablated."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

import unweave
from unweave.cli import options
from unweave.cli.console import print_files, reporting, show, working
from unweave.cli.views import pairs_of
from unweave.errors import ArgumentError

_CLASSES, _IMAGES, _HOW = "What tells the classes", "Which images", "How to work"


def debias(
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="All images, with a field `split`; or the images to fit to.")
    ],
    output: options.Output,
    held_out: Annotated[
        str | None,
        typer.Option(
            metavar="STORE", help="Images to rank and choose by, in a store of their own.", rich_help_panel=_IMAGES
        ),
    ] = None,
    test: Annotated[
        str | None, typer.Option(metavar="STORE", help="Images to report on, likewise.", rich_help_panel=_IMAGES)
    ] = None,
    splits: Annotated[
        str,
        typer.Option(
            metavar="FIT,HELD,TEST",
            help="The values of `split` of the three sides, where one store has them all.",
            rich_help_panel=_IMAGES,
        ),
    ] = "train,val,test",
    attribute: Annotated[str, typer.Option(metavar="FIELD", help="The field that has what misleads.")] = "background",
    by: Annotated[
        Literal["probe", "zero-shot", "model"],
        typer.Option(
            help="A linear probe, the words of a text space, or the model's own classifier.", rich_help_panel=_CLASSES
        ),
    ] = "probe",
    label: options.Label = "label",
    call: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASS=PHRASE",
            help="What a class is called in words, for `zero-shot`; may be given several times.",
            rich_help_panel=_CLASSES,
        ),
    ] = None,
    regularisation: Annotated[
        float,
        typer.Option(
            min=1e-6, max=1e6, callback=options.finite, help="The probe's (scikit-learn's C).", rich_help_panel=_CLASSES
        ),
    ] = 0.1,
    features: Annotated[
        Path | None, typer.Option(help="A TOML file with the two features; birds and their backgrounds if not given.")
    ] = None,
    spurious: Annotated[str, typer.Option(metavar="FEATURE", help="What misleads, in words.")] = "background",
    core: Annotated[str, typer.Option(metavar="FEATURE", help="What should lead, in words.")] = "bird",
    space: options.Space = None,
    k: Annotated[
        str, typer.Option("-k", metavar="N", help="How many components to ablate; `auto` chooses without groups.")
    ] = "10",
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the edit into the weights: an ordinary checkpoint, ending in `.safetensors`, measured again.",
        ),
    ] = None,
    export_k: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=options.MANY,
            help="How many components the checkpoint ablates; chosen on held-out images if not given.",
        ),
    ] = None,
    published: Annotated[
        bool,
        typer.Option("--published", help="Rank on the test images, as the published code does.", rich_help_panel=_HOW),
    ] = False,
    draws: Annotated[
        int, typer.Option(min=1, max=10_000, help="Of random components, a control.", rich_help_panel=_HOW)
    ] = 20,
    seed: options.DrawSeed = 0,
    no_figure: options.NoFigure = False,
    json: options.Json = False,
) -> None:
    """Rank components by what misleads a classifier, and ablate the first; groups before and after, beside controls."""
    if k != "auto" and not k.isdecimal():
        raise ArgumentError(f"-k must be a number or `auto`, got {k!r}.", cure="use `-k 10`")
    if (held_out is None) != (test is None):
        raise ArgumentError("Images to choose by and to report on come together.", cure="give --held-out and --test")
    classification = unweave.Classification(by, label, space, regularisation, pairs_of(call, "'land=a landbird'"))
    with working(f"Reading {store}"):
        opened = unweave.open_store(store)
        if held_out is None or test is None:
            sides = unweave.Sides.of(opened, splits.split(","))
        else:
            sides = unweave.Sides(opened, unweave.open_store(held_out), unweave.open_store(test))
    with reporting() as on_progress:
        debiasing = unweave.debias(
            sides,
            attribute,
            classification=classification,
            ranking=unweave.Ranking(spurious, core, features, published),
            k=None if k == "auto" else int(k),
            draws=draws,
            seed=seed,
            on_progress=on_progress,
        )
    written = None
    if export is not None:
        with reporting() as on_progress:
            written = unweave.checkpoint(
                debiasing, sides, export, classification=classification, k=export_k, on_progress=on_progress
            )
        debiasing = debiasing.with_checkpoint(written.about)
    show(debiasing, output, no_figure=no_figure, json=json)
    if written is not None and not json:
        Console(highlight=False).print(Text(), written, soft_wrap=True)
        print_files({"checkpoint": written.path})
