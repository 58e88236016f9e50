"""Text towers of transformers: CLIP, SigLIP and whatever else has `get_text_features`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unweave.errors import ModelError
from unweave.hub import fetching
from unweave.models import Model
from unweave.models.checkpoint import load_checkpoint
from unweave.models.hf import reading
from unweave.models.weights import fingerprint, randomise
from unweave.text.phrases import TEMPLATES
from unweave.text.space import Match, TextSpace


@dataclass(frozen=True, eq=False)
class Tower:
    """A module of images and texts, and its tokenizer."""

    module: Any
    tokenizer: Any
    padded: bool

    @property
    def context(self) -> int:
        """The most tokens that a text may have."""
        return int(self.module.config.text_config.max_position_embeddings)

    def tokens(self, text: str) -> int:
        """How many tokens a text has."""
        return len(self.tokenizer(text)["input_ids"])

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """The embeddings of texts."""
        # SigLIP was trained with every text filled up to the full length, and reads its last token.
        padding = {"padding": "max_length", "max_length": self.context} if self.padded else {"padding": True}
        given = self.tokenizer(list(texts), return_tensors="pt", **padding).to(self.module.device)
        found = self.module.get_text_features(**given)
        return found if isinstance(found, Tensor) else found.pooler_output


def load(id: str, images: Model, options: dict[str, Any]) -> TextSpace:
    """The space of a model of transformers; the image tower in `images` has the same weights.

    Raises:
        ModelError: The model has no text tower.
        ModelError: It cannot be fetched.
    """
    import transformers

    name = id.removeprefix("hf/")
    with fetching(id, allowed=not options["random_weights"] or options["checkpoint"] is not None), reading(id):
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        if not hasattr(config, "text_config") or not hasattr(config, "vision_config"):
            raise ModelError("The model has no text tower.", where=id, cure="use a CLIP or SigLIP model")
        if options["random_weights"] or options["checkpoint"] is not None:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(options["seed"])
                module = transformers.AutoModel.from_config(config)
            module = randomise(module.eval(), options["seed"]) if options["random_weights"] else module.eval()
            if options["checkpoint"] is not None:
                load_checkpoint(module, options["checkpoint"])
        else:
            module = transformers.AutoModel.from_pretrained(name).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    module = module.to(options["device"])
    if not hasattr(module, "get_text_features"):
        raise ModelError("The model has no text tower.", where=id, cure="use a CLIP or SigLIP model")
    bias = getattr(module, "logit_bias", None)
    sigmoid = bias is not None
    match = Match(float(module.logit_scale.detach().exp()), float(bias.detach()) if bias is not None else 0.0, sigmoid)
    return TextSpace(id, images, Tower(module, tokenizer, sigmoid), fingerprint(module), TEMPLATES, match)
