"""`unweave search`: images that are like one in a property, or that a text names, by the components for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from unweave.cli import options
from unweave.cli.console import counted, print_files, print_json, progress, table, working
from unweave.cli.results import results
from unweave.cli.seen import origin, seen_in
from unweave.errors import ArgumentError

if TYPE_CHECKING:
    from unweave.attribute import Attribution
    from unweave.store import Store
    from unweave.tasks.retrieval import Retrieved

_COMPONENTS, _HOW = "Which components", "How to work"
_DRAWN = 12
"""Images in a row of the figure, at most."""


def search(
    store: options.Store,
    output: options.Output,
    feature: Annotated[
        list[str], typer.Option(help="What the images should have in common; may be given several times.")
    ],
    text: Annotated[str | None, typer.Option(help="What to look for, in words.")] = None,
    image: Annotated[
        str | None, typer.Option(metavar="ID|FILE", help="An image to look for: an id of the store, or a file.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=options.MANY, help="How many images to find.")] = 10,
    where: options.Where = None,
    aligner: options.Aligner = None,
    text_space: options.OwnSpace = None,
    templates: options.Templates = None,
    features: Annotated[
        Path | None,
        typer.Option(help="A TOML file of features, with which the others are compared.", rich_help_panel=_COMPONENTS),
    ] = None,
    k: Annotated[
        int | None,
        typer.Option(
            "-k",
            min=1,
            max=options.MANY,
            help="How many components; what can be told from chance, if not given.",
            rich_help_panel=_COMPONENTS,
        ),
    ] = None,
    by: Annotated[
        Literal["score", "margin"] | None,
        typer.Option(
            help="Rank components by their score, or by that less their best score for another feature. Texts go by "
            "score and images by margin, if not given.",
            rich_help_panel=_COMPONENTS,
        ),
    ] = None,
    choose_on: Annotated[
        str | None,
        typer.Option(
            metavar="STORE",
            help="Score components on the images of this store, of the same model.",
            rich_help_panel=_COMPONENTS,
        ),
    ] = None,
    best: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FEATURE=FIELD",
            help="For this feature as many components as find images with the same value of a field best, where they "
            "are scored.",
            rich_help_panel=_COMPONENTS,
        ),
    ] = None,
    uncentred: Annotated[
        bool, typer.Option("--uncentred", help="Leave the mean of the images in, as published.", rich_help_panel=_HOW)
    ] = False,
    samples: options.Samples = 400,
    seed: options.DrawSeed = 0,
    device: options.Device = "auto",
    no_figure: options.NoFigure = False,
    json: options.Json = False,
) -> None:
    """Find images that a text names, or that are like one image in a property: one row of results for each feature."""
    if (text is None) == (image is None):
        raise ArgumentError("Look for a text, or for an image.", cure='give `--text "..."` or `--image ID`')
    with working(f"Reading {store}"):
        from dataclasses import replace

        import unweave
        from unweave.attribute import attribute
        from unweave.extraction.extractor import device_of
        from unweave.files import write_table
        from unweave.tasks.retrieval import by_image, by_text, probe_of
        from unweave.tasks.retrieval import table as rows_of
        from unweave.text import features as read
        from unweave.text.phrases import chosen as named

        seen, space = seen_in(store, aligner, text_space, templates, where, device)
        scored = replace(seen, store=unweave.open_store(choose_on or store), chosen=None)
        known = read(features) if features else space.features()
        asked = list(named(known, feature))
        fields = _fields(best or (), asked)
        if text is not None:
            space.encode([text])
        probe = probe_of(seen.store, image, level=seen.level, device=device_of(device)) if image is not None else None
    with progress("scoring", 2 * len(scored.components)) as advance:
        found = attribute(scored, space, known, seed=seed, samples=samples, on_component=counted(advance))
    ranked = by or ("score" if probe is None else "margin")
    with working("Choosing components"):
        chosen = [_chosen(found, scored, one, fields.get(one), ranked, k, seed) for one in asked]
    with progress("searching", 2 * len(seen.rows) * (len(chosen) + 1)) as advance:
        settings: dict[str, Any] = {"count": count, "centred": not uncentred, "on_images": advance}
        if probe is None:
            nearest = by_text(seen, space, str(text), chosen, **settings)
        else:
            nearest = by_image(seen.store, probe, chosen, rows=seen.rows, level=seen.level, **settings)
    card = origin(seen) | {
        "text": text,
        "image": image,
        "images": len(seen.rows),
        "centred": not uncentred,
        "chosen_on": str(scored.store.place),
        "features": {
            one.feature: {
                "by": one.by,
                "rule": one.rule,
                "components": {str(name): value for name, value in zip(one.components, one.values, strict=True)},
            }
            for one in chosen
        },
    }
    rows = rows_of(nearest)
    with results(output) as (folder, files):
        files |= write_table(rows, card, folder, "search")
        if not no_figure:
            with working("Drawing"):
                files["figure"] = str(_figure(seen.store, nearest, text, image, len(seen.rows), folder))
    if json:
        print_json(card | {"files": files, "rows": rows.to_pylist()})
        return
    console = Console(highlight=False)
    for one in nearest:
        console.print(_table(one))
        console.print(Text())
    print_files(files)


def _fields(best: Sequence[str], asked: Sequence[str]) -> dict[str, str]:
    found = dict(one.split("=", 1) for one in best if "=" in one)
    if len(found) < len(best) or not set(found) <= set(asked):
        raise ArgumentError(
            f"This says not of which feature a field decides: {', '.join(best)}.",
            cure="write FEATURE=FIELD, once for each, such as colour=colour",
        )
    return found


def _chosen(found: Attribution, scored: Any, feature: str, field: str | None, by: Any, k: int | None, seed: int) -> Any:
    from unweave.tasks.retrieval import choose, choose_best

    if field is None or k is not None:
        return choose(found, feature, by=by, k=k)
    return choose_best(found, feature, scored.store, field, by=by, level=scored.level, seed=seed)


def _title(one: Retrieved) -> tuple[str, str]:
    if one.feature is None:
        return "whole", "all components"
    return one.feature, f"{len(one.components)} component{'s' if len(one.components) > 1 else ''}"


def _table(one: Retrieved) -> Any:
    name, note = _title(one)
    rows = [[name, f"{near:.3f}"] for name, near in zip(one.ids, one.similarity, strict=True)]
    return table(f"{name}: {note}", {"image": "left", "similarity": "right"}, rows)


def _figure(
    store: Store, found: Sequence[Retrieved], text: str | None, image: str | None, count: int, output: Path
) -> Path:
    from unweave.extraction import pictures
    from unweave.figures import RetrievedRow, retrieval_figure, save_figure
    from unweave.gallery import squares
    from unweave.images import read_image

    def images(ids: Sequence[str]) -> Any:
        return squares(picture.read() for picture in pictures(store, ids))

    probe = None
    if image is not None:
        probe = images([image])[0] if image in store.ids else squares([read_image(image)])[0]
    figure = retrieval_figure(
        [RetrievedRow(*_title(one), images(one.ids[:_DRAWN]), one.similarity[:_DRAWN]) for one in found],
        title=f"{store.manifest.model}: nearest of {count:,} images",
        text=text,
        probe=probe,
        caption="" if image is None else image,
    )
    return save_figure(figure, output / "search.png")
