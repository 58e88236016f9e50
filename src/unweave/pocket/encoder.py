"""Texts in the space of the zoo's CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unweave.errors import ModelError
from unweave.models import Model, load_model
from unweave.pocket import shelf
from unweave.pocket.networks import Clip, TextTower
from unweave.pocket.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """What turns texts into directions that images are compared with.

    Attributes:
        tower: Numbers of words to embeddings.
        vocabulary: The words that it knows.
    """

    tower: TextTower
    vocabulary: Vocabulary

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Float[Tensor, "text dim"]:
        """The texts' directions, of length one, in the space of the image tower's representation.

        Raises:
            UnweaveError: A text has a word that is not known, or no words, or too many.
        """
        numbers = torch.from_numpy(self.vocabulary.encode(texts)).long()
        return nn.functional.normalize(self.tower(numbers.to(self.tower.position.device)), dim=-1)


def text(model: Model | str = "pocket/clip") -> TextEncoder:
    """The text encoder of a pocket model.

    Args:
        model: The model, or its id.

    Raises:
        ModelError: The model has none.
    """
    model = load_model(model) if isinstance(model, str) else model
    if not isinstance(model.module, Clip):
        raise ModelError("The model has no text encoder.", where=model.id, cure="use pocket/clip")
    words = shelf.card(model.id.removeprefix("pocket/"))["names"]
    return TextEncoder(model.module.text, Vocabulary(tuple(words), model.module.text.length))
