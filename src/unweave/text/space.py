"""A text space: images and texts as directions that can be compared.

space = unweave.text_space("open_clip/ViT-B-16/laion2b_s34b_b88k")
space = unweave.TextSpace.from_functions(encode_texts, encode_images, preprocess)    # or of functions of your own
space.encode(["striped pattern"])        # [text, dim], of length one
space.images                             # the image encoder, a Model with its own preprocessing
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from unweave.errors import ArgumentError, ModelError
from unweave.loading import Loading
from unweave.models import Model, load_model
from unweave.models.preprocessing import Preprocess
from unweave.text import cache
from unweave.text.behaviour import (
    PROBES,
    Behaviour,
    TextFunction,
    answered,
    behaviour_of,
    image_model,
    pictured,
    pixels_of,
)
from unweave.text.phrases import Features, chosen, features, read_phrases, shipped
from unweave.text.vocabulary import vocabulary

GENERAL = shipped(features="features.toml", birds="waterbirds.toml")
"""The features of the paper, by set."""

_FITTING = "use the tokenizer that belongs to the model"

_AT_ONCE = 256
"""Texts that the encoder reads at a time."""


@runtime_checkable
class Encoder(Protocol):
    """The text tower of a model, with its tokenizer."""

    @property
    def context(self) -> int | None:
        """The most tokens that a text may have; None where nothing says so."""

    def tokens(self, text: str) -> int:
        """How many tokens a text has, those that begin and end it included."""

    def embed(self, texts: Sequence[str]) -> Tensor:
        """The embeddings of texts, `[text, dim]`."""


@dataclass(frozen=True)
class Match:
    """How the model was taught to compare: `scale * cosine + bias`, through a softmax or a sigmoid.

    Attributes:
        scale: What cosines are multiplied by.
        bias: What is added; 0 under a softmax, where it would change nothing.
        sigmoid: Whether each pair of image and text is judged alone (SigLIP), or against the others (CLIP).
    """

    scale: float = 1.0
    bias: float = 0.0
    sigmoid: bool = False


@dataclass(frozen=True, eq=False)
class TextSpace:
    """Where images and texts meet.

    Attributes:
        id: What it was loaded as.
        images: The image encoder; its readout gives the embedding of an image, of whatever length.
        encoder: The text tower.
        weights_hash: Of both towers.
        templates: The sentences that a phrase is set into.
        match: How the model was taught to compare.
        loading: How it is loaded again. Of functions, which nothing can load: what they made of a few texts and images,
            by which they are known again. None where neither is known.
        usual: The templates that it has where no others are given.
        features: Gives the features that are shipped for it, or another set of them (`birds`).
        vocabulary: Gives the phrases that are shipped for it.
    """

    id: str
    images: Model
    encoder: Encoder = field(repr=False)
    weights_hash: str
    templates: tuple[str, ...]
    match: Match = Match()
    loading: Loading | Behaviour | None = None
    usual: tuple[str, ...] = field(default=(), repr=False)
    features: Callable[..., Mapping[str, tuple[str, ...]]] = field(default=GENERAL, repr=False)
    vocabulary: Callable[[], tuple[str, ...]] = field(default=vocabulary, repr=False)
    _remembered: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def from_functions(
        cls,
        encode_texts: Callable[[list[str]], Any],
        encode_images: Callable[[Tensor], Any],
        preprocess: Preprocess,
        *,
        id: str = "functions",
        templates: Sequence[str] = ("{}",),
        match: Match = Match(),
        probes: Sequence[str] = PROBES,
    ) -> TextSpace:
        """Take any two functions that make vectors of texts and of images where both can be compared.

        They are called under `torch.no_grad()`, for the `probes` and for three drawn images, and held to what is
        written here. Vectors may have any length and lie on any device.

        Args:
            encode_texts: A list of texts to `[text, dim]`. What is longer than it reads, or has words that it does not
                know, it should refuse with an error of its own.
            encode_images: Pixels `[image, channel, height, width]` to `[image, dim]`. A module is given them on its own
                device, and is decomposed in this very space without an aligner; any other function is given them on
                the CPU, in single precision.
            preprocess: One RGB PIL image to `[channel, height, width]`, of one size for all images.
            id: What to call it.
            templates: Sentences with `{}` that a phrase is set into.
            match: How the model was taught to compare.
            probes: Texts that the functions are known again by, when an aligner is loaded: at least two.

        Raises:
            ArgumentError: There are fewer than two probes.
            ModelError: A function fails, makes no vectors, other ones when it is called again, or vectors that depend
                on what else is in the batch; or the two make vectors of different widths.
            NonFiniteError: A number is NaN or infinite.
        """
        texts = TextFunction(encode_texts, f"`encode_texts` of the text space {id!r}")
        pixels = pixels_of(preprocess, id)
        images = image_model(encode_images, preprocess, pixels, id)
        behaviour = behaviour_of(texts.embed, images, pixels, probes)
        return cls(id, images, texts, behaviour.fingerprint, tuple(templates), match, behaviour)

    @property
    def of_functions(self) -> bool:
        """Whether it was made of functions, so that nothing can load it again."""
        return isinstance(self.loading, Behaviour)

    def known(self) -> dict[str, Any]:
        """What it is loaded or known again by, ready for JSON."""
        if isinstance(self.loading, Loading):
            return {name: getattr(self.loading, name) for name in ("checkpoint", "random_weights", "seed")}
        return {} if self.loading is None else dict(self.loading.as_json())

    def difference(self, behaviour: Behaviour) -> str | None:
        """What it does otherwise than a space of which this is known; None if it is the same one.

        Raises:
            UnweaveError: A text that the other was asked for cannot be encoded here.
        """
        if self.known() == behaviour.as_json():
            return None
        embedded = answered(self.encoder.embed, list(behaviour.texts), self.id)
        images = pictured(self.images, pixels_of(self.images.preprocess, self.id))
        return behaviour.difference(Behaviour.of(behaviour.texts, embedded, images))

    def encode(self, phrases: Sequence[str], templates: Sequence[str] | None = None) -> Float[Tensor, "phrase dim"]:
        """The directions of phrases: the mean of their embeddings in all templates, each of length one, made so again.

        Results are kept on disk by their content (`unweave.text.cache`), so asking twice costs nothing; those of
        functions in memory, as nothing says that they will be the same tomorrow.

        Args:
            phrases: What is looked for; a phrase may come twice.
            templates: Sentences with `{}`; those of the space if not given.

        Raises:
            ArgumentError: A phrase is empty, has a word that the encoder does not know, or is too long for it.
        """
        sentences = tuple(self.templates if templates is None else templates)
        if not sentences:
            raise ArgumentError("There are no templates.", where=self.id, cure='use ("{}",) for the phrases alone')
        if not phrases:
            raise ArgumentError("There are no phrases.", where=self.id, cure="give one at least")
        unique = list(dict.fromkeys(phrases))
        for phrase in unique:
            self._check(phrase, sentences)
        key = hashlib.sha256(json.dumps([self.weights_hash, sentences, unique]).encode()).hexdigest()
        if not self.of_functions:
            directions = cache.kept(key, lambda: self._directions(unique, sentences))
        elif (known := self._remembered.get(key)) is None:
            directions = self._remembered[key] = self._directions(unique, sentences)
        else:
            directions = known
        place = {phrase: row for row, phrase in enumerate(unique)}
        return directions[[place[phrase] for phrase in phrases]]

    def _directions(self, phrases: Sequence[str], templates: Sequence[str]) -> Tensor:
        some, directions = max(1, _AT_ONCE // len(templates)), []
        for start in range(0, len(phrases), some):
            texts = [_set(template, phrase) for phrase in phrases[start : start + some] for template in templates]
            embedded = normalize(answered(self.encoder.embed, texts, self.id, _FITTING), dim=-1)
            directions.append(normalize(embedded.view(-1, len(templates), embedded.shape[-1]).mean(1), dim=-1))
        return torch.cat(directions)

    def _check(self, phrase: str, templates: Sequence[str]) -> None:
        if not phrase.strip():
            raise ArgumentError("A phrase is empty.", where=self.id, cure="leave it out")
        most = self.encoder.context
        for text in (_set(template, phrase) for template in templates):
            if most is not None and (count := self.encoder.tokens(text)) > most:
                raise ArgumentError(
                    f"The text has {count} tokens, and the encoder reads {most}.",
                    where=repr(text),
                    cure="say it in fewer words",
                )

    def as_code(self) -> str:
        """The Python that loads it again; a name to fill in for a space of functions."""
        if self.of_functions:
            return "space"
        options = dict(self.loading.options) if isinstance(self.loading, Loading) else {}
        if self.usual and self.templates != self.usual:
            options["templates"] = list(self.templates)
        return f"unweave.text_space({self.id!r}{''.join(f', {name}={value!r}' for name, value in options.items())})"

    def as_options(self, name: str) -> list[str]:
        """The words of a command line that name it; a word to fill in for a space of functions."""
        if not isinstance(self.loading, Loading):
            return ["--space", "SPACE"]
        if self.loading.seed or (self.usual and self.templates != self.usual):
            raise ArgumentError("No option says the seed, or the single templates, of a text space.")
        checkpoint = ["--space-checkpoint", str(self.loading.checkpoint)] if self.loading.checkpoint else []
        random = ["--space-random-weights"] if self.loading.random_weights else []
        return ["--space", self.id, *checkpoint, *random]

    def features_of(self, asked: Features = None) -> dict[str, tuple[str, ...]]:
        """Features by name, each with its phrases.

        Args:
            asked: The features that are asked for (see `unweave.text.phrases.Features`).

        Raises:
            ArgumentError: None is asked for.
            DataError: A file cannot be read.
        """
        if asked is None:
            return dict(self.features())
        if isinstance(asked, (str, PathLike)):
            return dict(features(asked))
        if not isinstance(asked, Mapping):
            known = self.features()
            asked = {name: known.get(name, (name,)) for name in asked}
        if not asked:
            raise ArgumentError("There are no features to score.", cure="name one at least")
        silent = next((name for name, phrases in asked.items() if not phrases), None)
        if silent is not None:
            raise ArgumentError(f"There are no phrases for the feature {silent!r}.", cure="give one at least")
        return {name: tuple(phrases) for name, phrases in asked.items()}

    def chosen_features(
        self, among: Features, names: Sequence[str] = (), phrases: Sequence[str] = (), *, each: bool = False
    ) -> dict[str, tuple[str, ...]]:
        """Some features, and phrases that stand alone.

        Args:
            among: The features to choose from (see `features_of`).
            names: The features that are asked for; all if neither these nor phrases are named.
            phrases: Phrases to be features by themselves.
            each: Whether every phrase of the chosen features is one by itself, too.

        Raises:
            ArgumentError: There is no such feature, or a phrase has the name of a feature.
            DataError: A file cannot be read.
        """
        known = self.features_of(among)
        return chosen({} if phrases and not names else known, names, phrases, each=each)

    def vocabulary_of(self, asked: Sequence[str] | str | PathLike[str] | None = None) -> list[str]:
        """Phrases that components can be named by, each once.

        Args:
            asked: The phrases, a text file with one on each line, or None for those that are shipped for the space.

        Raises:
            DataError: The file cannot be read.
        """
        if asked is None:
            return list(dict.fromkeys(self.vocabulary()))
        return list(dict.fromkeys(read_phrases(asked) if isinstance(asked, (str, PathLike)) else asked))

    def logits(
        self, images: Float[Tensor, "image dim"], texts: Float[Tensor, "text dim"]
    ) -> Float[Tensor, "image text"]:
        """What the model itself would say: `scale * cosine + bias`, before its softmax or sigmoid."""
        return self.match.scale * normalize(images, dim=-1) @ texts.T + self.match.bias

    def __repr__(self) -> str:
        """One line."""
        read = "functions" if self.of_functions else f"context {self.encoder.context}"
        return f"TextSpace({self.id!r}, {len(self.templates)} templates, {read})"


def _set(template: str, phrase: str) -> str:
    return template.replace("{}", phrase)


def text_space(
    id: str,
    *,
    checkpoint: str | Path | None = None,
    random_weights: bool = False,
    seed: int = 0,
    device: str | torch.device = "cpu",
    templates: Sequence[str] | None = None,
) -> TextSpace:
    """Load a model of images and texts.

    Args:
        id: `open_clip/ARCH/TAG`, `open_clip/hf-hub:ORG/NAME`, `open_clip/local-dir:FOLDER`; `hf/ORG/NAME`, `hf/FOLDER`
            (CLIP, SigLIP and their like); `pocket/clip`. For anything else see `TextSpace.from_functions`.
        checkpoint: A file of weights for both towers.
        random_weights: Seeded random weights; nothing is fetched but the tokenizer, where that is not part of the
            library.
        seed: For the random weights.
        device: Where it computes.
        templates: Sentences with `{}`; if not given, `TEMPLATES`, or the pocket world's own.

    Raises:
        ModelError: The model has no text encoder.
        ModelError: It cannot be loaded (see `unweave.load_model`).
    """
    library = id.partition("/")[0]
    if library not in ("open_clip", "hf", "pocket"):
        raise ModelError(
            "The model has no text encoder.",
            where=id,
            cure="use `open_clip/ARCH/TAG`, `hf/ORG/NAME` or `pocket/clip`; or give two functions to "
            "`TextSpace.from_functions`",
        )
    loading = Loading(id, checkpoint, random_weights, seed)
    images = load_model(loading, device=device)
    space: TextSpace = import_module(f"unweave.text.{library}").load(loading, images, device)
    usual = space.templates
    return replace(space, loading=loading, usual=usual, templates=usual if templates is None else tuple(templates))
