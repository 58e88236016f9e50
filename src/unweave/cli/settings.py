"""The settings of single verbs, each made of its options (see `unweave.cli.given`)."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_args

import typer

import unweave
from unweave.cli import options
from unweave.cli.console import print_note
from unweave.errors import ArgumentError

if TYPE_CHECKING:
    from unweave.reproduction import Setting, Subject

_COMPONENTS, _HOW, _STORED = "Which components", "How to work", "What is stored"
_CLASSES, _IMAGES = "What tells the classes", "Which images"


def levels(names: list[str] | None) -> list[str] | None:
    """Levels that there are."""
    known = get_args(options.Levels)
    for name in names or ():
        if name not in known:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(known)}.")
    return names


def extraction(
    level: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LEVEL",
            callback=levels,
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
    attention: options.Attention = "through",
    nonlinear: options.Nonlinear = "stop",
    launcher: Annotated[
        Literal["here", "processes", "ray"], typer.Option(help="Who computes.", rich_help_panel=_HOW)
    ] = "here",
    workers: Annotated[
        int | None, typer.Option(min=1, max=1024, help="How many processes or actors.", rich_help_panel=_HOW)
    ] = None,
    wait: Annotated[
        float,
        typer.Option(
            min=0,
            max=1e6,
            callback=options.finite,
            help="Seconds to wait where somebody else writes the store.",
            rich_help_panel=_HOW,
        ),
    ] = 0,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, max=65_536, help="Images at a time; what the memory allows if not given.", rich_help_panel=_HOW
        ),
    ] = None,
    on_error: Annotated[
        Literal["skip", "raise"], typer.Option(help="At a broken image: go on, or stop.", rich_help_panel=_HOW)
    ] = "skip",
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.", rich_help_panel=_HOW)
    ] = "auto",
    dtype: Annotated[
        Literal["float32", "float64", "bfloat16"], typer.Option(help="In which numbers.", rich_help_panel=_HOW)
    ] = "float32",
) -> "unweave.Settings":
    """How contributions are extracted."""
    return unweave.Settings(
        levels=tuple(level or ("head",)),  # type: ignore[arg-type]  # `levels` refuses others
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
        launcher=launcher,
        workers=workers,
    )


def recipe(
    solver: Annotated[
        Literal["ranged", "adam"], typer.Option(help="The default, or as published.", rich_help_panel=_HOW)
    ] = "ranged",
    weight: Annotated[
        float,
        typer.Option(min=0, max=1e6, callback=options.finite, help="The weight of the penalty.", rich_help_panel=_HOW),
    ] = 1.0,
    form: Annotated[
        Literal["mean-squared", "frobenius"], typer.Option(help="The form of the penalty.", rich_help_panel=_HOW)
    ] = "mean-squared",
    rounds: Annotated[
        int, typer.Option(min=0, max=options.MANY, help="The most rounds (`ranged`).", rich_help_panel=_HOW)
    ] = 12,
    epochs: Annotated[
        int, typer.Option(min=1, max=options.MANY, help="The most epochs (`adam`).", rich_help_panel=_HOW)
    ] = 2,
    held_out: Annotated[
        float,
        typer.Option(
            min=0, max=1, callback=options.finite, help="Share of the images to stop by.", rich_help_panel=_HOW
        ),
    ] = 0.1,
    random_images: Annotated[
        int,
        typer.Option(
            min=0,
            max=options.MANY,
            help="To align the same model with random weights, a control.",
            rich_help_panel=_HOW,
        ),
    ] = 500,
    seed: options.DrawSeed = 0,
) -> "unweave.Recipe":
    """How an aligner is fitted."""
    return unweave.Recipe(
        solver=solver,
        weight=weight,
        form=form,
        held_out=held_out,
        seed=seed,
        rounds=rounds,
        epochs=epochs,
        random_images=random_images,
    )


def choice(
    feature: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|PHRASE",
            help="A property; components are chosen for it. May be given several times.",
            rich_help_panel=_COMPONENTS,
        ),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(help="A TOML file of the features that are scored.", rich_help_panel=_COMPONENTS),
    ] = None,
    by: Annotated[
        Literal["score", "margin"] | None,
        typer.Option(help="What components are ranked by; as published if not given.", rich_help_panel=_COMPONENTS),
    ] = None,
    k: Annotated[
        int | None,
        typer.Option(
            "-k",
            min=1,
            max=options.MANY,
            help="How many components; what can be told from chance if not.",
            rich_help_panel=_COMPONENTS,
        ),
    ] = None,
    best: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FEATURE=FIELD",
            help="As many components as find images with the same value of a field best.",
            rich_help_panel=_COMPONENTS,
        ),
    ] = None,
    scored_on: Annotated[
        str | None,
        typer.Option(
            metavar="STORE", help="Score on the images of this store, of the same model.", rich_help_panel=_COMPONENTS
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=20, max=100_000, help="Of the bootstrap.", rich_help_panel="How to search")
    ] = 400,
    seed: options.DrawSeed = 0,
) -> "unweave.Choice":
    """Which components are searched by."""
    fields = {name: values[0] for name, values in _pairs(best, "colour=colour").items()}
    scored = unweave.open_store(scored_on) if scored_on else None
    return unweave.Choice(tuple(feature or ()), features, by, k, fields, scored, samples, seed)


def sides(
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="All images, with a field `split`; or the images to fit to.")
    ],
    held_out: Annotated[
        str | None,
        typer.Option(
            metavar="STORE", help="Images to rank and choose by, in a store of their own.", rich_help_panel=_IMAGES
        ),
    ] = None,
    test: Annotated[
        str | None, typer.Option(metavar="STORE", help="Images to report on, likewise.", rich_help_panel=_IMAGES)
    ] = None,
    splits: Annotated[
        str,
        typer.Option(
            metavar="FIT,HELD,TEST",
            help="The values of `split` of the three sides, where one store has them all.",
            rich_help_panel=_IMAGES,
        ),
    ] = "train,val,test",
) -> "unweave.Sides":
    """The images that are fitted to, chosen by, and reported on.

    Raises:
        ArgumentError: One of two stores is missing.
    """
    if held_out is None and test is None:
        return unweave.Sides.of(unweave.open_store(store), splits.split(","))
    if held_out is None or test is None:
        raise ArgumentError("Images to choose by and to report on come together.", cure="give --held-out and --test")
    return unweave.Sides(*map(unweave.open_store, (store, held_out, test)))


def probing(
    by: Annotated[
        Literal["probe", "zero-shot", "model"],
        typer.Option(
            help="A linear probe, the words of a text space, or the model's own classifier.", rich_help_panel=_CLASSES
        ),
    ] = "probe",
    label: options.Label = "label",
    call: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASS=PHRASE",
            help="What a class is called in words, for `zero-shot`; may be given several times.",
            rich_help_panel=_CLASSES,
        ),
    ] = None,
    regularisation: Annotated[
        float,
        typer.Option(
            min=1e-6, max=1e6, callback=options.finite, help="The probe's (scikit-learn's C).", rich_help_panel=_CLASSES
        ),
    ] = 0.1,
    space: options.Space = None,
) -> "unweave.Classification":
    """What tells the classes that something may mislead."""
    return unweave.Classification(by, label, space, regularisation, _pairs(call, "'land=a landbird'"))


def ranking(
    features: Annotated[
        Path | None, typer.Option(help="A TOML file with the two features; birds and their backgrounds if not given.")
    ] = None,
    spurious: Annotated[str, typer.Option(metavar="FEATURE", help="What misleads, in words.")] = "background",
    core: Annotated[str, typer.Option(metavar="FEATURE", help="What should lead, in words.")] = "bird",
    published: Annotated[
        bool,
        typer.Option("--published", help="Rank on the test images, as the published code does.", rich_help_panel=_HOW),
    ] = False,
) -> "unweave.Ranking":
    """What components are ranked by before they are ablated."""
    return unweave.Ranking(spurious, core, features, published)


def table(
    which: options.Table,
    output: options.Output,
    data: Annotated[str | None, typer.Option(help="The images of the published experiment.")] = None,
    fit: Annotated[
        str | None, typer.Option(help="The images that aligners are fitted to: ImageNet's training images, or some.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Only this one, by its published name or its id; may be given several times."),
    ] = None,
    pocket: Annotated[bool, typer.Option("--pocket", help="The pocket world and its six networks: offline.")] = False,
    space: Annotated[
        str | None, typer.Option(metavar="ID", help="The text space; the published one if not given.")
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            help="Where stores, aligners and results are kept; `OUTPUT/work` if not given.", rich_help_panel=_HOW
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, max=options.MANY, help="Only the first so many images of everything.", rich_help_panel=_HOW
        ),
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Try all steps out, fetching no weights.", rich_help_panel=_HOW)
    ] = False,
    seed: options.DrawSeed = 0,
    device: options.Device = "auto",
) -> "tuple[Setting, tuple[Subject, ...]]":
    """On which images a table of the paper is made, and for which models.

    Raises:
        ArgumentError: The images were not named.
    """
    from unweave.reproduction import POCKET, PUBLISHED, SPACE, TABLES, Setting, chosen, pocket_setting

    if which in TABLES and not pocket and data is None:
        raise ArgumentError(
            "The images were not named.", cure=f"`--data`: {TABLES[which].needs}; or `--pocket`, which needs none"
        )
    how: dict[str, Any] = {
        "say": print_note,
        "limit": limit,
        "random_weights": random_weights,
        "seed": seed,
        "device": device,
    }
    place = output / "work" if work is None else work
    if pocket:
        return pocket_setting(place, **how), chosen(POCKET, model or ())
    return Setting(place, data=data, fitted=fit, space=space or SPACE, **how), chosen(PUBLISHED, model or ())


Extraction: TypeAlias = Annotated["unweave.Settings", extraction]
Recipe: TypeAlias = Annotated["unweave.Recipe", recipe]
Choice: TypeAlias = Annotated["unweave.Choice", choice]
Sides: TypeAlias = Annotated["unweave.Sides", sides]
Probing: TypeAlias = Annotated["unweave.Classification", probing]
Table: TypeAlias = Annotated["tuple[Setting, tuple[Subject, ...]]", table]
Ranking: TypeAlias = Annotated["unweave.Ranking", ranking]


def _pairs(texts: list[str] | None, example: str) -> dict[str, list[str]]:
    """What is given as NAME=VALUE, several times perhaps.

    Raises:
        ArgumentError: One of them is not of this form.
    """
    pairs: dict[str, list[str]] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise ArgumentError(f"{text!r} is not of the form NAME=VALUE.", cure=f"write it like {example}")
        pairs.setdefault(name, []).append(value)
    return pairs
