"""A classifier: what tells classes by a representation. The model's own, the words of a text space, or a linear probe;
all of them read the sum of a model's components, as it is or in a text space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from timm.data import ImageNetInfo
from torch import Tensor
from torch.nn.functional import normalize

from unweave.alignment import Aligner, Space, aligned
from unweave.errors import ArgumentError, DataError, ModelError
from unweave.models import Model, opened
from unweave.pocket import shelf
from unweave.text import TextSpace
from unweave.text.phrases import spoken
from unweave.view import View

By = Literal["model", "zero-shot", "probe"]

_IMAGENET = {1000: "imagenet-1k", 21841: "imagenet-22k", 21843: "imagenet-21k-goog", 11821: "imagenet-12k"}


@dataclass(frozen=True)
class Classification:
    """How classes are told.

    Attributes:
        by: The `model`'s own classifier, the words of a text space (`zero-shot`), or a linear `probe` that is fitted.
        label: The field that names the class of an image.
        space: What brings components into a text space (see `unweave.alignment.Space`); needed for words.
        regularisation: The inverse strength of the probe's penalty, scikit-learn's `C`.
        phrases: What each class is called in words; if not given, its value of the field, spoken.

    Raises:
        ArgumentError: There is no such way, or the regularisation is not positive.
    """

    by: By = "model"
    label: str = "label"
    space: Space = None
    regularisation: float = 0.1
    phrases: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.by not in get_args(By):
            raise ArgumentError(f"Nothing tells classes by {self.by!r}.", cure=f"use {', '.join(get_args(By))}")
        if not self.regularisation > 0:
            raise ArgumentError(f"regularisation must be above 0, got {self.regularisation}.", cure="use 0.1")

    def words(self, view: View) -> tuple[View, TextSpace]:
        """A view in the text space, and the space.

        Raises:
            ArgumentError: Nothing leads to a text space.
        """
        return aligned(view, self.space)

    def fitted(self, view: View) -> Classifier:
        """The classifier, a probe of which is fitted to these images.

        Raises:
            ModelError: The model has no classifier.
            ArgumentError: Nothing leads to a text space.
            DataError: The field is missing, or has fewer than two classes.
        """
        if self.by == "model":
            return model_classifier(view)
        if self.by == "probe":
            return probe(view, self.label, regularisation=self.regularisation)
        in_words, space = self.words(view)
        values = sorted({str(value) for value in view.source.field(self.label) if value is not None})
        phrases = self.phrases or {value: (spoken(value),) for value in values}
        assert isinstance(in_words.aligner, Aligner)
        return zero_shot(space, phrases, in_words.aligner)


@dataclass(frozen=True, eq=False)
class Classifier:
    """Classes from a representation.

    Attributes:
        by: `model`, `zero-shot` or `probe`.
        called: For each class all names that it goes by, the first of which it is shown with.
        logits: `[image, dim]` to `[image, class]`.
        aligner: What takes components to the space that `logits` reads; None for the model's own.
    """

    by: By
    called: tuple[tuple[str, ...], ...]
    logits: Callable[[Tensor], Tensor]
    aligner: Aligner | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return tuple(names[0] for names in self.called)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {_plain(name): place for place, names in reversed([*enumerate(self.called)]) for name in names}

    def seen(self, view: View) -> View:
        """Contributions in the space that the classifier reads."""
        if self.aligner is None:
            return view
        return view.level(self.aligner.identity["level"]).through(self.aligner)

    def codes(self, view: View, label: str) -> Int[np.ndarray, " image"]:
        """The classes of images, from what a field says of them: a name, or a number; -1 where it says nothing.

        Raises:
            DataError: There is no such field, or a value is none of the classes.
        """
        codes = np.full(len(view), -1, np.int64)
        for row, value in enumerate(view.field(label)):
            if value is None:
                continue
            code = value if isinstance(value, int) else self._places.get(_plain(str(value)), -1)
            if not 0 <= code < len(self.called):
                raise DataError(
                    f"{value!r} is none of the {len(self.called)} classes ({', '.join(self.classes[:4])}, ...).",
                    where=f"{view.source}, field `{label}`",
                    cure="name the field that has the classes, or use another classifier",
                )
            codes[row] = code
        return codes

    def predicted(self, sums: Float[Tensor, "image dim"]) -> Int[np.ndarray, " image"]:
        """The class of each image, from the sum of its components in the space that is read."""
        with torch.inference_mode():
            return self.logits(sums).argmax(1).numpy()


def model_of(view: View, model: Model | None = None) -> Model:
    """The model that contributions are of.

    Args:
        view: The contributions.
        model: The model, where they do not know how it is loaded.

    Raises:
        ModelError: It cannot be loaded, or has other weights than the contributions were made with.
    """
    origin = view.origin
    if model is None and origin is None:
        raise ModelError(
            "The contributions do not say of which model they are.", where=str(view.source), cure="give the model"
        )
    assert model is not None or origin is not None
    loaded = model if model is not None else opened(origin.loading or origin.model)  # type: ignore[union-attr]
    if origin is not None and loaded.weights_hash != origin.weights_hash:
        raise ModelError(
            f"The weights of {loaded.id} are not those that the contributions were made with.",
            where=str(view.source),
            cure="give the model with its old weights, or extract again",
        )
    return loaded


def model_classifier(view: View, *, model: Model | None = None, classes: Sequence[str] | None = None) -> Classifier:
    """The model's own classifier.

    Args:
        view: Contributions of the model.
        model: The model, where the contributions do not know how it is loaded.
        classes: The names of the classes, where they are not known (ImageNet's, those of transformers and of the pocket
            zoo are).

    Raises:
        ModelError: The model has no classifier.
        ArgumentError: The names are not as many as its classes.
    """
    loaded = model_of(view, model)
    module = loaded.classifier
    if module is None:
        raise ModelError(
            "The model has no classifier.", where=loaded.id, cure="tell classes by words (zero-shot), or by a probe"
        )
    kind = next((parameter.dtype for parameter in module.parameters()), torch.float32)

    def logits(sums: Tensor) -> Tensor:
        return module(sums.to(loaded.device, kind)).float().cpu()

    with torch.inference_mode():
        count = int(logits(torch.zeros(1, view.source.dim)).shape[1])
    names = tuple((name,) for name in classes) if classes else class_names(loaded, count)
    if len(names) != count:
        raise ArgumentError(
            f"{len(names)} names are given for {count} classes.", where=loaded.id, cure="give one for each"
        )
    return Classifier("model", names, logits)


def zero_shot(space: TextSpace, classes: Mapping[str, Sequence[str]], aligner: Aligner) -> Classifier:
    """The class whose phrases are nearest in a text space.

    Args:
        space: The text space.
        classes: Names, each with what it is called in words; their directions are averaged.
        aligner: What takes components there.
    """
    directions = torch.stack([normalize(space.encode(list(words)).mean(0), dim=0) for words in classes.values()])
    names = tuple((name,) for name in classes)
    return Classifier("zero-shot", names, lambda sums: normalize(sums, dim=-1) @ directions.T, aligner)


def probe(view: View, label: str, *, regularisation: float = 0.1) -> Classifier:
    """A linear classifier, fitted to the representations of images (logistic regression on standardised dimensions).

    Args:
        view: The images, and their representations in the model's own space.
        label: The field that names the class; images without a value are left out.
        regularisation: scikit-learn's `C`: the smaller, the smaller the weights.

    Raises:
        DataError: There are fewer than two classes.
    """
    values = view.field(label)
    rows = [row for row, value in enumerate(values) if value is not None]
    names = sorted({str(values[row]) for row in rows})
    if len(names) < 2:
        raise DataError(
            f"A probe has to tell two classes at least; the field {label!r} has {len(names)} in these images.",
            where=str(view.source),
            cure="choose more images, or another field",
        )
    codes = np.array([names.index(str(values[row])) for row in rows])
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=regularisation, max_iter=1000))
    pipeline.fit(view.through(None).rows(rows).representation.numpy(), codes)
    scaler, regression = pipeline[0], pipeline[1]
    weight = regression.coef_ / scaler.scale_
    bias = regression.intercept_ - (regression.coef_ * scaler.mean_ / scaler.scale_).sum(1)
    if len(names) == 2:  # a single row tells the second class from the first
        weight, bias = np.concatenate([-weight, weight]), np.concatenate([-bias, bias])
    matrix, shift = torch.from_numpy(weight).float(), torch.from_numpy(bias).float()
    return Classifier("probe", tuple((name,) for name in names), lambda sums: sums @ matrix.T + shift)


def class_names(model: Model, count: int) -> tuple[tuple[str, ...], ...]:
    """What classes are called, as far as that is known; else by their numbers."""
    labels = getattr(getattr(model.module, "config", None), "id2label", None) or {}
    if model.id.startswith("pocket/"):
        return tuple((name,) for name in shelf.card(model.id.removeprefix("pocket/"))["names"])
    if len(labels) == count and not str(labels.get(0, "LABEL_")).startswith("LABEL_"):
        return tuple(tuple(name.strip() for name in labels[place].split(",")) for place in range(count))
    if count in _IMAGENET:
        info = ImageNetInfo(_IMAGENET[count])
        described = (info.index_to_description(place).split(",") for place in range(count))
        return tuple(
            (*(name.strip() for name in words), info.index_to_label_name(place))
            for place, words in enumerate(described)
        )
    return tuple((str(place),) for place in range(count))


def _plain(name: str) -> str:
    return name.replace("_", " ").casefold().strip()
