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

_components, _how, _stored, _classes, _images = map(
    options.panel, ("Which components", "How to work", "What is stored", "What tells the classes", "Which images")
)


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
        _stored(
            "How finely: `layer`, `head` (if not given), `token`, `neuron`; several cost a forward pass each.",
            metavar="LEVEL",
            callback=levels,
        ),
    ] = None,
    select: options.Select = None,
    store_dtype: Annotated[
        Literal["float16", "float32"], _stored("In which numbers contributions are stored.")
    ] = "float16",
    block: Annotated[int | None, _stored("Images in a block, which is kept or done again.", min=1, max=4096)] = None,
    attention: options.Attention = "through",
    nonlinear: options.Nonlinear = "stop",
    launcher: Annotated[Literal["here", "processes", "ray"], _how("Who computes.")] = "here",
    workers: Annotated[int | None, _how("How many processes or actors.", min=1, max=1024)] = None,
    wait: Annotated[
        float,
        _how("Seconds to wait where somebody else writes the store.", min=0, max=1000000.0, callback=options.finite),
    ] = 0,
    batch_size: Annotated[
        int | None, _how("Images at a time; what the memory allows if not given.", min=1, max=65536)
    ] = None,
    on_error: Annotated[Literal["skip", "raise"], _how("At a broken image: go on, or stop.")] = "skip",
    device: Annotated[Literal["auto", "cpu", "cuda"], _how("Where to compute.")] = "auto",
    dtype: Annotated[Literal["float32", "float64", "bfloat16"], _how("In which numbers.")] = "float32",
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
    solver: Annotated[Literal["ranged", "adam"], _how("The default, or as published.")] = "ranged",
    weight: Annotated[float, _how("The weight of the penalty.", min=0, max=1000000.0, callback=options.finite)] = 1.0,
    form: Annotated[Literal["mean-squared", "frobenius"], _how("The form of the penalty.")] = "mean-squared",
    rounds: Annotated[int, _how("The most rounds (`ranged`).", min=0, max=options.MANY)] = 12,
    epochs: Annotated[int, _how("The most epochs (`adam`).", min=1, max=options.MANY)] = 2,
    held_out: Annotated[float, _how("Share of the images to stop by.", min=0, max=1, callback=options.finite)] = 0.1,
    random_images: Annotated[
        int, _how("To align the same model with random weights, a control.", min=0, max=options.MANY)
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
        _components("A property; components are chosen for it. May be given several times.", metavar="NAME|PHRASE"),
    ] = None,
    features: Annotated[Path | None, _components("A TOML file of the features that are scored.")] = None,
    by: Annotated[
        Literal["score", "margin"] | None, _components("What components are ranked by; as published if not given.")
    ] = None,
    k: Annotated[
        int | None,
        _components("How many components; what can be told from chance if not.", "-k", min=1, max=options.MANY),
    ] = None,
    best: Annotated[
        list[str] | None,
        _components("As many components as find images with the same value of a field best.", metavar="FEATURE=FIELD"),
    ] = None,
    scored_on: Annotated[
        str | None, _components("Score on the images of this store, of the same model.", metavar="STORE")
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
        str | None, _images("Images to rank and choose by, in a store of their own.", metavar="STORE")
    ] = None,
    test: Annotated[str | None, _images("Images to report on, likewise.", metavar="STORE")] = None,
    splits: Annotated[
        str, _images("The values of `split` of the three sides, where one store has them all.", metavar="FIT,HELD,TEST")
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
        _classes("A linear probe, the words of a text space, or the model's own classifier."),
    ] = "probe",
    label: options.Label = "label",
    call: Annotated[
        list[str] | None,
        _classes(
            "What a class is called in words, for `zero-shot`; may be given several times.", metavar="CLASS=PHRASE"
        ),
    ] = None,
    regularisation: Annotated[
        float, _classes("The probe's (scikit-learn's C).", min=1e-06, max=1000000.0, callback=options.finite)
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
    published: Annotated[bool, _how("Rank on the test images, as the published code does.", "--published")] = False,
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
        Path | None, _how("Where stores, aligners and results are kept; `OUTPUT/work` if not given.")
    ] = None,
    limit: Annotated[int | None, _how("Only the first so many images of everything.", min=1, max=options.MANY)] = None,
    random_weights: Annotated[bool, _how("Try all steps out, fetching no weights.", "--random-weights")] = False,
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
