"""`unweave store`: what a store holds, whether it is sound, and parts of it as files of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

import unweave
from unweave.cli import given, options
from unweave.cli.console import print_json, show, working
from unweave.cli.results import written


def info(place: options.Store, json: options.Json = False) -> None:
    """Say what a store holds, and how it was made."""
    with working(f"Reading {place}"):
        opened = unweave.open_store(place, partial=True)
    show(opened, json=json)


def verify(
    place: options.Store,
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
        from unweave.extraction import verify as verified

        opened = unweave.open_store(place, partial=True)
        verification = verified(opened, rows=rows, seed=seed, device=device, repair=repair)
    show(verification, json=json)
    if verification.faults:
        raise typer.Exit(1)


def export(
    view: given.View,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            callback=options.possible,
            help="A file ending in `.parquet` or `.safetensors`, or a folder.",
        ),
    ],
    json: options.Json = False,
) -> None:
    """Write some components of some images to files of their own."""
    with working("Writing"):
        from unweave.store import export as exported

        file = exported(view, output)
        written.append(str(file))
    if json:
        print_json({"file": str(file), "images": len(view)})
    else:
        Console(highlight=False).print(Text(f"{len(view):,} images in {file}"), soft_wrap=True)


store = typer.Typer(no_args_is_help=True, help="Look into a store, check it, or take a part of it elsewhere.")
for verb in (info, verify, export):
    store.command()(given.unfolded(verb))
