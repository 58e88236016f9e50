"""`unweave reproduce`: the tables of the paper, ours beside the published figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from unweave.cli import options
from unweave.cli.console import print_error, print_files, print_json, print_note, table, working
from unweave.cli.results import results
from unweave.errors import ArgumentError

if TYPE_CHECKING:
    import pyarrow as pa

_HOW, _WIDE = "How to work", 180


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
    text_space: Annotated[
        str | None, typer.Option(metavar="ID", help="Where words are; the published one if not given.")
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            callback=options.possible,
            help="Where stores, aligners and results are kept; `OUTPUT/work` if not given.",
            rich_help_panel=_HOW,
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
    json: options.Json = False,
) -> None:
    """Make a table of the paper: ours beside the published figures. What is done is kept; the same command goes on."""
    with working(f"Preparing {which}"):
        from unweave.files import write_table
        from unweave.reproduce import POCKET, PUBLISHED, SPACE, TABLES, Setting, chosen, pocket_setting
        from unweave.reproduce import reproduce as make

        folder = work or output / "work"
        common: dict[str, Any] = {"limit": limit, "random_weights": random_weights, "seed": seed, "device": device}
        if which in TABLES and not pocket and data is None:
            raise ArgumentError(
                "The images were not named.", cure=f"`--data`: {TABLES[which].needs}; or `--pocket`, which needs none"
            )
        if pocket:
            setting = pocket_setting(folder, say=print_note, **common)
        else:
            setting = Setting(folder, data=data, fitted=fit, space=text_space or SPACE, say=print_note, **common)
        subjects = chosen(POCKET if pocket else PUBLISHED, models or ())
    try:
        found = make(which, setting, subjects)
    except KeyboardInterrupt:
        print_error("Interrupted. What is done is kept; the same command goes on from there.")
        raise typer.Exit(130) from None
    card = {
        "table": which,
        "says": TABLES[which].says,
        "pocket": pocket,
        "data": data,
        "fitted": setting.fitted,
        "space": setting.space,
        "limit": limit,
        "random_weights": random_weights,
        "seed": seed,
    }
    with results(output) as (place, files):
        files |= write_table(found, card, place, which)
    if json:
        print_json(card | {"files": files, "rows": found.to_pylist()})
        return
    console = Console(highlight=False)
    console.width = max(console.width, _WIDE)  # a table of many columns is read sideways rather than in syllables
    console.print(_told(found, TABLES[which].says))
    print_files(files)


def _told(found: pa.Table, title: str) -> Any:
    columns = {name: "right" if name != "model" else "left" for name in found.column_names}
    rows: list[list[str | Text]] = [
        ["" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()]
        for row in found.to_pylist()
    ]
    return table(title, columns, rows)
