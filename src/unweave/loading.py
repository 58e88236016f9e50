"""How a model is loaded: everything that has to be known to have the same weights again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypedDict

from unweave.errors import ArgumentError

LARGEST_SEED, LARGEST_IMAGE = 2**32 - 1, 4096
"""Seeds are what torch, numpy and scikit-learn all take; images have at most so many pixels to the side."""

Pool = Literal["mean", "class"]
"""How one vector is made of tokens or of a map: the mean over all places of the image, or the class token."""


class Rest(TypedDict, total=False):
    """What few models need to be told; see `Loading`."""

    checkpoint_key: str | None
    representation: str | int | None
    pool: Pool | None


@dataclass(frozen=True)
class Loading:
    """A model's id, where its weights come from, and what of it is read. Verbs take it wherever they take an id.

    Attributes:
        id: The library, then the library's own name, such as `timm/vit_base_patch16_224.dino`.
        checkpoint: A safetensors or weights-only torch file to take the weights from; kept as a full path.
        random_weights: Seeded random weights; nothing is fetched.
        seed: For the random weights.
        image_size: Height and width in pixels, or one number for both, where not the model's own.
        checkpoint_key: What the weights are called, where the checkpoint has them several times, such as
            `state_dict_ema` or `teacher`.
        representation: Field or index of the output that is the representation, where not the model's own.
        pool: How tokens or a map become one vector: the `mean` over all places of the image, or the `class` token;
            None for the model's own way.
    """

    id: str
    checkpoint: str | os.PathLike[str] | None = None
    random_weights: bool = False
    seed: int = 0
    image_size: int | tuple[int, int] | None = None
    checkpoint_key: str | None = None
    representation: str | int | None = None
    pool: Pool | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ArgumentError: The seed or the image size is out of range, or weights are asked for twice.
        """
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ArgumentError(f"There is no seed {self.seed}.", cure=f"use a number from 0 to {LARGEST_SEED:,}")
        if self.image_size is not None:
            object.__setattr__(self, "image_size", _size(self.image_size))
        if self.checkpoint is not None:
            object.__setattr__(self, "checkpoint", str(Path(os.fspath(self.checkpoint)).resolve()))
        if self.random_weights and self.checkpoint is not None:
            raise ArgumentError(
                "Weights are either random or from a checkpoint.", where=self.id, cure="give one of the two"
            )
        if self.checkpoint_key is not None and self.checkpoint is None:
            raise ArgumentError(
                f"There is no checkpoint to look for {self.checkpoint_key!r} in.",
                where=self.id,
                cure="give `checkpoint` as well",
            )
        if self.pool not in (None, "mean", "class"):
            raise ArgumentError(f"There is no pooling {self.pool!r}.", cure='use "mean" or "class"')

    @property
    def options(self) -> dict[str, Any]:
        """What differs from the library's own weights, size and representation, by the names of the attributes."""
        given = {field.name: getattr(self, field.name) for field in fields(self)[1:] if field.name != "seed"}
        given = {name: value for name, value in given.items() if value is not None and value is not False}
        return given | ({"seed": self.seed} if self.random_weights else {})

    def as_code(self) -> str:
        """The Python that loads the model."""
        words = ", ".join([repr(self.id), *(f"{name}={value!r}" for name, value in self.options.items())])
        return f"unweave.load_model({words})"

    def as_options(self, name: str) -> list[str]:
        """The words of a command line that load it."""
        words = [self.id]
        for option, value in self.options.items():
            word = "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [f"--{option.replace('_', '-')}", *([] if value is True else [word])]
        return words


def _size(given: int | Sequence[int]) -> int | tuple[int, int]:
    """Height and width, or one number where they are the same."""
    lengths = [given, given] if isinstance(given, int) else list(given)
    if len(lengths) != 2 or not all(type(length) is int for length in lengths):
        raise ArgumentError(
            f"{given!r} is no image size.", cure="give one number of pixels, or the height and the width: (224, 448)"
        )
    if not all(1 <= length <= LARGEST_IMAGE for length in lengths):
        raise ArgumentError(
            f"Images cannot be {' x '.join(map(str, dict.fromkeys(lengths)))} pixels.",
            cure=f"use an image size from 1 to {LARGEST_IMAGE:,}",
        )
    height, width = lengths
    return height if height == width else (height, width)
