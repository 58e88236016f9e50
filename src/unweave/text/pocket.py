"""The text tower of the pocket zoo's CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unweave.errors import ModelError
from unweave.loading import Loading
from unweave.models import Model
from unweave.models.weights import fingerprint
from unweave.pocket.captions import TEMPLATES, alone
from unweave.pocket.encoder import TextEncoder, text
from unweave.pocket.scenes import NAMES
from unweave.text.phrases import shipped
from unweave.text.space import Match, TextSpace


@dataclass(frozen=True, eq=False)
class Tower:
    """The text encoder, which knows the words of the pocket world."""

    encoder: TextEncoder

    @property
    def context(self) -> int:
        """The most words that a text may have."""
        return self.encoder.vocabulary.length

    def tokens(self, text: str) -> int:
        """How many words a text has.

        Raises:
            DataError: One of them is not known.
        """
        self.encoder.vocabulary.encode([text])
        return len(text.split())

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """The embeddings of texts."""
        return self.encoder.encode(texts)


def load(loading: Loading, images: Model, device: str | torch.device) -> TextSpace:
    """The space of `pocket/clip`.

    Raises:
        ModelError: The network has no text tower.
    """
    module: Any = images.module
    if not hasattr(module, "text"):
        raise ModelError("The model has no text tower.", where=loading.id, cure="use pocket/clip")
    match = Match(float(module.log_scale.detach().exp().clamp(max=100)))
    return TextSpace(
        loading.id,
        images,
        Tower(text(images)),
        fingerprint(module),
        TEMPLATES,
        match,
        features=shipped(features="pocket.toml", birds="pocket-birds.toml"),
        vocabulary=vocabulary,
    )


def vocabulary() -> tuple[str, ...]:
    """What a caption of the pocket world would call each value of each factor, if it named nothing else."""
    return tuple(dict.fromkeys(phrase for name, own in NAMES.items() for value in own for phrase in alone(name, value)))
