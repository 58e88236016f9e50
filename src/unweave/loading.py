"""How a model is loaded: everything that has to be known to have the same weights again."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path

from unweave.errors import ArgumentError

LARGEST_SEED, LARGEST_IMAGE = 2**32 - 1, 4096
"""Seeds are what torch, numpy and scikit-learn all take; images are squares of at most so many pixels to the side."""


@dataclass(frozen=True)
class Loading:
    """A model's id, and where its weights come from. Verbs take it wherever they take an id.

    Attributes:
        id: The library, then the library's own name, such as `timm/vit_base_patch16_224.dino`.
        checkpoint: A safetensors or weights-only torch file to take the weights from; kept as a full path.
        random_weights: Seeded random weights; nothing is fetched.
        seed: For the random weights.
        image_size: Height and width in pixels, where not the model's own.
    """

    id: str
    checkpoint: str | os.PathLike[str] | None = None
    random_weights: bool = False
    seed: int = 0
    image_size: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ArgumentError: The seed or the image size is out of range, or weights are asked for twice.
        """
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ArgumentError(f"There is no seed {self.seed}.", cure=f"use a number from 0 to {LARGEST_SEED:,}")
        if self.image_size is not None and not 1 <= self.image_size <= LARGEST_IMAGE:
            raise ArgumentError(
                f"Images cannot be {self.image_size} pixels wide.",
                cure=f"use an image size from 1 to {LARGEST_IMAGE:,}",
            )
        if self.checkpoint is not None:
            object.__setattr__(self, "checkpoint", str(Path(os.fspath(self.checkpoint)).resolve()))
        if self.random_weights and self.checkpoint is not None:
            raise ArgumentError(
                "Weights are either random or from a checkpoint.", where=self.id, cure="give one of the two"
            )

    @property
    def options(self) -> dict[str, str | int | bool]:
        """What differs from the library's own weights at the model's own size, as keywords of `load_model`."""
        given = {field.name: getattr(self, field.name) for field in fields(self)[1:]}
        return {name: value for name, value in given.items() if value not in (None, False) and name != "seed"} | (
            {"seed": self.seed} if self.random_weights else {}
        )

    def as_code(self) -> str:
        """The Python that loads the model."""
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"unweave.load_model({self.id!r}{options})"

    def as_options(self, name: str) -> list[str]:
        """The words of a command line that load it."""
        words = [self.id]
        for option, value in self.options.items():
            words += [f"--{option.replace('_', '-')}", *([] if value is True else [str(value)])]
        return words
