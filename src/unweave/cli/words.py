"""`unweave align`, `unweave score`, `unweave label`: components in a text space, what they have to do with features, and
names for them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from unweave.cli import options
from unweave.cli.console import print_error, print_json, table, working

if TYPE_CHECKING:
    from unweave.attribute import Attribution
    from unweave.textspan import Naming

_SPACE = "The text space"
_HOW = "How to work"

Store = Annotated[str, typer.Argument(metavar="STORE", help="What `unweave extract` wrote.")]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where results are written.")]
Aligner = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="What `unweave align` wrote.", rich_help_panel=_SPACE),
]
OwnSpace = Annotated[
    str | None,
    typer.Option(metavar="ID", help="For a CLIP in its own space, instead of an aligner.", rich_help_panel=_SPACE),
]
Templates = Annotated[
    Path | None,
    typer.Option(help="Sentences for phrases, one on each line, with {} for the phrase.", rich_help_panel=_SPACE),
]
Where = Annotated[
    list[str] | None, typer.Option(metavar="FIELD=VALUE", help="Only images of which a field has this value.")
]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where encoders compute.", rich_help_panel=_HOW)]
Seed = Annotated[int, typer.Option(min=0, help="Of everything that is drawn by chance.", rich_help_panel=_HOW)]


def align(
    store: Store,
    text_space: Annotated[
        str,
        typer.Option(metavar="ID", help="Such as `open_clip/ViT-L-14/laion2b_s32b_b82k`.", rich_help_panel=_SPACE),
    ],
    output: Output,
    level: Annotated[str | None, typer.Option(help="Which level; the store's first if not given.")] = None,
    space_checkpoint: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A file of its weights.", rich_help_panel=_SPACE),
    ] = None,
    space_random_weights: Annotated[
        bool, typer.Option("--space-random-weights", help="Random weights, to try it out.", rich_help_panel=_SPACE)
    ] = False,
    solver: Annotated[
        Literal["ranged", "adam"], typer.Option(help="The default, or as published.", rich_help_panel=_HOW)
    ] = "ranged",
    weight: Annotated[float, typer.Option(min=0, help="Of the penalty.", rich_help_panel=_HOW)] = 1.0,
    form: Annotated[
        Literal["mean-squared", "frobenius"], typer.Option(help="Of the penalty.", rich_help_panel=_HOW)
    ] = "mean-squared",
    rounds: Annotated[int, typer.Option(min=0, help="At most (`ranged`).", rich_help_panel=_HOW)] = 12,
    epochs: Annotated[int, typer.Option(min=1, help="At most (`adam`).", rich_help_panel=_HOW)] = 2,
    held_out: Annotated[float, typer.Option(help="Share of the images to stop by.", rich_help_panel=_HOW)] = 0.1,
    classes: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD", help="Fields that name classes, for zero-shot accuracies.", rich_help_panel=_HOW),
    ] = None,
    random_images: Annotated[
        int,
        typer.Option(min=0, help="To align the same model with random weights, a control.", rich_help_panel=_HOW),
    ] = 500,
    seed: Seed = 0,
    device: Device = "auto",
    push: Annotated[str | None, typer.Option(metavar="ORG/NAME", help="Upload to the Hugging Face hub.")] = None,
    json: options.Json = False,
) -> None:
    """Fit one linear map for each component into a text space, on images alone; go on where it was interrupted."""
    with working(f"Reading {text_space}"):
        import unweave
        from unweave import align as rooms
        from unweave.extraction.extractor import device_of

        opened = unweave.open_store(store)
        space = unweave.text_space(
            text_space, checkpoint=space_checkpoint, random_weights=space_random_weights, device=device_of(device)
        )
    recipe = rooms.Recipe(weight=weight, form=form, seed=seed, rounds=rounds, epochs=epochs)
    say = Console(stderr=True, highlight=False)
    said: list[bool] = []

    def on_point(point: Any) -> None:
        if not said:
            say.print(Text("  step           seconds   held out    train  penalty", "dim"))
            said.append(True)
        line = f"  {point.step:12} {point.seconds:9.1f} {point.held_out:10.4f} {point.train:8.4f} {point.penalty:8.4f}"
        say.print(Text(line, "dim"))

    try:
        with _progress("embedding", len(opened)) as advance:
            rooms.embeddings(opened, space, on_images=advance)
        with redirect_stdout(sys.stderr):
            aligner = rooms.align(
                opened,
                space,
                solver=solver,
                recipe=recipe,
                share=held_out,
                level=level,
                classes=tuple(classes or ("label",)),
                random_images=random_images,
                kept=output / ".unfinished.safetensors",
                on_point=on_point,
            )
    except KeyboardInterrupt:
        print_error("Interrupted. What is done is kept; the same command goes on from there.")
        raise typer.Exit(130) from None
    file = aligner.save(output)
    found = {"aligner": str(file), **aligner.identity, "measured": dict(aligner.measured)}
    if push is not None:
        with working(f"Uploading to {push}"):
            found["address"] = aligner.push(push)
    if json:
        print_json(found)
        return
    console = Console(highlight=False)
    console.print(table("", {"": "left", " ": "right"}, _card(aligner.measured)))
    console.print(Text(f"{len(aligner.components):,} maps in {file}"), soft_wrap=True)


def _card(measured: Any) -> Iterator[list[str | Text]]:
    """What is worth a look of what was measured."""
    if "identity" in measured:
        yield ["the model is the space's own image encoder:", "nothing had to be aligned"]
    else:
        own = measured["objective"]
        yield ["1 - cosine, held-out images", f"{own['held out']:.4f}"]
        yield ["1 - cosine, images that were fitted", f"{own['train']:.4f}"]
        yield ["penalty", f"{own['penalty']:.4f}"]
    for name, value in measured.get("controls", {}).items():
        if not isinstance(value, dict):
            yield [f"control: {name}", f"{value:.4f}"]
        elif "left out" in value:
            yield [f"control: {name}", str(value["left out"]).splitlines()[0]]
        else:
            few = f"on {value['images']} images"
            yield [f"control: {name}, {few}", f"{value['random weights']:.4f}"]
            yield [f"this model, {few}", f"{value['this model']:.4f}"]
    quantiles = measured["cosine percentiles"]
    yield ["cosine, 5th, 50th and 95th percentile", " ".join(f"{quantiles[one]:.3f}" for one in ("5", "50", "95"))]
    for name, value in measured["zero-shot"].items():
        if "left out" in value:
            yield [f"zero-shot {name}", str(value["left out"]).splitlines()[0]]
        else:
            text = f"{value['aligned']:.3f}, the space's own encoder {value['space']:.3f}"
            yield [f"zero-shot {name}, {value['classes']} classes", text]


def score(
    store: Store,
    output: Output,
    features: Annotated[
        Path | None,
        typer.Option(help="A TOML file of features; those of the paper, or of the pocket world, if not given."),
    ] = None,
    feature: Annotated[list[str] | None, typer.Option(help="Only this one; may be given several times.")] = None,
    phrase: Annotated[list[str] | None, typer.Option(help="A phrase to score beside the features.")] = None,
    each: Annotated[bool, typer.Option("--each", help="Score every phrase of the features by itself, too.")] = False,
    aligner: Aligner = None,
    text_space: OwnSpace = None,
    templates: Templates = None,
    where: Where = None,
    samples: Annotated[int, typer.Option(min=20, help="Of the bootstrap.", rich_help_panel=_HOW)] = 400,
    seed: Seed = 0,
    device: Device = "auto",
    top: Annotated[int, typer.Option(min=1, help="How many components to print for each feature.")] = 5,
    no_figure: Annotated[bool, typer.Option("--no-figure", help="Draw no figure.")] = False,
    json: options.Json = False,
) -> None:
    """Score every component for every feature, with intervals, and say which scores are above chance."""
    with working(f"Reading {store}"):
        from unweave.attribute import attribute
        from unweave.files import write_table
        from unweave.text import features as read
        from unweave.text.phrases import chosen

        seen, space = _seen(store, aligner, text_space, templates, where, device)
        known = read(features) if features else space.features()
        asked = chosen(known, feature or (), phrase or (), each=each)
        for phrases in asked.values():
            space.encode(phrases)
    with _progress("scoring", 2 * len(seen.components)) as advance:
        found = attribute(seen, space, asked, seed=seed, samples=samples, on_component=_counted(advance))
    card = _origin(seen) | {"features": asked, "images": found.images, "seed": seed, "samples": samples}
    files = write_table(found.table(), card, output, "scores")
    if not no_figure:
        files["figure"] = str(_scores_figure(found, seen.store.manifest.model, output))
    if json:
        above = found.above()
        count = {name: int(above[:, column].sum()) for column, name in enumerate(found.features)}
        print_json(card | {"above_chance": count, "files": files, "rows": found.table().to_pylist()})
        return
    console = Console(highlight=False)
    for name in found.features:
        console.print(_scores_table(found, name, top))
        console.print(Text())
    for what, path in files.items():
        console.print(Text.assemble((f"{what:>9}  ", "dim"), path), soft_wrap=True)


def _scores_table(found: Attribution, feature: str, top: int) -> Any:
    column, above = found.column(feature), found.above()
    rows: list[list[str | Text]] = []
    for row in found.ranked(feature)[:top]:
        score, low, high, chance = (
            float(getattr(found, name)[row, column]) for name in ("scores", "low", "high", "chance_high")
        )
        style = "" if above[row, column] else "dim"
        cells = [str(found.components[row]), f"{score:.2f}", f"{low:.2f} ... {high:.2f}", f"{chance:.2f}"]
        rows.append([Text(cell, style) for cell in cells])
    count = int(above[:, column].sum())
    title = f"{feature}: {count} of {len(found.components)} components above chance"
    return table(title, {"component": "left", "score": "right", "95 %": "right", "chance, at most": "right"}, rows)


def _scores_figure(found: Attribution, model: str, output: Path) -> Path:
    from unweave.figures import factors_figure, save_figure

    above = found.above()
    figure = factors_figure(
        found.components,
        {name: found.scores[:, column].tolist() for column, name in enumerate(found.features)},
        title=f"{model}: scores for features, {found.images:,} images",
        label="score (mean correlation)",
        told={name: above[:, column].tolist() for column, name in enumerate(found.features)},
    )
    return save_figure(figure, output / "scores.png")


def label(
    store: Store,
    output: Output,
    aligner: Aligner = None,
    text_space: OwnSpace = None,
    vocabulary: Annotated[
        Path | None, typer.Option(help="A text file with one phrase on each line; the shipped vocabulary if not given.")
    ] = None,
    phrases: Annotated[int, typer.Option(min=1, help="How many for each component.")] = 5,
    templates: Templates = None,
    where: Where = None,
    device: Device = "auto",
    top: Annotated[int, typer.Option(min=1, help="How many of the clearest components to print and draw.")] = 10,
    no_figure: Annotated[bool, typer.Option("--no-figure", help="Draw no figure.")] = False,
    json: options.Json = False,
) -> None:
    """Name every component by phrases of a vocabulary, with the share of its variance that each explains."""
    with working(f"Reading {store}"):
        from unweave.files import write_table
        from unweave.text import read_phrases
        from unweave.textspan import clearest, textspan
        from unweave.textspan import table as rows_of

        seen, space = _seen(store, aligner, text_space, templates, where, device)
        words = read_phrases(vocabulary) if vocabulary else space.vocabulary()
        space.encode(words)
    with _progress("naming", len(seen.components)) as advance:
        found = textspan(seen, space, words, count=phrases, on_component=_counted(advance))
    source = str(vocabulary) if vocabulary else "shipped"
    card = _origin(seen) | {"images": len(seen.rows), "vocabulary": source, "phrases": len(words)}
    files = write_table(rows_of(found), card, output, "names")
    shown = clearest(found, top)
    if not no_figure and shown:
        with working("Drawing"):
            from unweave.figures import save_figure
            from unweave.gallery import gallery

            figure = gallery(seen, space, shown)
            files["figure"] = str(save_figure(figure, output / "names.png"))
    if json:
        print_json(card | {"files": files, "rows": rows_of(found).to_pylist()})
        return
    console = Console(highlight=False)
    console.print(_names_table(shown))
    console.print(Text())
    for what, path in files.items():
        console.print(Text.assemble((f"{what:>9}  ", "dim"), path), soft_wrap=True)


def _names_table(shown: Sequence[Naming]) -> Any:
    rows: list[list[str | Text]] = []
    for own in shown:
        names = ", ".join(f"{name.phrase} ({100 * name.alone:.0f} %)" for name in own.names)
        rows.append([str(own.component), names, f"{100 * own.usual:.1f} %", f"{100 * own.explained:.0f} %"])
    columns = {"component": "left", "phrases": "left", "a usual phrase": "right", "all, in its span": "right"}
    return table("The clearest components, and the share of their variance along each phrase", columns, rows)


def _seen(
    store: str,
    aligner: Path | None,
    space: str | None,
    templates: Path | None,
    where: list[str] | None,
    device: str,
) -> tuple[Any, Any]:
    import unweave
    from unweave.align import open_aligned
    from unweave.extraction.extractor import device_of
    from unweave.text import read_templates

    opened = unweave.open_store(store)
    rows = opened.chosen(where) if where else None
    sentences = read_templates(templates) if templates else None
    return open_aligned(opened, aligner, space, templates=sentences, rows=rows, device=device_of(device))


def _origin(seen: Any) -> dict[str, Any]:
    """What results are of, for their card."""
    own = seen.aligner.identity
    names = ("model", "weights_hash", "level", "space", "space_hash")
    return {"store": str(seen.store.place), **{name: own[name] for name in names}}


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with the remaining time; the function moves it on by so many."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        Progress(what, *columns, console=Console(stderr=True), transient=True) as progress,
        redirect_stdout(sys.stderr),
    ):
        task = progress.add_task("", total=total)
        yield lambda count: progress.advance(task, count)


def _counted(advance: Callable[[int], None]) -> Callable[[int], None]:
    """For callbacks that say how many are done in all."""
    done = 0

    def on_count(count: int) -> None:
        nonlocal done
        advance(count - done)
        done = count

    return on_count
