"""`unweave reproduce`: the tables of the paper, ours beside the published figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import unweave
from unweave.cli import options
from unweave.cli.console import print_error, print_note, show, working
from unweave.errors import ArgumentError

if TYPE_CHECKING:
    from unweave.reproduction import Setting, Subject

_HOW = "How to work"


def reproduce(
    which: Annotated[
        str, typer.Argument(metavar="TABLE", help="`ablation`, `retrieval`, `waterbirds`, `heatmaps`, `segmentation`.")
    ],
    output: options.Output,
    data: Annotated[str | None, typer.Option(help="The images of the published experiment.")] = None,
    fit: Annotated[
        str | None, typer.Option(help="The images that aligners are fitted to: ImageNet's training images, or some.")
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--model", help="Only this one, by its published name or its id; may be given several times."),
    ] = None,
    pocket: Annotated[bool, typer.Option("--pocket", help="The pocket world and its six networks: offline.")] = False,
    space: Annotated[
        str | None, typer.Option(metavar="ID", help="The text space; the published one if not given.")
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            help="Where stores, aligners and results are kept; `OUTPUT/work` if not given.", rich_help_panel=_HOW
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, max=options.MANY, help="Only the first so many images of everything.", rich_help_panel=_HOW
        ),
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Try all steps out, fetching no weights.", rich_help_panel=_HOW)
    ] = False,
    seed: options.DrawSeed = 0,
    device: options.Device = "auto",
    no_figure: options.NoFigure = False,
    json: options.Json = False,
) -> None:
    """Make a table of the paper: ours beside the published figures. What is done is kept; the same command goes on."""
    with working(f"Preparing {which}"):
        setting, subjects = reproduction(
            which,
            output / "work" if work is None else work,
            pocket=pocket,
            data=data,
            fitted=fit,
            space=space,
            models=models or (),
            say=print_note,
            limit=limit,
            random_weights=random_weights,
            seed=seed,
            device=device,
        )
    try:
        table = unweave.reproduce(which, setting, subjects)
    except KeyboardInterrupt:
        print_error("Interrupted. What is done is kept; the same command goes on from there.")
        raise typer.Exit(130) from None
    show(table, output / which, no_figure=no_figure, json=json)


def reproduction(
    which: str,
    work: Path,
    *,
    pocket: bool,
    data: str | None,
    fitted: str | None,
    space: str | None,
    models: Sequence[str],
    **options: Any,
) -> tuple[Setting, tuple[Subject, ...]]:
    """The setting and the models that a table is asked for with."""
    from unweave.reproduction import POCKET, PUBLISHED, SPACE, TABLES, Setting, chosen, pocket_setting

    if which in TABLES and not pocket and data is None:
        raise ArgumentError(
            "The images were not named.", cure=f"`--data`: {TABLES[which].needs}; or `--pocket`, which needs none"
        )
    if pocket:
        return pocket_setting(work, **options), chosen(POCKET, models)
    return Setting(work, data=data, fitted=fitted, space=space or SPACE, **options), chosen(PUBLISHED, models)
