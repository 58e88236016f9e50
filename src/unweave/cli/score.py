"""`unweave score`: how much every component has to do with features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import unweave
from unweave.cli import given, options
from unweave.cli.console import reporting, save, working


def score(
    view: given.View,
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
    samples: Annotated[int, typer.Option(min=20, max=100_000, help="The number of bootstrap samples.")] = 400,
    seed: options.DrawSeed = 0,
    device: options.Device = "auto",
    no_figure: options.NoFigure = False,
    json: options.Json = False,
) -> None:
    """Score every component for features: the correlation of what it says along them with what the whole model says."""
    with working("Reading the text space"):
        view, words = given.in_words(view, space, templates, device)
        asked: Any = [*(feature or ()), *(phrase or ())] or None
        if features or each:
            asked = words.chosen_features(features, feature or (), phrase or (), each=each)
    with reporting() as on_progress:
        scores = unweave.score(view, asked, space=words, samples=samples, seed=seed, on_progress=on_progress)
    save(scores, output, no_figure=no_figure, json=json)
