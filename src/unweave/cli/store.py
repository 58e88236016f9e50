"""`unweave store`: what a store holds, whether it is sound, and parts of it as files of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

from unweave.cli import options
from unweave.cli.console import print_json, table, working
from unweave.cli.extract import words
from unweave.cli.results import written

store = typer.Typer(no_args_is_help=True, help="Look into a store, check it, or take a part of it elsewhere.")

Place = Annotated[str, typer.Argument(metavar="STORE", help="What `unweave extract` wrote.")]


@store.command()
def info(
    place: Place,
    json: options.Json = False,
) -> None:
    """Say what a store holds, and how it was made."""
    with working(f"Reading {place}"):
        from unweave.store import Store, summary

        opened = Store(place, partial=True)
        found = summary(opened)
    if json:
        print_json(found)
        return
    console = Console(highlight=False)
    console.print(Text(words(found)), soft_wrap=True)
    known = opened.manifest
    rows = [
        ["model", known.model],
        ["weights", known.weights_hash],
        ["selection", ", ".join(known.selection) if known.selection else "all components"],
        ["computed in", known.computed_in],
        ["stored in", known.dtype],
        ["images in a block", str(known.rows)],
        ["left out", f"{len(opened.skipped):,}"],
        *(["images from", f"{own.data}: {own.images:,}"] for own in known.listings),
        *([f"field {name}", kind] for name, kind in opened.fields().items()),
        ["made by", ", ".join(f"{name} {version}" for name, version in known.versions.items())],
    ]
    console.print(Text())
    console.print(table("", {"": "left", " ": "left"}, rows))


@store.command()
def verify(
    place: Place,
    rows: Annotated[int, typer.Option(min=0, max=options.MANY, help="How many rows to compute anew; 0 for none.")] = 32,
    seed: Annotated[int, typer.Option(min=0, max=options.SEEDS, help="Which rows.")] = 0,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")] = "auto",
    repair: Annotated[
        bool, typer.Option("--repair", help="Set damaged blocks aside; the same `unweave extract` makes them anew.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Compare every chunk with its checksum, and random rows with what the model says of their images now."""
    with working(f"Verifying {place}"):
        from unweave.extraction import verify as check
        from unweave.store import Store

        found = check(Store(place, partial=True), rows=rows, seed=seed, device=device, repair=repair)
    if json:
        print_json(
            {
                "chunks": found.chunks,
                "rows": found.rows,
                "equal": found.equal,
                "apart": found.apart,
                "faults": found.faults,
            }
        )
    else:
        console = Console(highlight=False)
        for fault in found.faults:
            console.print(Text(f"fault: {fault}", "red"), soft_wrap=True)
        console.print(
            Text(
                f"{found.chunks:,} chunks compared with their checksums, {found.rows:,} rows computed anew: "
                f"{found.equal:,} equal to the last bit, the farthest {found.apart:.1e} away. "
                f"{len(found.faults) or 'No'} faults."
            ),
            soft_wrap=True,
        )
    if found.faults:
        raise typer.Exit(1)


@store.command()
def export(
    place: Place,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            callback=options.possible,
            help="A file ending in `.parquet` or `.safetensors`, or a folder.",
        ),
    ],
    select: options.Select = None,
    level: Annotated[str | None, typer.Option(help="Which level; the store's first if not given.")] = None,
    where: Annotated[
        list[str] | None, typer.Option(metavar="FIELD=VALUE", help="Only images of which a field has this value.")
    ] = None,
    limit: options.Limit = None,
    check: Annotated[bool, typer.Option("--check", help="Compare what is read with its checksums.")] = False,
    json: options.Json = False,
) -> None:
    """Write some components of some images to files of their own."""
    with working(f"Reading {place}"):
        from unweave.store import Store
        from unweave.store import export as write

        opened = Store(place, check=check)
        view = opened.view(level)
        rows = (view.where(*where) if where else view).numbers[:limit]
        file = write(opened, output, select or None, rows, level=level)
        written.append(str(file))
    if json:
        print_json({"file": str(file), "images": len(rows)})
    else:
        Console(highlight=False).print(Text(f"{len(rows):,} images in {file}"), soft_wrap=True)
