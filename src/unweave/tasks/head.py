"""A head: what tells classes by a representation. The model's own classifier, the words of a text space, or a linear
probe; all of them read the sum of a model's components, as it is or in a text space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from timm.data import ImageNetInfo
from torch import Tensor
from torch.nn.functional import normalize

import unweave
from unweave.align import Aligned, Aligner
from unweave.errors import ArgumentError, DataError, ModelError
from unweave.models import Model
from unweave.pocket import shelf
from unweave.store import Rows, Store
from unweave.text import TextSpace
from unweave.text.phrases import spoken

HeadKind = Literal["classifier", "zero-shot", "probe"]

_IMAGENET = {1000: "imagenet-1k", 21841: "imagenet-22k", 21843: "imagenet-21k-goog", 11821: "imagenet-12k"}


@dataclass(frozen=True, eq=False)
class Head:
    """Classes from a representation.

    Attributes:
        name: `classifier`, `zero-shot` or `probe`.
        called: For each class all names that it goes by, the first of which it is shown with.
        logits: `[image, dim]` to `[image, class]`.
        aligner: What takes components to the space that `logits` reads; None for the model's own.
    """

    name: str
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

    def codes(self, store: Store, field: str, rows: Rows = None) -> Int[np.ndarray, " image"]:
        """The classes of images, from what a field says of them: a name, or a number; -1 where it says nothing.

        Raises:
            DataError: There is no such field, or a value is none of the classes.
        """
        numbers, known = store.rows(rows), store.field(field)
        found = np.full(len(numbers), -1, np.int64)
        for place, value in enumerate(known[row] for row in numbers):
            if value is None:
                continue
            code = value if isinstance(value, int) else self._places.get(_plain(str(value)), -1)
            if not 0 <= code < len(self.called):
                raise DataError(
                    f"{value!r} is none of the {len(self.called)} classes ({', '.join(self.classes[:4])}, ...).",
                    where=f"{store.place}, field `{field}`",
                    cure="name the field that has the classes, or use another head",
                )
            found[place] = code
        return found

    def predicted(self, sums: Float[Tensor, "image dim"]) -> Int[np.ndarray, " image"]:
        """The class of each image, from the sum of its components in the space that is read."""
        with torch.inference_mode():
            return self.logits(sums).argmax(1).numpy()


def classifier(store: Store, *, model: Model | None = None, classes: Sequence[str] | None = None) -> Head:
    """The model's own classifier.

    Args:
        store: Of the model.
        model: The model, where the store cannot load it.
        classes: Their names, where they are not known (ImageNet's, those of transformers and of the pocket zoo are).

    Raises:
        StoreError: The model has no classifier, or the names are not as many as its classes.
    """
    if store.manifest.classes is None:
        raise ModelError(
            "The model has no classifier.", where=store.manifest.model, cure="use a zero-shot head or a linear probe"
        )
    loaded = model or unweave.load_model(store.manifest.model, **store.manifest.loading)
    store.agree(weights_hash=loaded.weights_hash)
    own = loaded.classifier
    assert own is not None
    names = tuple((name,) for name in classes) if classes else class_names(loaded, store.manifest.classes)
    if len(names) != store.manifest.classes:
        raise ArgumentError(
            f"{len(names)} names are given for {store.manifest.classes} classes.", where=store.manifest.model
        )
    kind = next((parameter.dtype for parameter in own.parameters()), torch.float32)
    return Head("classifier", names, lambda sums: own(sums.to(kind)).float())


def zero_shot(space: TextSpace, classes: Mapping[str, Sequence[str]], aligner: Aligner) -> Head:
    """The class whose phrases are nearest in a text space.

    Args:
        space: The text space.
        classes: Names, each with what it is called in words; their directions are averaged.
        aligner: What takes components there.
    """
    directions = torch.stack([normalize(space.encode(list(own)).mean(0), dim=0) for own in classes.values()])
    names = tuple((name,) for name in classes)
    return Head("zero-shot", names, lambda sums: normalize(sums, dim=-1) @ directions.T, aligner)


def probe(store: Store, field: str, rows: Rows = None, *, softness: float = 0.1) -> Head:
    """A linear head, fitted to the representations of images (logistic regression on standardised dimensions).

    Args:
        store: Which has the representations.
        field: What is known of the images, and is to be told; images without a value are left out.
        rows: Which images.
        softness: scikit-learn's `C`: the smaller, the smaller the weights.

    Raises:
        DataError: There are fewer than two classes.
    """
    numbers = store.rows(rows)
    values = [store.field(field)[row] for row in numbers]
    known = [place for place, value in enumerate(values) if value is not None]
    names = sorted({str(values[place]) for place in known})
    if len(names) < 2:
        raise DataError(
            f"A head has to tell two classes at least; the field {field!r} has {len(names)} in these images.",
            where=str(store.place),
        )
    codes = np.array([names.index(str(values[place])) for place in known])
    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=softness, max_iter=1000))
    fitted.fit(store.representation(numbers[known]).numpy(), codes)
    scaler, own = fitted[0], fitted[1]
    weight, bias = own.coef_ / scaler.scale_, own.intercept_ - (own.coef_ * scaler.mean_ / scaler.scale_).sum(1)
    if len(names) == 2:  # one row tells the second class from the first
        weight, bias = np.concatenate([-weight, weight]), np.concatenate([-bias, bias])
    matrix, shift = torch.from_numpy(weight).float(), torch.from_numpy(bias).float()
    return Head("probe", tuple((name,) for name in names), lambda sums: sums @ matrix.T + shift)


def head_of(
    kind: HeadKind,
    store: Store,
    label: str,
    rows: Rows = None,
    *,
    words: tuple[Aligned, TextSpace] | None = None,
    called: Mapping[str, Sequence[str]] | None = None,
    softness: float = 0.1,
) -> Head:
    """A head of one of the three kinds.

    Args:
        kind: Which.
        store: Of the model.
        label: The field that names the class of an image.
        rows: The images that a probe is fitted to.
        words: The store in a text space, and the space, for a zero-shot head.
        called: What each class is called there; if not given, its value, spoken.
        softness: Of a probe.

    Raises:
        ArgumentError: A zero-shot head has no text space; or see the heads.
    """
    if kind == "classifier":
        return classifier(store)
    if kind == "probe":
        return probe(store, label, rows, softness=softness)
    if words is None:
        raise ArgumentError("A zero-shot head needs a text space.", cure="name an aligner, or the text space of a CLIP")
    seen, space = words
    values = sorted({str(value) for value in store.field(label) if value is not None})
    return zero_shot(space, called or {value: (spoken(value),) for value in values}, seen.aligner)


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
            (*(name.strip() for name in own), info.index_to_label_name(place)) for place, own in enumerate(described)
        )
    return tuple((str(place),) for place in range(count))


def _plain(name: str) -> str:
    return name.replace("_", " ").casefold().strip()
