"""`unweave extract`: images in, a store of contributions out, resumable."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

import unweave
from unweave.cli import options
from unweave.cli.console import in_bytes, print_error, print_json, print_note, table, working
from unweave.cli.views import at_regions, model_of

if TYPE_CHECKING:
    from unweave.extraction import Extraction, Part

_WORK = "How to work"
_STORED = "What is stored"


def extract(
    model: options.Model,
    data: Annotated[
        str,
        typer.Argument(
            metavar="IMAGES",
            help="A folder, a table (.csv, .parquet), tars, `hf/ORG/NAME`, `pocket/evaluation`, or KIND:PATH.",
        ),
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="STORE", help="A folder, or a URL for fsspec.")],
    split: Annotated[str | None, typer.Option(help="Only the images of this split.")] = None,
    limit: options.Limit = None,
    white: options.White = None,
    max_pixels: options.MaxPixels = None,
    append: Annotated[bool, typer.Option("--append", help="Add images that the store does not have yet.")] = False,
    level: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LEVEL",
            callback=options.levels,
            help="How finely: `layer`, `head` (if not given), `token`, `neuron`; several cost a forward pass each.",
            rich_help_panel=_STORED,
        ),
    ] = None,
    select: options.Select = None,
    store_dtype: Annotated[
        Literal["float16", "float32"],
        typer.Option(help="In which numbers contributions are stored.", rich_help_panel=_STORED),
    ] = "float16",
    block: Annotated[
        int | None,
        typer.Option(min=1, max=4096, help="Images in a block, which is kept or done again.", rich_help_panel=_STORED),
    ] = None,
    checkpoint: options.Checkpoint = None,
    checkpoint_key: options.CheckpointKey = None,
    random_weights: options.RandomWeights = False,
    seed: options.Seed = 0,
    image_size: options.ImageSize = None,
    representation: options.Representation = None,
    pool: options.Pool = None,
    attention: options.Attention = "through",
    nonlinear: options.Nonlinear = "stop",
    token: options.Token = None,
    box: options.Box = None,
    mask: options.Mask = None,
    partition: Annotated[
        str | None,
        typer.Option(metavar="K/N", help="Only the K-th of N parts, for one of N jobs.", rich_help_panel=_WORK),
    ] = None,
    launcher: Annotated[
        Literal["here", "processes", "ray"], typer.Option(help="Who computes.", rich_help_panel=_WORK)
    ] = "here",
    workers: Annotated[
        int | None, typer.Option(min=1, max=1024, help="How many processes or actors.", rich_help_panel=_WORK)
    ] = None,
    wait: Annotated[
        float,
        typer.Option(
            min=0,
            max=1e6,
            callback=options.finite,
            help="Seconds to wait where somebody else writes the store.",
            rich_help_panel=_WORK,
        ),
    ] = 0,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, max=65_536, help="Images at a time; what the memory allows if not given.", rich_help_panel=_WORK
        ),
    ] = None,
    on_error: Annotated[
        Literal["skip", "raise"], typer.Option(help="At a broken image: go on, or stop.", rich_help_panel=_WORK)
    ] = "skip",
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.", rich_help_panel=_WORK)
    ] = "auto",
    dtype: Annotated[
        Literal["float32", "float64", "bfloat16"], typer.Option(help="In which numbers.", rich_help_panel=_WORK)
    ] = "float32",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say rows, bytes and time; write nothing.", rich_help_panel=_WORK)
    ] = False,
    json: options.Json = False,
) -> None:
    """Write every component's contribution for every image into a store; go on where it was interrupted."""
    with working(f"Reading {model}"):
        from unweave.extraction import Part, Settings, estimate, prepare

        part = Part.parse(partition) if partition else Part()
        loading = unweave.Loading(
            model, checkpoint, random_weights, seed, image_size, checkpoint_key, representation, pool
        )
        images = unweave.open_images(data, split=split, limit=limit, white=white, max_pixels=max_pixels)
        images = at_regions(
            images, token, box, mask, lambda: unweave.plan(model_of(loading, device), regions=True).everywhere
        )
        settings = Settings(
            levels=tuple(level or ("head",)),  # type: ignore[arg-type]  # `options.levels` refuses others
            select=tuple(select) if select else None,
            attention=attention,
            nonlinear=nonlinear,
            dtype=store_dtype,
            computed_in=dtype,
            batch=batch_size,
            rows=block,
            on_error=on_error,
            device=device,
            wait=wait,
        )
        if dry_run:
            expected = estimate(loading, images, output, settings)
        else:
            try:
                extraction = prepare(loading, images, output, settings, append=append)
            except KeyboardInterrupt:
                print_error("Interrupted. The store may have been begun; the same command goes on from there.")
                raise typer.Exit(130) from None
    if dry_run:
        _tell(expected, json=json)
        return
    for note in extraction.extractor.model.notes:
        print_note(note)
    started = perf_counter()
    there = extraction.images(extraction.blocks(part))
    if there:
        print_note(f"{there:,} images to extract, {extraction.manifest.batch} at a time.")
    try:
        _run(extraction, part, launcher, workers)
    except KeyboardInterrupt:
        left = extraction.images(extraction.blocks(part))
        print_error(f"Interrupted. What is done is kept; the same command goes on with the {left:,} images left.")
        raise typer.Exit(130) from None
    _report(extraction, perf_counter() - started, there, json=json)


def _run(extraction: Extraction, part: Part, launcher: Any, workers: int | None) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    total = extraction.images(list(part.blocks(extraction.manifest.blocks)))
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    started, count = perf_counter(), 0
    with Progress("extracting", *columns, console=Console(stderr=True)) as progress, redirect_stdout(sys.stderr):
        done = total - extraction.images(extraction.blocks(part))
        task = progress.add_task("", total=total, completed=done, rate="")

        def on_images(number: int) -> None:
            nonlocal count
            count += number
            rate = f"{count / (perf_counter() - started):.1f} images/s"
            progress.update(task, completed=done + count, rate=rate)

        extraction.run(part, launcher=launcher, workers=workers, on_images=on_images)


def _report(extraction: Extraction, seconds: float, count: int, *, json: bool) -> None:
    from unweave.store import Store, summary

    store = Store(extraction.place, partial=True)
    found = summary(store) | {"extracted": count, "seconds": round(seconds, 3)}
    if json:
        print_json(found)
        return
    console = Console(highlight=False)
    if store.skipped:
        shown = [list(own) for own in store.skipped[:20]]
        console.print(table(f"{len(store.skipped)} images were left out", {"image": "left", "why": "left"}, shown))
    console.print(Text(f"{count:,} images in {seconds:.1f} s ({count / max(seconds, 1e-9):.1f} images/s)."))
    console.print(Text(words(found)), soft_wrap=True)


def words(found: dict[str, Any]) -> str:
    """What a store holds, in a sentence or two."""
    levels = ", ".join(f"{count:,} components ({level})" for level, count in found["components"].items())
    text = f"{found['store']} holds {found['rows']:,} images x {levels} x {found['dim']:,} numbers"
    text += f" of {found['model']}: {in_bytes(found['bytes'])}."
    if found["missing"]:
        text += f" It is not complete: {found['blocks'] - found['missing']} of {found['blocks']} blocks are there."
    if found["largest_error"] is not None:
        text += (
            f" The components add up to the representation within {found['largest_error']:.1e}; "
            f"{found['dtype']} moves the sum by at most {found['largest_rounding']:.1e}."
        )
    return text


def _tell(found: dict[str, Any], *, json: bool) -> None:
    if json:
        print_json(found)
        return
    hours, rest = divmod(round(found["seconds"]), 3600)
    time = f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
    rows = [
        ["images", f"{found['images']:,}"],
        ["of these already stored", f"{found['stored']:,}"],
        *([f"components ({level})", f"{count:,}"] for level, count in found["components"].items()),
        ["numbers in each", f"{found['dim']:,}"],
        ["on disk", f"{in_bytes(found['bytes'])} ({found['bytes']:,} bytes)"],
        ["images at a time", str(found["batch"])],
        ["images in a block", str(found["rows"])],
        ["images a second", f"{found['speed']:.1f}"],
        ["expected time", time],
    ]
    Console(highlight=False).print(table("Nothing was written", {"what": "left", "how much": "right"}, rows))
