"""Text towers of OpenCLIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unweave.errors import ModelError
from unweave.hub import fetching
from unweave.models import Model
from unweave.models.open_clip import split_name
from unweave.models.weights import fingerprint
from unweave.text.phrases import TEMPLATES
from unweave.text.space import Match, TextSpace


@dataclass(frozen=True, eq=False)
class Tower:
    """The text tower of a module of OpenCLIP, and its tokenizer."""

    module: Any
    tokenizer: Any

    @property
    def context(self) -> int:
        """The most tokens that a text may have."""
        return int(self.module.context_length)

    def tokens(self, text: str) -> int:
        """How many tokens a text has."""
        if hasattr(self.tokenizer, "encode"):
            return len(self.tokenizer.encode(text)) + 2
        cleaned = self.tokenizer.clean_fn(text)
        return len(self.tokenizer.tokenizer(cleaned)["input_ids"])

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """The embeddings of texts."""
        device = next(self.module.parameters()).device
        return self.module.encode_text(self.tokenizer(list(texts), context_length=self.context).to(device))


def load(id: str, images: Model, options: dict[str, Any]) -> TextSpace:
    """The space of an OpenCLIP model, whose two towers are one module.

    Raises:
        ModelError: The module has no text tower.
        ModelError: Its tokenizer cannot be fetched.
    """
    import open_clip

    module: Any = images.module
    if not hasattr(module, "encode_text") or not hasattr(module, "context_length"):
        raise ModelError("The model has no text tower.", where=id, cure="use one of OpenCLIP's CLIP or SigLIP models")
    name, _ = split_name(id.removeprefix("open_clip/"))
    with fetching(id):
        tokenizer = open_clip.get_tokenizer(name)
    bias = getattr(module, "logit_bias", None)
    match = Match(
        float(module.logit_scale.detach().exp()), float(bias.detach()) if bias is not None else 0.0, bias is not None
    )
    return TextSpace(id, images, Tower(module, tokenizer), fingerprint(module), TEMPLATES, match)
