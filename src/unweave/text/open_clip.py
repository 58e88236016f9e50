"""Text towers of OpenCLIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unweave.errors import ModelError
from unweave.hub import fetching
from unweave.loading import Loading
from unweave.models import Model
from unweave.models.open_clip import split_name
from unweave.models.readout import first_line
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
        """The most tokens that a text may have: as the tokenizer says, for a tower of transformers reads many more than
        it was trained with.
        """
        return int(self.tokenizer.context_length)

    def tokens(self, text: str) -> int:
        """How many tokens a text has."""
        if hasattr(self.tokenizer, "encode"):
            return len(self.tokenizer.encode(text)) + 2
        cleaned = self.tokenizer.clean_fn(text)
        added = getattr(self.tokenizer, "tokenizer_mode", "") == "clips"  # a class token behind the padding
        return len(self.tokenizer.tokenizer(cleaned)["input_ids"]) + added

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """The embeddings of texts."""
        device = next(self.module.parameters()).device
        return self.module.encode_text(self.tokenizer(list(texts)).to(device))


def load(loading: Loading, images: Model, device: str | torch.device) -> TextSpace:
    """The space of an OpenCLIP model, whose two towers are one module.

    Raises:
        ModelError: The module has no text tower.
        ModelError: Its tokenizer cannot be fetched, or is of another model.
    """
    module: Any = images.module
    if not hasattr(module, "encode_text"):
        raise ModelError(
            "The model has no text tower.", where=loading.id, cure="use one of OpenCLIP's CLIP or SigLIP models"
        )
    tokenizer = _tokenizer(loading.id)
    bias = getattr(module, "logit_bias", None)
    match = Match(
        float(module.logit_scale.detach().exp()), float(bias.detach()) if bias is not None else 0.0, bias is not None
    )
    return TextSpace(loading.id, images, Tower(module, tokenizer), fingerprint(module), TEMPLATES, match)


def _tokenizer(id: str) -> Any:
    """The tokenizer that the configuration of a model names.

    Raises:
        ModelError: It cannot be loaded, or its vocabulary is missing.
    """
    import open_clip

    name = split_name(id.removeprefix("open_clip/"))[0]
    where = f"the tokenizer of {id}"
    cure = (
        "go online once so that it is cached; or put the model and the files of its tokenizer into one folder, "
        "`open_clip/local-dir:FOLDER`"
    )
    with fetching(id):
        text = (open_clip.get_model_config(name) or {}).get("text_cfg", {})
    asked = text.get("hf_tokenizer_name")
    try:
        with fetching(where, cure=cure):
            tokenizer: Any = open_clip.get_tokenizer(name)
    except Exception as error:
        reason = error.what if isinstance(error, ModelError) else f"{type(error).__name__}: {first_line(error)}"
        named = f" {asked}" if asked else ""
        raise ModelError(f"The tokenizer{named} cannot be loaded. {reason}", where=where, cure=cure) from error
    first, second = tokenizer(["a photo of a dog", "red stripes"]).tolist()
    if set(first) == set(second):  # transformers makes an empty tokenizer where there are no files of one
        raise ModelError("The tokenizer tells no texts apart: its vocabulary is missing.", where=where, cure=cure)
    return tokenizer
