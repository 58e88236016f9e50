"""`unweave ablate`: how well classes are told as more and more components are ablated."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

import unweave
from unweave.cli import given, options
from unweave.cli.console import reporting, save

_classes = options.panel("What tells the classes")


def ablate(
    view: given.View,
    output: options.Output,
    order: Annotated[
        list[str] | None,
        typer.Option(
            help="`last` (layers from the last one back, if not given), `first`, `random`, `score:FEATURE`; or "
            "selections (`blocks.9.*`), one for each step. May be given several times."
        ),
    ] = None,
    to: Annotated[Literal["mean", "zero"], typer.Option(help="What contributions are replaced by.")] = "mean",
    by: Annotated[
        Literal["model", "zero-shot", "probe"],
        _classes("The model's own classifier, the words of a text space, or a probe."),
    ] = "model",
    label: options.Label = "label",
    space: options.Space = None,
    fitted: Annotated[
        str | None,
        typer.Option(metavar="STORE", help="Another store that means (and a probe) come from; this one if not given."),
    ] = None,
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
    others = None
    if fitted or fitted_where:
        source = unweave.open_store(fitted).view(view.origin.level if view.origin else None) if fitted else view
        whole = unweave.View.of(source.source)
        whole = whole if view.is_whole else whole.select(view.components)
        others = whole.where(*fitted_where) if fitted_where else whole
        view = view if fitted or len(view) < len(whole) else view.without(others)
    with reporting() as on_progress:
        ablation = unweave.ablate(
            view,
            order or "last",
            fitted=others,
            classification=unweave.Classification(by, label, space),
            to=to,
            seed=seed,
            on_progress=on_progress,
        )
    save(ablation, output, no_figure=no_figure, json=json)
