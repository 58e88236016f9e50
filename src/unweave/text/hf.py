"""Text towers of transformers: CLIP, SigLIP and whatever else has `get_text_features`.

How texts are filled up is the library's own convention, and is asked for rather than looked up: a processor that fills
up by itself says to which length; a tokenizer without an attention mask has its padding read like words, so that every
text has the length that the model was trained with.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from unweave.errors import ModelError
from unweave.hub import fetching
from unweave.loading import Loading
from unweave.models import Model
from unweave.models.checkpoint import load_checkpoint
from unweave.models.hf import is_folder, reading
from unweave.models.weights import fingerprint, randomise
from unweave.text.behaviour import apart, pictured
from unweave.text.phrases import TEMPLATES
from unweave.text.space import Match, TextSpace

_SCALES = frozenset({"logit_scale", "logit_bias", "temperature"})
"""Weights that no vector depends on."""

_UNLIMITED = 10**6
"""What a tokenizer names as its longest text where nobody told it one is more than this."""

_CURE = "use a CLIP or SigLIP model, or give two functions to `TextSpace.from_functions`"


@dataclass(frozen=True, eq=False)
class Tower:
    """A module of images and texts, and its tokenizer.

    Attributes:
        module: The whole model.
        tokenizer: Its tokenizer.
        length: How many tokens every text is filled up to; None where the longest of a batch decides.
    """

    module: Any
    tokenizer: Any
    length: int | None

    @property
    def context(self) -> int | None:
        """The most tokens that a text may have."""
        config = getattr(self.module.config, "text_config", None)
        known = (self.length, getattr(config, "max_position_embeddings", None), self.tokenizer.model_max_length)
        return min((int(most) for most in known if most is not None and 0 < most < _UNLIMITED), default=None)

    def tokens(self, text: str) -> int:
        """How many tokens a text has."""
        return len(self.tokenizer(text)["input_ids"])

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """The embeddings of texts."""
        padding = {"padding": "max_length", "max_length": self.length} if self.length else {"padding": True}
        given = self.tokenizer(list(texts), return_tensors="pt", **padding).to(self.module.device)
        takes = inspect.signature(self.module.get_text_features).parameters
        return _vectors(self.module.get_text_features(**{name: given[name] for name in given if name in takes}))


class Images(nn.Module):
    """The image side of a whole model, as it is compared with texts."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """The embeddings of images."""
        return _vectors(self.model.get_image_features(pixel_values=pixels))  # type: ignore[operator]


def _vectors(found: Any) -> Tensor:
    return found if isinstance(found, Tensor) else found.pooler_output


def load(loading: Loading, images: Model, device: str | torch.device) -> TextSpace:
    """The space of a model of transformers; the image tower in `images` has the same weights.

    Raises:
        ModelError: The model has no text tower, or its weights or tokenizer are missing.
        ModelError: It cannot be fetched.
    """
    import transformers

    name = loading.id.removeprefix("hf/")
    random, checkpoint = loading.random_weights, loading.checkpoint
    with fetching(loading.id, allowed=not random or checkpoint is not None), reading(loading.id):
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        if not hasattr(config, "text_config") or not hasattr(config, "vision_config"):
            raise ModelError("The model has no text tower.", where=loading.id, cure=_CURE)
        if random or checkpoint is not None:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(loading.seed)
                module = transformers.AutoModel.from_config(config)
            module = randomise(module.eval(), loading.seed) if random else module.eval()
            if checkpoint is not None:
                load_checkpoint(module, checkpoint)
        else:
            module, told = transformers.AutoModel.from_pretrained(name, output_loading_info=True)
            _complete(loading.id, module.eval(), set(told["missing_keys"]) - _SCALES)
    module = module.to(device)
    if not hasattr(module, "get_text_features"):
        raise ModelError("The model has no text tower.", where=loading.id, cure=_CURE)
    if random:  # the two were drawn apart
        drawn = images.module.state_dict()
        part = next((part for part in module.modules() if drawn.keys() <= part.state_dict().keys()), None)
        if part is not None:
            part.load_state_dict(drawn, strict=False)
    tower = _tower(loading.id, name, module)
    return TextSpace(
        loading.id, _images(loading.id, images, module), tower, fingerprint(module), TEMPLATES, _match(module)
    )


def _complete(id: str, module: Any, missing: set[str]) -> None:
    if missing:
        raise ModelError(
            f"{len(missing)} weights of {type(module).__name__} are missing, such as {min(missing)}.",
            where=id,
            cure="use a folder that the whole model was saved to, with its text tower",
        )


def _match(module: Any) -> Match:
    bias, scale = getattr(module, "logit_bias", None), getattr(module, "logit_scale", None)
    if scale is None:
        temperature = getattr(module, "temperature", None)
        return Match() if temperature is None else Match(1 / float(temperature.detach()))
    return Match(float(scale.detach().exp()), float(bias.detach()) if bias is not None else 0.0, bias is not None)


def _tower(id: str, name: str, module: Any) -> Tower:
    """The text tower with its tokenizer, and the length of its texts.

    Raises:
        ModelError: There is no tokenizer, or one of another model.
    """
    import transformers

    where = f"the tokenizer of {id}"
    cure = "save it to the same folder (`tokenizer.save_pretrained`), or go online once so that it is cached"
    try:
        with fetching(where, allowed=not is_folder(name), cure=cure), reading(id):
            tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            length = _filled(name, tokenizer)
    except ModelError as error:
        raise ModelError(f"The tokenizer cannot be loaded. {error.what}", where=where, cure=cure) from error
    first, second = (tokenizer(text)["input_ids"] for text in ("a photo of a dog", "red stripes"))
    if set(first) == set(second):  # transformers makes an empty tokenizer where there are no files of one
        raise ModelError("The tokenizer tells no texts apart: its vocabulary is missing.", where=where, cure=cure)
    config = module.config.text_config
    size = getattr(config, "vocab_size", None)
    if size is not None and max(*first, *second) >= size:
        raise ModelError(
            f"The tokenizer has the token {max(*first, *second)}, and the text tower knows {size}.",
            where=where,
            cure="use the tokenizer that the model was trained with",
        )
    if length is None and (hasattr(module, "logit_bias") or "attention_mask" not in tokenizer.model_input_names):
        length = getattr(config, "max_position_embeddings", None)
    return Tower(module, tokenizer, length)


def _filled(name: str, tokenizer: Any) -> int | None:
    """The length that the model's processor fills a short text up to by itself, if it does."""
    import transformers

    try:
        processor = transformers.AutoProcessor.from_pretrained(name, trust_remote_code=False)
        found = len(processor(text=["red"])["input_ids"][0])
    except Exception:
        return None  # there is none, or it takes no texts alone: then the tokenizer's convention holds
    return found if found > len(tokenizer("red")["input_ids"]) else None


def _images(id: str, images: Model, module: Any) -> Model:
    """The image tower as texts are compared with it: many libraries' towers alone lack the projection.

    Raises:
        ModelError: The image side returns no vectors of the width of the texts'.
    """
    whole = Model.from_module(
        Images(module), preprocess=images.preprocess, input_size=images.input_size, id=f"images of {id}"
    )
    example = images.example(2)
    made, wanted = pictured(images, example), pictured(whole, example)
    if made.shape == wanted.shape and apart(wanted, made) < 1e-3:
        return images
    return replace(whole, preprocessing=images.preprocessing)
