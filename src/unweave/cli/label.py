"""`unweave label`: names for components, from a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
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
    from unweave.textspan import Naming

_SPACE, _HOW = "The text space", "How to work"


def label(
    store: options.Store,
    output: options.Output,
    aligner: options.Aligner = None,
    text_space: options.OwnSpace = None,
    vocabulary: Annotated[
        Path | None, typer.Option(help="A text file with one phrase on each line; the shipped vocabulary if not given.")
    ] = None,
    phrases: Annotated[int, typer.Option(min=1, max=1000, help="How many for each component.")] = 5,
    templates: options.Templates = None,
    where: options.Where = None,
    device: options.Device = "auto",
    top: Annotated[
        int, typer.Option(min=1, max=100, help="How many of the clearest components to print and draw.")
    ] = 10,
    no_figure: options.NoFigure = False,
    json: options.Json = False,
) -> None:
    """Name every component by phrases of a vocabulary, with the share of its variance that each explains."""
    with working(f"Reading {store}"):
        from unweave.files import write_table
        from unweave.text import read_phrases
        from unweave.textspan import clearest, textspan
        from unweave.textspan import table as rows_of

        seen, space = seen_in(store, aligner, text_space, templates, where, device)
        words = read_phrases(vocabulary) if vocabulary else space.vocabulary()
        space.encode(words)
    with progress("naming", len(seen.components)) as advance:
        found = textspan(seen, space, words, count=phrases, on_component=counted(advance))
    source = str(vocabulary) if vocabulary else "shipped"
    card = origin(seen) | {"images": len(seen.rows), "vocabulary": source, "phrases": len(words)}
    shown = clearest(found, top)
    with results(output) as (folder, files):
        files |= write_table(rows_of(found), card, folder, "names")
        if not no_figure and shown:
            with working("Drawing"):
                from unweave.figures import save_figure
                from unweave.gallery import gallery

                figure = gallery(seen, space, shown)
                files["figure"] = str(save_figure(figure, folder / "names.png"))
    if json:
        print_json(card | {"files": files, "rows": rows_of(found).to_pylist()})
        return
    console = Console(highlight=False)
    console.print(_names_table(shown))
    console.print(Text())
    print_files(files)


def _names_table(shown: Sequence[Naming]) -> Any:
    rows: list[list[str | Text]] = []
    for own in shown:
        names = ", ".join(f"{name.phrase} ({100 * name.alone:.0f} %)" for name in own.names)
        rows.append([str(own.component), names, f"{100 * own.usual:.1f} %", f"{100 * own.explained:.0f} %"])
    columns = {"component": "left", "phrases": "left", "a usual phrase": "right", "all, in its span": "right"}
    return table("The clearest components, and the share of their variance along each phrase", columns, rows)
