"""`unweave decompose`: photographs in, every component's contribution out, with a table and a figure of shares."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from unweave.cli import options
from unweave.cli.console import in_bytes, in_percent, print_error, print_json, print_note, print_warning, table, working
from unweave.cli.explain import coverage_text
from unweave.cli.results import written
from unweave.errors import DataError, DeviceError

if TYPE_CHECKING:
    from unweave.images import Batches
    from unweave.saving import ContributionsWriter


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
            "--output",
            "-o",
            callback=options.possible,
            help="A folder, or a file ending in `.safetensors`; if not given, `unweave-out/MODEL`.",
        ),
    ] = None,
    level: options.Level = "head",
    select: options.Select = None,
    checkpoint: options.Checkpoint = None,
    random_weights: options.RandomWeights = False,
    seed: options.Seed = 0,
    image_size: options.ImageSize = None,
    attention: options.Attention = "through",
    nonlinear: options.Nonlinear = "stop",
    strict: options.Strict = False,
    batch_size: options.BatchSize = 8,
    limit: options.Limit = None,
    on_error: Annotated[Literal["skip", "raise"], typer.Option(help="At a broken image: go on, or stop.")] = "skip",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")] = "auto",
    dtype: Annotated[Literal["float32", "float64", "bfloat16"], typer.Option(help="In which numbers.")] = "float32",
    top: Annotated[int, typer.Option(min=0, max=options.MANY, help="How many components to print.")] = 15,
    no_figure: Annotated[bool, typer.Option("--no-figure", help="Draw no figure.")] = False,
    json: options.Json = False,
) -> None:
    """Write every component's contribution to the representation of each image."""
    console = Console(highlight=False, quiet=json)
    with working(f"Reading {model}"):
        import torch

        import unweave
        from unweave.contributions import Origin
        from unweave.images import batches, find_images, open_images, sample_images
        from unweave.saving import ContributionsWriter

        sources: Sequence[Any] = sample_images()[:limit]
        if images:
            sources = open_images(images[0], limit=limit) if len(images) == 1 else find_images(images)[:limit]
        if device == "cuda" and not torch.cuda.is_available():
            raise DeviceError("There is no CUDA device here.", cure="use `--device cpu`")
        place = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
        numbers: torch.dtype = getattr(torch, dtype)
        loaded = unweave.load_model(
            model,
            checkpoint=checkpoint,
            random_weights=random_weights,
            seed=seed,
            device=place,
            dtype=numbers,
            image_size=image_size,
        )
        plan = unweave.plan(
            loaded, level=level, select=select or None, attention=attention, nonlinear=nonlinear, strict=strict
        )
    if not images:
        print_note("No images were given, so these are unweave's own drawn samples.")
    destination = output or Path("unweave-out", loaded.id.replace("/", "_"))
    loader = batches(loaded, sources, batch_size, on_error)
    # A plan adds up in float32 at least, whatever the model computes in.
    stored = torch.promote_types(numbers, torch.float32)
    started = perf_counter()
    with ContributionsWriter(destination, plan.components, images=len(sources), dim=plan.dim, dtype=stored) as writer:
        size = f"{len(sources):,} images x {len(plan.components):,} components x {plan.dim:,} numbers"
        say = print_warning if level in ("token", "neuron") else print_note
        say(f"{size} take {in_bytes(writer.size)} on disk ({writer.size:,} bytes).")
        share = _written(plan, loader, writer, place, numbers)
        skipped = tuple(loader.skipped)
        if not writer.written:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped[:3])
            raise DataError(f"None of the {len(sources)} images could be read ({reasons}).", where=str(sources[0].id))
        chosen = ", ".join(select) if select else None
        tensors = writer.finish(
            Origin(loaded.id, loaded.weights_hash, loaded.preprocessing, level, chosen, dtype, skipped)
        )
    written.extend((str(tensors), str(writer.card)))
    seconds = perf_counter() - started
    files = {"contributions": str(tensors), "card": str(writer.card)}
    if not no_figure:
        files["figure"] = str(_drawn(plan.components, share, loaded.id, writer))
    ranked = sorted(range(len(share)), key=lambda index: -abs(share[index]))[:top]
    lumped = sum(
        (value for component, value in zip(plan.components, share, strict=True) if component.kind == "lumped"), 0.0
    )
    if json:
        print_json(
            {
                "model": loaded.id,
                "level": level,
                "images": writer.written,
                "skipped": [{"id": name, "reason": reason} for name, reason in skipped],
                "components": len(share),
                "dim": plan.dim,
                "dtype": dtype,
                "device": place,
                "seconds": round(seconds, 3),
                "largest_error": writer.largest_error,
                "total_share": sum(share),
                "lumped_share": lumped,
                "attention": {
                    "layers": plan.coverage.attention_layers,
                    "resolved": plan.coverage.resolved,
                    "unresolved": list(plan.coverage.unresolved),
                },
                "top": [{**plan.components[index].as_dict(), "share": share[index]} for index in ranked],
                "files": files,
            }
        )
        return
    console.print(_ranking(plan.components, share, ranked))
    if skipped:
        console.print(Text())
        console.print(table(f"{len(skipped)} images were left out", {"image": "left", "why": "left"}, skipped))
    console.print(Text())
    console.print(coverage_text(plan.coverage), soft_wrap=True)
    if plan.lumps:
        why = f"lumped: {in_percent(lumped)} of the representation in parts without a rule (see `unweave explain`)"
        console.print(Text(why, "yellow"), soft_wrap=True)
    rate = writer.written / max(seconds, 1e-9)
    console.print(
        Text(
            f"{writer.written:,} images in {seconds:.1f} s ({rate:.1f} images/s). The components add up to the "
            f"representation within {writer.largest_error:.1e} (relative, largest of all images)."
        ),
        soft_wrap=True,
    )
    for what, path in files.items():
        console.print(Text.assemble((f"{what:>13}  ", "dim"), path), soft_wrap=True)


def _written(plan: Any, loader: Batches, writer: ContributionsWriter, device: str, dtype: Any) -> list[float]:
    """Runs all batches into the writer and gives each component's share, averaged over the images."""
    import torch
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    total = torch.zeros(len(plan.components), dtype=torch.float64)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    started = perf_counter()
    with Progress("decomposing", *columns, console=Console(stderr=True)) as progress, redirect_stdout(sys.stderr):
        task = progress.add_task("", total=loader.total, rate="")
        for ids, batch in loader:
            try:
                contributions = plan.run(batch.to(device, dtype), ids)
            except (MemoryError, torch.OutOfMemoryError) as error:
                raise DeviceError(
                    f"The memory does not hold a batch of {len(ids)} images.",
                    where=str(error),
                    cure="use a smaller `--batch-size`, or `--select` fewer components",
                ) from error
            writer.append(contributions)
            total += len(ids) * contributions.share().to("cpu", torch.float64)
            rate = f"{writer.written / (perf_counter() - started):.1f} images/s"
            progress.update(task, completed=writer.written + len(loader.skipped), rate=rate)
        progress.update(task, completed=loader.total)
    return (total / max(1, writer.written)).tolist()


def _drawn(components: Sequence[Any], share: list[float], title: str, writer: ContributionsWriter) -> Path:
    try:
        from unweave.figures import save_figure, share_figure

        figure = share_figure(components, share, title=title, images=writer.written)
        return save_figure(figure, writer.tensors.with_suffix(".png"))
    except KeyboardInterrupt:
        print_error(f"Interrupted. The contributions are complete in {writer.tensors}; the figure was not drawn.")
        raise typer.Exit(130) from None


def _ranking(components: Sequence[Any], share: list[float], ranked: list[int]) -> Any:
    largest = max((abs(share[index]) for index in ranked), default=0.0) or 1.0
    rows: list[list[str | Text]] = []
    for index in ranked:
        bar = "\N{FULL BLOCK}" * max(1, round(16 * abs(share[index]) / largest))
        style = "red" if share[index] >= 0 else "blue"
        rows.append([str(components[index]), components[index].kind, in_percent(share[index]), Text(bar, style)])
    rest = sum(share) - sum(share[index] for index in ranked)
    if len(ranked) < len(share):
        rows.append([f"{len(share) - len(ranked):,} others", "", in_percent(rest), ""])
    rows.append([f"all {len(share):,}", "", in_percent(sum(share)), ""])
    columns = {"component": "left", "kind": "left", "share": "right", "": "left"}
    return table("Largest shares of the representation", columns, rows)
