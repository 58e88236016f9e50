"""`unweave decompose`: photographs in, every component's contribution out, with a table and a figure of shares."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

import unweave
from unweave.cli import given, options
from unweave.cli.console import print_files, print_json, print_note, print_warning, reporting, working
from unweave.cli.results import written


def decompose(
    loading: given.Loading,
    splitting: given.Splitting,
    reading: given.Reading,
    regions: given.Regions,
    images: options.Pictures = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="A folder, or a file ending in `.safetensors`; else `unweave-out/MODEL`."),
    ] = None,
    on_error: options.OnError = "skip",
    device: options.Device = "auto",
    dtype: Annotated[Literal["float32", "float64", "bfloat16"], typer.Option(help="In which numbers.")] = "float32",
    no_figure: options.NoFigure = False,
    json: options.Json = False,
) -> None:
    """Write every component's contribution to the representation of each image."""
    with working(f"Reading {loading.id}"):
        from unweave.results import in_bytes

        pictures = given.pictures_of(images, reading)
        model = given.model_of(loading, device, dtype)
        regional: Any = unweave.plan(model, regions=True, **splitting) if regions else None
        if regional is not None:
            pictures = given.at_regions(pictures, regions, lambda: regional.everywhere)
        plan: Any = unweave.plan(model, **splitting) if regional is None else regional.of(1)
    print_note(*model.notes)
    if regional is not None:
        print_note(f"{regional.readout[0].upper()}{regional.readout[1:]}.")
    if not images:
        print_note("No images were given, so these are unweave's own drawn samples.")
    size = len(pictures) * len(plan.components) * plan.dim * (8 if dtype == "float64" else 4)
    say = print_warning if plan.level in ("token", "neuron") else print_note
    rows = f"{len(pictures):,} {'images' if regional is None else 'regions'}"
    say(f"{rows} x {len(plan.components):,} components x {plan.dim:,} numbers: {in_bytes(size)}.")
    destination = output or Path("unweave-out", model.id.replace("/", "_"))
    with reporting() as on_progress:
        contributions = unweave.decompose(
            model,
            pictures,
            plan=regional or plan,
            select=splitting["select"],
            output=destination,
            on_error=on_error,
            on_progress=on_progress,
        )
    files = contributions.files(destination)
    written.extend(files.values())
    if not no_figure:
        with working("Drawing"):
            figure = Path(files["tensors"]).with_suffix(".png")
            files["figure"] = str(unweave.save_figure(contributions.figure(), figure))
    explanation = plan.explanation()
    if json:
        about = {name: explanation.report[name] for name in ("model", "level", "dim", "coverage")}
        print_json({**about, **contributions.about(), "files": files})
        return
    console = Console(highlight=False)
    console.print(contributions)
    console.print(explanation.coverage, soft_wrap=True)
    if plan.lumps:
        console.print(Text("Some parts could not be followed: see `unweave explain`.", "yellow"), soft_wrap=True)
    print_files(files)
