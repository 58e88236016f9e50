"""`unweave extract`: images in, a store of contributions out, resumable."""

from __future__ import annotations

from typing import Annotated

import typer

import unweave
from unweave.cli import given, options, settings
from unweave.cli.console import print_note, reporting, resumable, show, working


def extract(
    loading: given.Loading,
    data: options.Images,
    output: Annotated[str, typer.Option("--output", "-o", metavar="STORE", help="A folder, or a URL for fsspec.")],
    settings: settings.Extraction,
    reading: given.Reading,
    regions: given.Regions,
    append: Annotated[bool, typer.Option("--append", help="Add images that the store does not have yet.")] = False,
    partition: Annotated[
        str | None,
        typer.Option(metavar="K/N", help="Only the K-th of N parts, for one of N jobs.", rich_help_panel="How to work"),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say rows, bytes and time; write nothing.", rich_help_panel="How to work"),
    ] = False,
    json: options.Json = False,
) -> None:
    """Write every component's contribution for every image into a store; go on where it was interrupted."""
    with working(f"Reading {loading.id}"):
        from unweave.extraction import Part, estimate, prepare

        part = Part.parse(partition) if partition else Part()
        images = unweave.open_images(data, **reading)
        images = given.at_regions(
            images,
            regions,
            lambda: unweave.plan(given.model_of(loading, settings.device), regions=True).everywhere,
        )
        if dry_run:
            expected = estimate(loading, images, output, settings)
        else:
            with resumable("The store may have been begun"):
                extraction = prepare(loading, images, output, settings, append=append)
    if dry_run:
        show(expected, json=json)
        return
    print_note(*extraction.extractor.model.notes)
    left = extraction.images(extraction.blocks(part))
    if left:
        print_note(f"{left:,} images to extract, {extraction.manifest.batch} at a time.")
    on = lambda: f"with the {extraction.images(extraction.blocks(part)):,} images left"  # noqa: E731
    with resumable(on=on), reporting() as on_progress:
        extracted = extraction.run(part, on_progress=on_progress)
    show(extracted, json=json)
