"""`unweave heatmap`: where in images components read what speaks for a text or a class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from unweave.cli import options
from unweave.cli.console import print_files, print_json, print_note, print_warning, table, working
from unweave.cli.results import results
from unweave.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from unweave.tasks.heatmap import Heatmaps

_WHICH = "Which components"


def heatmap(
    model: options.Model,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGES...", help="Image files and folders, or one set as for `unweave extract`."),
    ],
    output: options.Output,
    text: Annotated[list[str] | None, typer.Option(help="What to look for; may be given several times.")] = None,
    class_: Annotated[
        list[str] | None,
        typer.Option("--class", help="A class of the model's own classifier, by name or number; likewise."),
    ] = None,
    feature: Annotated[
        str | None,
        typer.Option(help="Map what scores highest for this feature (with --scores).", rich_help_panel=_WHICH),
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="What `unweave score` wrote.", rich_help_panel=_WHICH),
    ] = None,
    count: Annotated[
        int, typer.Option(min=1, max=options.MANY, help="How many for the feature.", rich_help_panel=_WHICH)
    ] = 10,
    select: options.Select = None,
    aligner: options.Aligner = None,
    text_space: options.OwnSpace = None,
    templates: options.Templates = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Texts (or classes) whose mean is taken off: maps show what speaks for one rather than these."
        ),
    ] = None,
    checkpoint: options.Checkpoint = None,
    random_weights: options.RandomWeights = False,
    seed: options.Seed = 0,
    image_size: options.ImageSize = None,
    device: options.Device = "auto",
    limit: options.Limit = None,
    columns: Annotated[int, typer.Option(min=0, max=100, help="How many components to draw beside their sum.")] = 4,
    form: Annotated[
        list[str] | None,
        typer.Option("--format", help="png, svg, npz or safetensors; may be given several times; png and npz if not."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Draw where the chosen components read what speaks for a text or a class; everything adds up to the score."""
    forms = list(dict.fromkeys(form or ["png", "npz"]))
    wrong = next((own for own in forms if own not in ("png", "svg", "npz", "safetensors")), None)
    if wrong:
        raise ArgumentError(f"There is no format {wrong!r}.", cure="use png, svg, npz or safetensors")
    if bool(text) == bool(class_):
        raise ArgumentError("Maps are of texts or of classes.", cure="give --text or --class, and not both")
    if (feature is None) != (scores is None):
        raise ArgumentError("A feature needs its scores.", cure="give --feature NAME and --scores FOLDER together")
    if feature is not None and select:
        raise ArgumentError("Components are chosen by a feature or by --select.", cure="give one of the two")
    with working(f"Reading {model}"):
        import unweave
        from unweave.cli.aim import scored, target_of
        from unweave.extraction.extractor import device_of
        from unweave.images import batches, find_images, open_images
        from unweave.tasks.heatmap import Mapper, as_pixels, best, joined, viewed

        place = device_of(device)
        loaded = unweave.load_model(
            model,
            checkpoint=checkpoint,
            random_weights=random_weights,
            seed=seed,
            device=place,
            image_size=image_size,
        )
        opened: Any = open_images(images[0], limit=limit) if len(images) == 1 else find_images(images)[:limit]
        names = text or class_ or []
        target = target_of(loaded, names, bool(text), aligner, text_space, templates, place)
        if against:
            target = target.against(target_of(loaded, against, bool(text), aligner, text_space, templates, place))
        plan = unweave.plan(loaded)
        chosen = best(plan, scored(scores), [feature], count) if scores and feature else select or None
        mapper = Mapper(plan, chosen)
    loader = batches(loaded, opened, 1)
    read = {source.id: source for source in opened}
    with working("Mapping"):
        parts = [(ids[0], mapper(tensor.to(loaded.device, loaded.dtype), target, ids)) for ids, tensor in loader]
        views = [as_pixels(viewed(loaded.preprocess, read[name].read())) for name, _ in parts]
    skipped = [{"id": name, "reason": reason} for name, reason in loader.skipped]
    if not parts:
        raise DataError(f"None of the images could be read ({skipped[0]['reason']}).", where=skipped[0]["id"])
    found = joined([own for _, own in parts])
    with results(output) as (folder, files):
        for suffix in (own for own in forms if own in ("npz", "safetensors")):
            files[suffix] = str(found.save(folder / f"heatmap.{suffix}"))
        drawn = [own for own in forms if own in ("png", "svg")]
        if drawn:
            with working("Drawing"):
                files |= _drawn(found, views, loaded.id, folder, drawn, columns)
    if json:
        print_json(_report(found) | {"model": loaded.id, "space": target.space, "skipped": skipped, "files": files})
        return
    console = Console(highlight=False)
    console.print(_table(found))
    console.print(Text())
    for own in skipped:
        print_warning(f"{own['id']} was left out: {own['reason']}")
    print_note(f"{len(found.maps)} components with maps; largest error of the sum {float(found.error.max()):.0e}.")
    print_files(files)


def _report(found: Heatmaps) -> dict[str, Any]:
    """Numbers of every image and target."""
    summed = found.summed().sum((-2, -1))
    rows = [
        {
            "id": name,
            "target": target,
            "score": float(found.total[row, column]),
            "in the maps": float(summed[row, column]),
            "beside": {what: float(own[row, column]) for what, own in found.beside.items()},
        }
        for row, name in enumerate(found.ids)
        for column, target in enumerate(found.targets)
    ]
    return {**found.card(), "largest_error": float(found.error.max()), "rows": rows}


def _table(found: Heatmaps) -> Any:
    report = _report(found)["rows"]
    beside = [name for name in found.beside if any(row["beside"][name] for row in report)]
    heads = {"image": "left", "target": "left", "score": "right", "maps": "right", **dict.fromkeys(beside, "right")}
    rows = [
        [
            row["id"],
            row["target"],
            *(f"{value:+.3f}" for value in (row["score"], row["in the maps"], *(row["beside"][n] for n in beside))),
        ]
        for row in report
    ]
    return table("The score of each image: what lies in the maps, and what beside them", heads, rows)


def _drawn(
    found: Heatmaps, views: list[Any], model: str, output: Path, forms: list[str], columns: int
) -> dict[str, str]:
    """A row for each image and target: the sum, and the components that say most."""
    from unweave.figures import MapRow, maps_figure, save_figure

    strength = {component: float(own.abs().sum()) for component, own in found.maps.items()}
    some = sorted(strength, key=lambda component: -strength[component])[: columns if len(strength) > 1 else 0]
    summed = found.summed()
    laid = {component: found.on_grid(component) for component in some}
    rows = [
        MapRow(
            views[row],
            f"{target}\n{name}",
            [summed[row, place].double().numpy(), *(own[row, place].double().numpy() for own in laid.values())],
            [
                ("score", float(found.total[row, place])),
                ("in the maps", float(summed[row, place].sum())),
                *((what, float(own[row, place])) for what, own in found.beside.items() if bool(own.any())),
            ],
        )
        for row, name in enumerate(found.ids)
        for place, target in enumerate(found.targets)
    ]
    heading = f"sum of {len(found.maps)} components" if len(found.maps) > 1 else str(next(iter(found.maps)))
    figure = maps_figure(
        rows, [heading, *map(str, some)], title=f"{model}: where the score is read", label="score of a token"
    )
    output.mkdir(parents=True, exist_ok=True)
    return {form: str(save_figure(figure, output / f"heatmap.{form}")) for form in forms}
