"""`unweave score`: what each component has to do with features, and whether that is more than chance."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from unweave.cli import options
from unweave.cli.console import counted, print_files, print_json, progress, table, working
from unweave.cli.results import results
from unweave.cli.seen import origin, seen_in

if TYPE_CHECKING:
    from unweave.attribute import Attribution

_SPACE, _HOW = "The text space", "How to work"


def score(
    store: options.Store,
    output: options.Output,
    features: Annotated[
        Path | None,
        typer.Option(help="A TOML file of features; those of the paper, or of the pocket world, if not given."),
    ] = None,
    feature: Annotated[list[str] | None, typer.Option(help="Only this one; may be given several times.")] = None,
    phrase: Annotated[list[str] | None, typer.Option(help="A phrase to score beside the features.")] = None,
    each: Annotated[bool, typer.Option("--each", help="Score every phrase of the features by itself, too.")] = False,
    aligner: options.Aligner = None,
    text_space: options.OwnSpace = None,
    templates: options.Templates = None,
    where: options.Where = None,
    samples: options.Samples = 400,
    seed: options.DrawSeed = 0,
    device: options.Device = "auto",
    top: Annotated[
        int, typer.Option(min=1, max=options.MANY, help="How many components to print for each feature.")
    ] = 5,
    no_figure: options.NoFigure = False,
    json: options.Json = False,
) -> None:
    """Score every component for every feature, with intervals, and say which scores are above chance."""
    with working(f"Reading {store}"):
        from unweave.attribute import attribute
        from unweave.files import write_table
        from unweave.text import features as read
        from unweave.text.phrases import chosen

        seen, space = seen_in(store, aligner, text_space, templates, where, device)
        known = read(features) if features else space.features()
        asked = chosen(known, feature or (), phrase or (), each=each)
        for phrases in asked.values():
            space.encode(phrases)
    with progress("scoring", 2 * len(seen.components)) as advance:
        found = attribute(seen, space, asked, seed=seed, samples=samples, on_component=counted(advance))
    card = origin(seen) | {"features": asked, "images": found.images, "seed": seed, "samples": samples}
    with results(output) as (folder, files):
        files |= write_table(found.table(), card, folder, "scores")
        if not no_figure:
            files["figure"] = str(_scores_figure(found, seen.store.manifest.model, folder))
    if json:
        above = found.above()
        count = {name: int(above[:, column].sum()) for column, name in enumerate(found.features)}
        print_json(card | {"above_chance": count, "files": files, "rows": found.table().to_pylist()})
        return
    console = Console(highlight=False)
    for name in found.features:
        console.print(_scores_table(found, name, top))
        console.print(Text())
    print_files(files)


def _scores_table(found: Attribution, feature: str, top: int) -> Any:
    column, above = found.column(feature), found.above()
    rows: list[list[str | Text]] = []
    for row in found.ranked(feature)[:top]:
        score, low, high, chance = (
            float(getattr(found, name)[row, column]) for name in ("scores", "low", "high", "chance_high")
        )
        style = "" if above[row, column] else "dim"
        cells = [str(found.components[row]), f"{score:.2f}", f"{low:.2f} ... {high:.2f}", f"{chance:.2f}"]
        rows.append([Text(cell, style) for cell in cells])
    count = int(above[:, column].sum())
    title = f"{feature}: {count} of {len(found.components)} components above chance"
    return table(title, {"component": "left", "score": "right", "95 %": "right", "chance, at most": "right"}, rows)


def _scores_figure(found: Attribution, model: str, output: Path) -> Path:
    from unweave.figures import factors_figure, save_figure

    above = found.above()
    figure = factors_figure(
        found.components,
        {name: found.scores[:, column].tolist() for column, name in enumerate(found.features)},
        title=f"{model}: scores for features, {found.images:,} images",
        label="score (mean correlation)",
        told={name: above[:, column].tolist() for column, name in enumerate(found.features)},
    )
    return save_figure(figure, output / "scores.png")
