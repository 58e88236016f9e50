"""`unweave decompose`: photographs in, every component's contribution out, with a table and a figure of shares."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

import unweave
from unweave.cli import options
from unweave.cli.console import in_bytes, print_files, print_json, print_note, print_warning, reporting, table, working
from unweave.cli.results import written
from unweave.cli.views import at_regions, model_of, pictures_of


def decompose(
    model: options.Model,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGES",
            help="Image files and folders, or one set of images as for `unweave extract`; drawn samples if none.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="A folder, or a file ending in `.safetensors`; if not given, `unweave-out/MODEL`."
        ),
    ] = None,
    level: options.Level = "head",
    select: options.Select = None,
    checkpoint: options.Checkpoint = None,
    checkpoint_key: options.CheckpointKey = None,
    random_weights: options.RandomWeights = False,
    seed: options.Seed = 0,
    image_size: options.ImageSize = None,
    representation: options.Representation = None,
    pool: options.Pool = None,
    attention: options.Attention = "through",
    nonlinear: options.Nonlinear = "stop",
    strict: options.Strict = False,
    token: options.Token = None,
    box: options.Box = None,
    mask: options.Mask = None,
    limit: options.Limit = None,
    white: options.White = None,
    max_pixels: options.MaxPixels = None,
    on_error: Annotated[Literal["skip", "raise"], typer.Option(help="At a broken image: go on, or stop.")] = "skip",
    device: options.Device = "auto",
    dtype: Annotated[Literal["float32", "float64", "bfloat16"], typer.Option(help="In which numbers.")] = "float32",
    no_figure: options.NoFigure = False,
    json: options.Json = False,
) -> None:
    """Write every component's contribution to the representation of each image."""
    with working(f"Reading {model}"):
        pictures = pictures_of(images, limit, white, max_pixels)
        loaded = model_of(
            unweave.Loading(model, checkpoint, random_weights, seed, image_size, checkpoint_key, representation, pool),
            device,
            dtype,
        )
        chosen: Any = {
            "level": level,
            "select": select or None,
            "attention": attention,
            "nonlinear": nonlinear,
            "strict": strict,
        }
        regional = unweave.plan(loaded, regions=True, **chosen) if token or box or mask else None
        if regional is not None:
            pictures = at_regions(pictures, token, box, mask, lambda: regional.everywhere)
        plan = unweave.plan(loaded, **chosen) if regional is None else regional.of(1)
    for note in loaded.notes:
        print_note(note)
    if regional is not None:
        print_note(f"{regional.readout[0].upper()}{regional.readout[1:]}.")
    if not images:
        print_note("No images were given, so these are unweave's own drawn samples.")
    size = len(pictures) * len(plan.components) * plan.dim * (8 if dtype == "float64" else 4)
    say = print_warning if level in ("token", "neuron") else print_note
    rows = f"{len(pictures):,} {'images' if regional is None else 'regions'}"
    say(f"{rows} x {len(plan.components):,} components x {plan.dim:,} numbers: {in_bytes(size)}.")
    destination = output or Path("unweave-out", loaded.id.replace("/", "_"))
    with reporting() as on_progress:
        contributions = unweave.decompose(
            loaded,
            pictures,
            plan=regional or plan,
            select=select or None,
            output=destination,
            on_error=on_error,
            on_progress=on_progress,
        )
    files = contributions.files(destination)
    written.extend(files.values())
    if not no_figure:
        with working("Drawing"):
            files["figure"] = str(
                unweave.save_figure(contributions.figure(), Path(files["tensors"]).with_suffix(".png"))
            )
    skipped = contributions.origin.skipped if contributions.origin else ()
    if json:
        report, rows = plan.report(), contributions.table().to_pylist()
        about = {name: report[name] for name in ("model", "level", "dim", "coverage")}
        print_json(
            {
                **about,
                "images": len(contributions.ids),
                "skipped": [{"id": name, "reason": reason} for name, reason in skipped],
                "largest_error": float(contributions.error.max()),
                "total_share": sum(row["share"] for row in rows),
                "lumped_share": sum(row["share"] for row in rows if row["kind"] == "lumped"),
                "rows": rows,
                "files": files,
            }
        )
        return
    console = Console(highlight=False)
    console.print(contributions)
    if skipped:
        console.print(table(f"{len(skipped)} images were left out", {"image": "left", "why": "left"}, skipped))
    console.print(plan.explanation().coverage, soft_wrap=True)
    if plan.lumps:
        console.print(Text("Some parts could not be followed: see `unweave explain`.", "yellow"), soft_wrap=True)
    print_files(files)
