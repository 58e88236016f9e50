"""Phrases: what is looked for in images, as text. Features group them; templates set them into sentences."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from os import PathLike
from pathlib import Path
from typing import TypeAlias

from unweave.errors import ArgumentError, DataError
from unweave.notation import parse_toml, read_text

_HERE = Path(__file__).parent

TEMPLATES = (
    "{}",
    "a photo of {}",
    "a photograph showing {}",
    "an image of {}",
    "a picture with {} in it",
    "a close-up of {}",
    "a view of {}",
    "a blurry photo of {}",
    "a bright photo of {}",
    "a dark photo of {}",
    "a cropped photo of {}",
    "a good photo of {}",
    "a small picture of {}",
    "a large picture of {}",
    "a colourful image of {}",
    "a black and white photo of {}",
    "a drawing of {}",
    "a painting of {}",
    "there is {} in the scene",
    "this is {}",
)
"""Sentences for general text spaces: what is said of them all is the phrase, what differs averages out."""


def read_templates(path: str | PathLike[str]) -> tuple[str, ...]:
    """Templates from a text file, one on each line, with `{}` where the phrase goes; `#` begins a comment line.

    Raises:
        ArgumentError: The file cannot be read, or a line has not exactly one `{}`.
    """
    templates = _lines(Path(path))
    for line in templates:
        if line.count("{}") != 1:
            raise ArgumentError(
                f"A template needs one {{}}: {line!r}.", where=str(path), cure="write {} for the phrase"
            )
    return templates


def read_phrases(path: str | PathLike[str]) -> tuple[str, ...]:
    """A vocabulary from a text file, one phrase on each line, each once; `#` begins a comment line.

    Raises:
        ArgumentError: The file cannot be read, or holds no phrases.
    """
    return tuple(dict.fromkeys(_lines(Path(path))))


def _lines(path: Path) -> tuple[str, ...]:
    try:
        lines = [line.strip() for line in read_text(path).splitlines()]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"The text file cannot be read: {reason}.", where=str(path), cure="name a text file in UTF-8"
        ) from error
    kept = tuple(line for line in lines if line and not line.startswith("#"))
    if not kept:
        raise DataError("The text file holds nothing.", where=str(path), cure="write one phrase on each line")
    return kept


def features(path: str | PathLike[str] | None = None) -> Mapping[str, tuple[str, ...]]:
    """Features: a name for each group of phrases.

        [colour]
        phrases = ["blue colour", "green colour"]

    Args:
        path: A TOML file; the published features (Balasubramanian et al., 2024, with those of the appendix) if not
            given.

    Raises:
        DataError: The file cannot be read, is not TOML, or a feature has no phrases, or one of them twice.
    """
    where = "features.toml" if path is None else str(path)
    try:
        table = parse_toml(read_text(_HERE / "features.toml" if path is None else Path(path)))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"The features cannot be read: {reason}.", where=where, cure="name a TOML file in UTF-8"
        ) from error
    read = {}
    for name, fields in table.items():
        phrases = fields.get("phrases") if isinstance(fields, dict) else None
        if not isinstance(phrases, list) or not phrases or not all(isinstance(one, str) and one for one in phrases):
            raise DataError(
                f"The feature {name!r} has no list of phrases.", where=where, cure='write phrases = ["...", "..."]'
            )
        if len(set(phrases)) < len(phrases):
            twice = next(one for one in phrases if phrases.count(one) > 1)
            raise DataError(f"The feature {name!r} has a phrase twice: {twice!r}.", where=where, cure="remove one")
        read[name] = tuple(phrases)
    if not read:
        raise DataError("There are no features.", where=where, cure="write one table for each feature")
    return read


def spoken(label: str) -> str:
    """What somebody would call a class by: `n01440764` is a tench, `polar_bear` a polar bear."""
    if re.fullmatch(r"n\d{8}", label):
        synset = _synsets().get(label)
        return label if synset is None else synset
    return label.replace("_", " ")


@cache
def _synsets() -> dict[str, str]:
    """The first name of each synset of ImageNet-1k."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return {name: info.label_name_to_description(name).split(",")[0] for name in info.label_names()}


def shipped(**files: str) -> Callable[[str], Mapping[str, tuple[str, ...]]]:
    """Features that are shipped, by the name of their set.

    Args:
        files: The name of each set and its file.
    """

    def read(name: str = "features") -> Mapping[str, tuple[str, ...]]:
        if name not in files:
            raise ArgumentError(f"No features {name!r} are shipped.", cure=f"use {' or '.join(files)}")
        return features(_HERE / files[name])

    return read


def chosen(
    known: Mapping[str, tuple[str, ...]],
    names: Sequence[str] = (),
    phrases: Sequence[str] = (),
    *,
    each: bool = False,
) -> dict[str, tuple[str, ...]]:
    """Some features, and phrases that stand alone.

    Args:
        known: The features to choose from.
        names: The features that are asked for; all if none is named.
        phrases: Phrases to be features by themselves.
        each: Whether every phrase of the chosen features is one by itself, too.

    Raises:
        ArgumentError: There is no such feature, or a phrase has the name of a feature.
    """
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        raise ArgumentError(f"There is no feature {unknown!r}.", cure=f"use some of {', '.join(known)}")
    asked = {name: known[name] for name in dict.fromkeys(names or known)}
    alone = [*(phrase for several in asked.values() for phrase in several if each), *phrases]
    for phrase in dict.fromkeys(alone):
        if asked.get(phrase, (phrase,)) != (phrase,):
            raise ArgumentError(f"{phrase!r} is a feature and a phrase.", cure="ask for one of the two")
        asked[phrase] = (phrase,)
    return asked


Features: TypeAlias = "Mapping[str, Sequence[str]] | Sequence[str] | str | PathLike[str] | None"
"""Features by name, each with its phrases; or names of features, and phrases that stand alone; or a TOML file; None for
those that are shipped for the text space.
"""
