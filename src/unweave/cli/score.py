"""`unweave score`: how much every component has to do with features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import unweave
from unweave.cli import options
from unweave.cli.console import reporting, show, working
from unweave.cli.views import in_words, view_of


def score(
    store: options.Store,
    output: options.Output,
    space: options.Space = None,
    features: Annotated[
        Path | None, typer.Option(help="A TOML file of features; those that are shipped for the space if not given.")
    ] = None,
    feature: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this feature. May be given several times.")
    ] = None,
    phrase: Annotated[
        list[str] | None, typer.Option(help="A phrase that is a feature by itself. May be given several times.")
    ] = None,
    each: Annotated[bool, typer.Option("--each", help="Score every phrase of the features by itself, too.")] = False,
    templates: options.Templates = None,
    where: options.Where = None,
    samples: Annotated[int, typer.Option(min=20, max=100_000, help="The number of bootstrap samples.")] = 400,
    seed: options.DrawSeed = 0,
    device: options.Device = "auto",
    no_figure: options.NoFigure = False,
    json: options.Json = False,
) -> None:
    """Score every component for features: the correlation of what it says along them with what the whole model says."""
    with working(f"Reading {store}"):
        view, words = in_words(view_of(store, where), space, templates, device)
        asked = words.chosen_features(features, feature or (), phrase or (), each=each)
    with reporting() as on_progress:
        scores = unweave.score(view, asked, space=words, samples=samples, seed=seed, on_progress=on_progress)
    show(scores, output, no_figure=no_figure, json=json)
