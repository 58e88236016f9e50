"""Functions of anybody's making, held to what a text space needs, and told from others by what they do.

A text space is two functions: texts to vectors, pixels to vectors. Nothing is known of their insides, so they are asked
for vectors of a few texts and of three drawn images: once more, one at a time, and together. What they answered is
remembered in a few numbers (`Behaviour`), by which the same functions are known again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from unweave.errors import ArgumentError, ModelError, NonFiniteError, UnweaveError
from unweave.models import Model
from unweave.models.preprocessing import Preprocess

PROBES = ("a photo of a dog", "red", "a harbour at night, seen from above", "stripes on a grey wall")
"""Texts that functions are asked for."""

_REPEATED = 1e-3
"""How far two answers to one question may differ, as a share of their length."""

_ALONE = 1e-2
"""How far the vector of a text or image may depend on what else is in the batch."""

_SAME = 0.03
"""How far the vectors of two text spaces that are the same may differ: what numbers of less precision change."""

_NUMBERS = 16
"""How many numbers are remembered of each vector."""

_EVAL = "put the module into evaluation mode (`module.eval()`), and leave chance out of the preprocessing"


@dataclass(frozen=True)
class Behaviour:
    """What a text space makes of some texts and of the drawn images, in a few numbers.

    Attributes:
        texts: The texts.
        dim: The width of the space.
        sketch: For each text, then each image: its vector, of length one, along fixed random directions.
    """

    texts: tuple[str, ...]
    dim: int
    sketch: tuple[tuple[float, ...], ...]

    @classmethod
    def of(
        cls, texts: Sequence[str], embedded: Float[Tensor, "text dim"], pictured: Float[Tensor, "image dim"]
    ) -> Behaviour:
        """Remember the vectors of texts, and of the drawn images."""
        vectors = normalize(torch.cat([embedded, pictured]).double(), dim=-1).numpy()
        # RandomState draws the same numbers in every version of numpy
        directions = np.random.RandomState(0).standard_normal((vectors.shape[1], _NUMBERS)) / _NUMBERS**0.5
        rows = np.round(vectors @ directions, 5).tolist()
        return cls(tuple(texts), vectors.shape[1], tuple(tuple(row) for row in rows))

    def difference(self, other: Behaviour) -> str | None:
        """What another space, which was asked for the same texts, does otherwise; None if it is the same one."""
        if self.dim != other.dim:
            return f"it has {other.dim} dimensions instead of {self.dim}"
        mine, others = np.array(self.sketch), np.array(other.sketch)
        if mine.shape != others.shape:
            return "it was asked for something else"
        apart = np.linalg.norm(mine - others, axis=1)
        worst = int(apart.argmax())
        if apart[worst] <= _SAME:
            return None
        what = f"the text {self.texts[worst]!r}" if worst < len(self.texts) else "one of the drawn images"
        return f"its vector of {what} lies elsewhere, at a distance of {apart[worst]:.2f} with both of length one"

    def as_json(self) -> dict[str, Any]:
        """The same, ready for JSON."""
        return {"texts": list(self.texts), "dim": self.dim, "sketch": [list(row) for row in self.sketch]}

    @property
    def fingerprint(self) -> str:
        """A hash of the numbers; spaces that are the same up to rounding may have different ones."""
        return hashlib.sha256(json.dumps(self.as_json()).encode()).hexdigest()


def drawn_images() -> tuple[Image.Image, ...]:
    """Three images of coloured squares, always the same: one that lies, one that stands, a square one."""
    colours = np.random.RandomState(0).randint(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    shapes = ((6, 8), (8, 6), (8, 8))
    return tuple(
        Image.fromarray(colours[number, :height, :width].repeat(40, 0).repeat(40, 1))
        for number, (height, width) in enumerate(shapes)
    )


def vectors(made: Any, count: int, where: str) -> Float[Tensor, "row dim"]:
    """What a function returned, on the CPU and in single precision, if it is that many vectors with a direction.

    Args:
        made: What it returned.
        count: How many texts or images it was given.
        where: For the message.

    Raises:
        ModelError: It is no tensor `[text or image, dim]`, or a vector is zero.
        NonFiniteError: A number is NaN or infinite.
    """
    made = torch.from_numpy(made) if isinstance(made, np.ndarray) else made
    if not isinstance(made, Tensor):
        cure = "return one tensor [text or image, dim]"
        if hasattr(made, "pooler_output"):
            cure += ", such as `.pooler_output` of what the model returns"
        raise ModelError(f"A {type(made).__name__} came back instead of vectors.", where=where, cure=cure)
    if made.ndim != 2 or len(made) != count or not made.shape[1]:
        raise ModelError(
            f"{tuple(made.shape)} came back for {count} texts or images.",
            where=where,
            cure=f"return one vector for each, [{count}, dim], in the order in which they were given",
        )
    if not made.is_floating_point():
        raise ModelError(f"Numbers of {made.dtype} came back.", where=where, cure="return vectors, not token numbers")
    answers = made.detach().float().cpu()
    if not bool(torch.isfinite(answers).all()):
        raise NonFiniteError(
            f"{int((~torch.isfinite(answers)).any(1).sum())} of {count} vectors have entries that are NaN or infinite.",
            where=where,
            cure="compute in float32, and do not divide by the length of a vector that is zero",
        )
    if bool((answers == 0).all(1).any()):
        raise ModelError(
            "A vector is zero, so that it has no direction.", where=where, cure="raise an error for what is not known"
        )
    return answers


def answered(
    function: Callable[[Any], Any],
    given: Any,
    where: str,
    cure: str = "it is given a list of texts, or pixels [image, channel, height, width]",
) -> Float[Tensor, "row dim"]:
    """The vectors that a function makes of texts or pixels.

    Raises:
        ModelError: It fails, or returns something else (see `vectors`).
    """
    try:
        with torch.no_grad():
            made = function(given)
    except (UnweaveError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = (str(error).strip() or "no message").splitlines()[0]
        what = f"{len(given)} texts" if isinstance(given, list) else f"pixels {tuple(given.shape)}"
        raise ModelError(
            f"The function failed on {what}: {type(error).__name__}: {reason}",
            where=where,
            cure=cure,
        ) from error
    return vectors(made, len(given), where)


@dataclass(frozen=True, eq=False)
class TextFunction:
    """A function from texts to vectors, as the text tower of a space."""

    function: Callable[[list[str]], Any]
    where: str

    context = None
    """Whether a text is too long is for the function to say."""

    def tokens(self, text: str) -> int:
        """The words of a text."""
        return len(text.split())

    def embed(self, texts: Sequence[str]) -> Float[Tensor, "text dim"]:
        """The vectors of texts."""
        return answered(self.function, list(texts), self.where)


class Whole(nn.Module):
    """A module that is read at its end: what it says of a classifier is not asked."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, pixels: Float[Tensor, "image channel height width"]) -> Any:
        """What the module returns."""
        return self.module(pixels)


class ImageFunction(nn.Module):
    """A function from pixels to vectors, as a module without weights."""

    def __init__(self, function: Callable[[Tensor], Any], where: str) -> None:
        super().__init__()
        self.function, self.where = function, where

    def forward(self, pixels: Float[Tensor, "image channel height width"]) -> Float[Tensor, "image dim"]:
        """The vectors of images."""
        return answered(self.function, pixels, self.where)


def image_model(function: Callable[[Tensor], Any], preprocess: Preprocess, pixels: Tensor, id: str) -> Model:
    """A function from pixels to vectors as a `Model`; a module can be decomposed, any other function cannot.

    Raises:
        ModelError: It fails on the pixels, or makes no vectors of them.
    """
    size = (int(pixels.shape[1]), int(pixels.shape[2]), int(pixels.shape[3]))
    if isinstance(function, nn.Module):
        # A module that names its classifier is read in front of it; here its output is what texts are compared with.
        plain, whole = (
            Model.from_module(module, preprocess=preprocess, input_size=size, id=id)
            for module in (function, Whole(function))
        )
        made, wanted = pictured(plain, pixels), pictured(whole, pixels)
        return plain if made.shape == wanted.shape and apart(made, wanted) <= _REPEATED else whole
    module = ImageFunction(function, f"`encode_images` of the text space {id!r}")
    described = {"custom": getattr(preprocess, "__qualname__", type(preprocess).__qualname__)}
    return Model(id, module, module, None, preprocess, described, size)


@torch.no_grad()
def pictured(model: Model, pixels: Float[Tensor, "image channel height width"]) -> Float[Tensor, "image dim"]:
    """What a model makes of pixels, checked as the vectors of a text space."""
    example = model.example(1)
    where = f"`encode_images` of the text space {model.id!r}"
    return vectors(model.readout(pixels.to(example.device, example.dtype)), len(pixels), where)


def pixels_of(preprocess: Preprocess, id: str) -> Float[Tensor, "image channel height width"]:
    """What a preprocessing makes of the drawn images.

    Raises:
        ModelError: It fails, returns no `[channel, height, width]`, one that depends on chance, or sizes that differ.
    """
    where, cure = f"`preprocess` of the text space {id!r}", "return one float tensor [channel, height, width]"
    made: list[Tensor] = []
    for image in (*drawn_images(), *drawn_images()):
        try:
            given: Any = preprocess(image)
        except Exception as error:
            raise ModelError(
                f"It failed on an RGB image of {image.width} x {image.height}: {type(error).__name__}: {error}",
                where=where,
                cure="take one PIL image, and " + cure,
            ) from error
        if not isinstance(given, Tensor):
            if hasattr(given, "keys") and "pixel_values" in given:
                cure = 'take what is inside: `processor(images=image, return_tensors="pt")["pixel_values"][0]`'
            raise ModelError(f"It returned a {type(given).__name__}.", where=where, cure=cure)
        if given.ndim != 3 or not given.is_floating_point():
            cure = "leave out the dimension for images: `[0]`" if given.ndim == 4 else cure
            raise ModelError(f"It returned {given.dtype} of shape {tuple(given.shape)}.", where=where, cure=cure)
        if not bool(torch.isfinite(given).all()):
            raise NonFiniteError("It returned NaN or infinite pixels.", where=where, cure="divide by no zero")
        made.append(given.detach().float().cpu())
    if len({tuple(pixels.shape) for pixels in made[:3]}) > 1:
        raise ModelError(
            f"Images of different shapes became {tuple(made[0].shape)} and {tuple(made[1].shape)}.",
            where=where,
            cure="resize or crop all images to one size",
        )
    first, second = torch.stack(made[:3]), torch.stack(made[3:])
    if first.shape != second.shape or apart(first.flatten(1), second.flatten(1)) > _REPEATED:
        raise ModelError("It made two different inputs of one image.", where=where, cure="leave out the augmentations")
    return first


def apart(first: Float[Tensor, "row dim"], second: Float[Tensor, "row dim"]) -> float:
    """The largest distance between two answers, as a share of their length."""
    return float(((first - second).norm(dim=1) / first.norm(dim=1).clamp_min(1e-12)).max())


def behaviour_of(
    embed: Callable[[Sequence[str]], Float[Tensor, "text dim"]],
    images: Model,
    pixels: Float[Tensor, "image channel height width"],
    texts: Sequence[str],
) -> Behaviour:
    """Hold two functions to what a text space needs, and remember what they answered.

    Raises:
        ArgumentError: There are fewer than two different texts.
        ModelError: A function answers differently when asked again, or for others beside; all its vectors are the same;
            or the two make vectors of different widths.
    """
    if isinstance(texts, str) or len(set(texts)) < 2:
        raise ArgumentError("The functions cannot be known by fewer than two texts.", cure="give more `probes`")
    texts = list(texts)
    sides: dict[str, tuple[Callable[[Any], Tensor], Any]] = {
        "encode_texts": (embed, texts),
        "encode_images": (lambda some: pictured(images, some), pixels),
    }
    answers = {}
    for name, (function, given) in sides.items():
        where = f"`{name}` of the text space {images.id!r}"
        made, again = function(given), function(given)
        each = [function(given[row : row + 1]) for row in range(len(given))]
        if made.shape != again.shape or apart(made, again) > _REPEATED:
            raise ModelError("Two calls returned different vectors.", where=where, cure=_EVAL)
        if any(vector.shape[1] != made.shape[1] for vector in each):
            raise ModelError("The width of its vectors depends on the batch.", where=where, cure="pool over tokens")
        if (far := apart(made, torch.cat(each))) > _ALONE:
            cure = "fill every text up to one length, or mask what fills it up" if name == "encode_texts" else _EVAL
            raise ModelError(
                f"A vector depends on what else is in the batch: alone, one differs by {far:.0%}.",
                where=where,
                cure=cure,
            )
        if apart(normalize(made, dim=1), normalize(made, dim=1).roll(1, 0)) < 1e-5:
            cure = "give texts that it knows: `probes=`" if name == "encode_texts" else "use the pixels"
            raise ModelError("It made the same vector of everything it was given.", where=where, cure=cure)
        answers[name] = made
    wide = {name: made.shape[1] for name, made in answers.items()}
    if len(set(wide.values())) > 1:
        raise ModelError(
            f"Texts have {wide['encode_texts']} dimensions, and images {wide['encode_images']}.",
            where=f"the text space {images.id!r}",
            cure="return both after their projections, where texts and images meet",
        )
    return Behaviour.of(texts, answers["encode_texts"], answers["encode_images"])


def recorded(loading: Mapping[str, Any]) -> bool:
    """Whether what an aligner keeps of its text space is how functions behaved, so that they have to be given."""
    return "sketch" in loading
