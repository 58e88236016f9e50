"""What verbs are given that is made of several options: each function here has those options, and makes it.

A verb asks for one by its type: `loading: given.Loading` is MODEL, `--checkpoint`, `--seed` and so on on the command
line, and what `loading` makes of them in the verb (see `unfolded`). Types are read when the command line starts; those
that take long to import stand in quotes.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

import unweave
from unweave.cli import options
from unweave.cli.console import working
from unweave.errors import ArgumentError

_space = options.panel("The text space")


def unfolded(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb as typer takes it: with the options of what it is given in the places of what is made of them."""
    signature = inspect.signature(verb, eval_str=True)
    makers = {name: maker for name, part in signature.parameters.items() if (maker := _maker(part.annotation))}
    taken = {name: inspect.signature(maker).parameters for name, maker in makers.items()}
    parts: dict[str, inspect.Parameter] = {}
    for name, part in signature.parameters.items():
        for option, declared in taken.get(name, {name: part}).items():
            parts.setdefault(option, declared.replace(kind=declared.KEYWORD_ONLY))

    def called(**given: Any) -> None:
        with working(f"Reading {next(iter(given.values()), '')}"):
            made = {name: maker(**{option: given[option] for option in taken[name]}) for name, maker in makers.items()}
        verb(**{name: made[name] if name in made else given[name] for name in signature.parameters})

    called.__name__, called.__doc__ = verb.__name__, verb.__doc__
    called.__signature__ = signature.replace(parameters=list(parts.values()))  # type: ignore[attr-defined]
    called.__annotations__ = {option: part.annotation for option, part in parts.items()}
    return called


def _maker(annotation: Any) -> Callable[..., Any] | None:
    """The function that makes a parameter of this type, where it is made of options."""
    return next(filter(inspect.isfunction, getattr(annotation, "__metadata__", ())), None)


# -- models, and what of them ------------------------------------------------------------------------------------------


def loading(
    model: options.Model,
    checkpoint: options.Checkpoint = None,
    checkpoint_key: options.CheckpointKey = None,
    random_weights: options.RandomWeights = False,
    seed: options.Seed = 0,
    image_size: options.ImageSize = None,
    representation: options.Representation = None,
    pool: options.Pool = None,
) -> "unweave.Loading":
    """How a model is loaded."""
    return unweave.Loading(model, checkpoint, random_weights, seed, image_size, checkpoint_key, representation, pool)


def splitting(
    level: options.Level = "head",
    select: options.Select = None,
    attention: options.Attention = "through",
    nonlinear: options.Nonlinear = "stop",
    strict: options.Strict = False,
) -> dict[str, Any]:
    """How a model is split into components: the keywords of `unweave.plan`."""
    return {"level": level, "select": select or None, "attention": attention, "nonlinear": nonlinear, "strict": strict}


def components(
    select: options.Select = None,
    scores: options.Scores = None,
    feature: options.Feature = None,
    components: options.Components = None,
) -> "list[str] | unweave.Highest | None":
    """Components by a selection, by their scores, or all.

    Raises:
        ArgumentError: Both were given, or half of one.
    """
    if select and scores:
        raise ArgumentError("Components are chosen by --scores or by --select.", cure="give one of the two")
    if (feature or components) and not scores:
        raise ArgumentError("A feature needs its scores.", cure="give --scores FOLDER, which `unweave score` wrote")
    return unweave.Highest(scores, tuple(feature or ()), components) if scores else select or None


Loading: TypeAlias = Annotated["unweave.Loading", loading]
Splitting: TypeAlias = Annotated[Any, splitting]
Components: TypeAlias = Annotated[Any, components]


def model_of(loading: "unweave.Loading", device: str = "cpu", dtype: str = "float32") -> "unweave.Model":
    """A model, loaded on a device."""
    from unweave.models import opened

    return opened(loading, device=unweave.device_of(device), dtype=dtype)


# -- images ------------------------------------------------------------------------------------------------------------


def reading(
    split: Annotated[str | None, typer.Option(help="Only the images of this split.")] = None,
    limit: options.Limit = None,
    white: options.White = None,
    max_pixels: options.MaxPixels = None,
) -> dict[str, Any]:
    """How images are read: keywords of `unweave.open_images`."""
    return {"split": split, "limit": limit, "white": white, "max_pixels": max_pixels}


def regions(token: options.Token = None, box: options.Box = None, mask: options.Mask = None) -> list[str]:
    """The regions of each image that are explained in its place."""
    given = {"token": token, "box": box, "mask": mask}
    return [f"{kind} {region}" for kind, several in given.items() for region in several or ()]


Reading: TypeAlias = Annotated[dict[str, Any], reading]
Regions: TypeAlias = Annotated[list[str], regions]


def pictures_of(images: list[str] | None, reading: dict[str, Any]) -> Any:
    """Images as a verb names them: a set, several files and folders, or none for the drawn samples.

    Raises:
        ArgumentError: A split is asked for of what has none.
    """
    if reading["split"] is not None and (not images or len(images) > 1):
        raise ArgumentError("Only a set of images has splits.", cure="name one set, or leave `--split` out")
    if not images:
        return unweave.sample_images()[: reading["limit"]]
    if len(images) == 1:
        return unweave.open_images(images[0], **reading)
    from unweave.images import Reading

    return unweave.find_images(images, Reading(reading["white"], reading["max_pixels"]))[: reading["limit"]]


def at_regions(pictures: Any, regions: list[str], everywhere: Callable[[], tuple[str, ...]]) -> Any:
    """Pictures at the regions that a verb is asked for; as they are where there are none.

    Args:
        pictures: As `pictures_of` returns them.
        regions: As given.
        everywhere: The names of all tokens, asked for where they are wanted.
    """
    if not regions:
        return pictures
    from unweave.images.imageset import ImageSet, set_of

    named = [name for region in regions for name in (everywhere() if region == "token all" else (region,))]
    return (pictures if isinstance(pictures, ImageSet) else set_of(pictures)).at(*named)


# -- stores and spaces -------------------------------------------------------------------------------------------------


def view(
    store: options.Store,
    level: options.StoreLevel = None,
    where: options.Where = None,
    rows: options.Rows = None,
    side: options.Side = None,
    limit: options.Limit = None,
    select: options.Select = None,
    check: options.Check = False,
) -> "unweave.View":
    """Some images and components of a store."""
    view = unweave.open_store(store, check=check).view(level)
    if rows is not None:
        behind = max(run.stop for run in rows)
        if behind > len(view):
            raise ArgumentError(f"There is no row {behind - 1} among {len(view)}.", where=store, cure="name others")
        view = view.rows([row for run in rows for row in run])
    view = view.where(*where) if where else view
    for share, seed, place in side or ():
        view = view.split(share, seed)[place]
    view = view if limit is None else view.rows(slice(limit))
    return view.select(select) if select else view


def in_words(
    view: "unweave.View", space: str | None, templates: Path | None, device: str
) -> "tuple[unweave.View, unweave.TextSpace]":
    """A view in a text space, and the space, loaded on a device."""
    sentences = unweave.read_templates(templates) if templates else None
    return unweave.aligned(view, space, templates=sentences, device=unweave.device_of(device))


def text_space(
    space: Annotated[str, _space("Such as `open_clip/ViT-L-14/laion2b_s32b_b82k`.", metavar="ID")],
    space_checkpoint: Annotated[Path | None, _space("A file of its weights.", exists=True, dir_okay=False)] = None,
    space_random_weights: Annotated[bool, _space("Random weights, to try it out.", "--space-random-weights")] = False,
    device: options.Device = "auto",
) -> "unweave.TextSpace":
    """A text space, loaded."""
    device = unweave.device_of(device)  # type: ignore[assignment]
    return unweave.text_space(space, checkpoint=space_checkpoint, random_weights=space_random_weights, device=device)


View: TypeAlias = Annotated["unweave.View", view]
Space: TypeAlias = Annotated["unweave.TextSpace", text_space]
