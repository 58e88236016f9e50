"""Views, text spaces and models, as verbs name them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import unweave
from unweave.errors import ArgumentError

if TYPE_CHECKING:
    from unweave import Highest, Loading, Model, TextSpace, View


def view_of(store: str, where: list[str] | None = None, level: str | None = None) -> View:
    """The images of a store for which conditions hold."""
    view = unweave.open_store(store).view(level)
    return view.where(*where) if where else view


def in_words(view: View, space: str | None, templates: Path | None, device: str) -> tuple[View, TextSpace]:
    """A view in a text space, and the space, loaded on a device."""
    sentences = unweave.read_templates(templates) if templates else None
    return unweave.aligned(view, space, templates=sentences, device=unweave.device_of(device))


def model_of(loading: Loading, device: str = "cpu", dtype: str = "float32") -> Model:
    """A model, loaded on a device."""
    from unweave.models import opened

    return opened(loading, device=unweave.device_of(device), dtype=dtype)


def chosen_of(
    select: list[str] | None, scores: Path | None, feature: list[str] | None, components: int | None
) -> list[str] | Highest | None:
    """The components that a verb is asked for: by selection, by their scores, or all.

    Raises:
        ArgumentError: Both were given, or half of one.
    """
    if select and scores:
        raise ArgumentError("Components are chosen by --scores or by --select.", cure="give one of the two")
    if (feature or components) and not scores:
        raise ArgumentError("A feature needs its scores.", cure="give --scores FOLDER, which `unweave score` wrote")
    return unweave.Highest(scores, tuple(feature or ()), components) if scores else select or None


def pictures_of(images: list[str] | None, limit: int | None, white: float | None, max_pixels: int | None) -> Any:
    """Images as a verb names them: a set, several files and folders, or none for the drawn samples."""
    if not images:
        return unweave.sample_images()[:limit]
    if len(images) == 1:
        return unweave.open_images(images[0], limit=limit, white=white, max_pixels=max_pixels)
    from unweave.images import Reading

    return unweave.find_images(images, Reading(white, max_pixels))[:limit]


def at_regions(
    pictures: Any,
    token: list[str] | None,
    box: list[str] | None,
    mask: list[str] | None,
    everywhere: Callable[[], tuple[str, ...]],
) -> Any:
    """Pictures at the regions that a verb is asked for; as they are where there are none.

    Args:
        pictures: As `pictures_of` returns them.
        token, box, mask: As given.
        everywhere: The names of all tokens, asked for where they are wanted.
    """
    tokens = everywhere() if token == ["all"] else [f"token {given}" for given in token or ()]
    regions = (*tokens, *(f"box {given}" for given in box or ()), *(f"mask {given}" for given in mask or ()))
    if not regions:
        return pictures
    from unweave.images.imageset import ImageSet, set_of

    return (pictures if isinstance(pictures, ImageSet) else set_of(pictures)).at(*regions)


def pairs_of(texts: list[str] | None, example: str) -> dict[str, list[str]]:
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
