"""`unweave segment`: how well maps find the object, beside other methods, on images with masks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from unweave.cli import options
from unweave.cli.console import counted, print_files, print_json, print_note, print_warning, progress, table, working
from unweave.cli.results import results
from unweave.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from unweave.tasks.segmentation import Segmentation

_WHICH = "Which components"


def segment(
    model: options.Model,
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="Images with masks: gtsegs_ijcv.mat, `masks:FOLDER`, `pocket/evaluation`."),
    ],
    output: options.Output,
    label: Annotated[str, typer.Option(help="The field that names each image's class.")] = "label",
    predicted: Annotated[
        bool, typer.Option("--predicted", help="Map the class that the model's own classifier says, whatever is true.")
    ] = False,
    phrase: Annotated[str, typer.Option(help="How a class is put into words, {} being its name.")] = "{}",
    method: Annotated[
        list[str] | None, typer.Option(help="Only this method; may be given several times; all if not.")
    ] = None,
    feature: Annotated[
        list[str] | None,
        typer.Option(help="The features of --scores that count; all if not given.", rich_help_panel=_WHICH),
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Map what scores highest in what `unweave score` wrote.", rich_help_panel=_WHICH
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            min=1, max=options.MANY, help="How many of them; the better half if not given.", rich_help_panel=_WHICH
        ),
    ] = None,
    select: options.Select = None,
    aligner: options.Aligner = None,
    text_space: options.OwnSpace = None,
    templates: options.Templates = None,
    checkpoint: options.Checkpoint = None,
    random_weights: options.RandomWeights = False,
    seed: options.Seed = 0,
    image_size: options.ImageSize = None,
    device: options.Device = "auto",
    limit: options.Limit = None,
    batch_size: options.BatchSize = 16,
    shown: Annotated[int, typer.Option(min=0, max=100, help="How many images to draw.")] = 5,
    no_figure: options.NoFigure = False,
    json: options.Json = False,
) -> None:
    """Threshold each image's map for its own class at the mean, and compare it with the object's mask."""
    with working(f"Reading {model}"):
        import unweave
        from unweave.cli.aim import features_of, scored, target_of
        from unweave.extraction.extractor import device_of
        from unweave.files import write_table
        from unweave.tasks.heatmap import Mapper, best
        from unweave.tasks.segmentation import segment as measure
        from unweave.text.phrases import spoken

        if (feature or select) and bool(select) == (scores is not None):
            raise ArgumentError("Components are chosen by --scores or by --select.", cure="give one of the two")
        if "{}" not in phrase:
            raise ArgumentError(f"The phrase {phrase!r} has no place for the class.", cure="write {} where it goes")
        texts = aligner is not None or text_space is not None
        if predicted and texts:
            raise ArgumentError("Only a classifier predicts.", cure="leave out --predicted, or the text space")
        images = unweave.open_images(data, limit=limit)
        if not predicted and label not in images.fields:
            fields = ", ".join(images.fields) or "none"
            raise DataError(
                f"Nothing is known of the {label} of these images.",
                where=images.origin,
                cure=f"their fields: {fields}; or use --predicted",
            )
        place = device_of(device)
        loaded = unweave.load_model(
            model,
            checkpoint=checkpoint,
            random_weights=random_weights,
            seed=seed,
            device=place,
            image_size=image_size,
        )
        classes = [] if predicted else sorted({str(value) for value in images.table[label].to_pylist()})
        named = {name: (phrase.replace("{}", spoken(name)),) for name in classes}
        target = target_of(loaded, named if texts else None, texts, aligner, text_space, templates, place)
        plan = unweave.plan(loaded)
        chosen: Any = select or None
        if scores is not None:
            known = scored(scores)
            chosen = best(plan, known, feature or features_of(known), count)
        mapper = Mapper(plan, chosen)
    with progress("measuring", len(images)) as advance:
        found = measure(
            loaded,
            images,
            target,
            mapper=mapper,
            label=None if predicted else label,
            methods=method,
            batch=batch_size,
            shown=0 if no_figure else shown,
            on_image=counted(advance),
        )
    card = {
        "model": loaded.id,
        "weights_hash": loaded.weights_hash,
        "data": images.origin,
        "target": target.space,
        "class": "predicted" if predicted else label,
        "components": [str(component) for component in mapper.components],
        "skipped": [{"id": name, "reason": reason} for name, reason in found.skipped],
    }
    with results(output) as (folder, files):
        files |= write_table(found.table(), card, folder, "segmentation")
        if found.shown:
            with working("Drawing"):
                files["figure"] = str(_drawn(found, folder))
    if json:
        print_json(card | {"files": files, "rows": found.table().to_pylist()})
        return
    console = Console(highlight=False)
    console.print(_table(found))
    console.print(Text())
    for name, reason in found.skipped[:5]:
        print_warning(f"{name} was left out: {reason}")
    if len(found.skipped) > 5:
        print_warning(f"{len(found.skipped) - 5} more were left out.")
    print_note(f"{len(mapper.components)} components; target: {target.space}.")
    print_files(files)


def _table(found: Segmentation) -> Any:
    columns = {"method": "left", "pixel accuracy": "right", "foreground IoU": "right", "mean IoU": "right"}
    rows = []
    for own in found.qualities:
        numbers = (own.pixel_accuracy, own.foreground_iou, own.mean_iou, own.average_precision)
        rows.append([own.method, *("-" if value is None else f"{value:.3f}" for value in numbers), own.reason or ""])
    images = max(own.images for own in found.qualities)
    title = f"{found.model}: {images:,} images"
    return table(title, {**columns, "average precision": "right", "": "left"}, rows)


def _drawn(found: Segmentation, output: Path) -> Path:
    from unweave.figures import MapRow, maps_figure, save_figure

    methods = list(found.shown[0].maps)
    rows = [
        MapRow(own.pixels, f"{own.label}\n{own.id}", [own.maps[name] for name in methods], mask=own.mask)
        for own in found.shown
    ]
    figure = maps_figure(
        rows,
        methods,
        title=f"{found.model}: maps for each image's own class",
        label="relative to the largest of the method",
        own_scales=True,
    )
    return save_figure(figure, output / "segmentation.png")
