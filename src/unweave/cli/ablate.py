"""`unweave ablate`: how well classes are told as more and more components are ablated."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

import unweave
from unweave.cli import options
from unweave.cli.console import reporting, show, working
from unweave.cli.views import view_of

_CLASSES = "What tells the classes"


def ablate(
    store: options.Store,
    output: options.Output,
    order: Annotated[
        list[str] | None,
        typer.Option(
            help="`last` (layers from the last one back, if not given), `first`, `random`, `score:FEATURE`; or "
            "selections (`blocks.9.*`), one for each step. May be given several times.",
        ),
    ] = None,
    to: Annotated[Literal["mean", "zero"], typer.Option(help="What contributions are replaced by.")] = "mean",
    by: Annotated[
        Literal["model", "zero-shot", "probe"],
        typer.Option(
            help="The model's own classifier, the words of a text space, or a probe.", rich_help_panel=_CLASSES
        ),
    ] = "model",
    label: options.Label = "label",
    space: options.Space = None,
    where: options.Where = None,
    fitted_where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=VALUE",
            help="Images that means (and a probe) come from, rather than half of all, chosen by their ids.",
        ),
    ] = None,
    seed: options.DrawSeed = 0,
    no_figure: options.NoFigure = False,
    json: options.Json = False,
) -> None:
    """Ablate components step by step, and tell classes after each: everything else is held."""
    with working(f"Reading {store}"):
        view = view_of(store, where)
        fitted = view_of(store, fitted_where) if fitted_where else None
        if fitted is not None and not where:
            view = view.without(fitted)
    with reporting() as on_progress:
        ablation = unweave.ablate(
            view,
            order or "last",
            fitted=fitted,
            classification=unweave.Classification(by, label, space),
            to=to,
            seed=seed,
            on_progress=on_progress,
        )
    show(ablation, output, no_figure=no_figure, json=json)
