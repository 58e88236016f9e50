"""How files of images are read: what is white in them, how large they may be, and what is said of them, once a set."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

from unweave.errors import ArgumentError, DataWarning


class Notes:
    """What was noticed while images of a set were read: each kind of thing is said once, of the first image.

    Attributes:
        said: The kinds, each with its sentence.
    """

    def __init__(self) -> None:
        self.said: dict[str, str] = {}

    def say(self, kind: str, text: str) -> None:
        """Warn of it (`DataWarning`), unless something of the kind was said before; later, where that is asked for."""
        kept = _KEPT.get()
        if kept is not None:
            kept.append(Note(self, kind, text))
        elif self.said.setdefault(kind, text) is text:
            warnings.warn(text, DataWarning, stacklevel=3)


class Note(NamedTuple):
    """Something to say."""

    notes: Notes
    kind: str
    text: str

    def say(self) -> None:
        """Say it now."""
        self.notes.say(self.kind, self.text)


_KEPT: ContextVar[list[Note] | None] = ContextVar("kept", default=None)


@contextmanager
def keeping() -> Iterator[list[Note]]:
    """What is said inside is kept back: threads read images in any order, and it is to be said in theirs."""
    kept: list[Note] = []
    token = _KEPT.set(kept)
    try:
        yield kept
    finally:
        _KEPT.reset(token)


@dataclass(frozen=True)
class Reading:
    """How the files of a set are read.

    Attributes:
        white: The value that is white in files of more than 8 bits; None: what the file says, else the largest that
            fits.
        max_pixels: The most pixels that an image may have; None: as Pillow has it, about 179 million.
        notes: What was said of the set.

    Raises:
        ArgumentError: One of the numbers is not positive.
    """

    white: float | int | None = None
    max_pixels: int | None = None
    notes: Notes = field(default_factory=Notes, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.white is not None and not (math.isfinite(self.white) and self.white > 0):
            raise ArgumentError(
                f"White cannot be {self.white}.", cure="give the largest value, such as 4095 of 12 bits"
            )
        if self.max_pixels is not None and self.max_pixels < 1:
            raise ArgumentError(f"Images cannot have {self.max_pixels} pixels.", cure="use `max_pixels` of 1 or more")

    @property
    def options(self) -> dict[str, float | int]:
        """Those that were given, as keywords of `open_images`."""
        known = {"white": self.white, "max_pixels": self.max_pixels}
        return {name: value for name, value in known.items() if value is not None}

    def as_options(self) -> list[str]:
        """The same as words of a command line."""
        return [word for name, value in self.options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
