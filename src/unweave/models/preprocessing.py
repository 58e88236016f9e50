"""How pictures become a model's input, where no library says it: colours, grey, bands, clips.

A preprocessing takes one RGB picture. What a file holds beyond it (more bits, more bands, the frames of a clip) lies
beside it in the picture's `info`, as `bands` and `frames`; `bands` and `clip` make preprocessings that take these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from unweave.errors import ArgumentError, DataError

Preprocess = Callable[[Image.Image], Tensor]
"""One RGB image to what the model takes of it, such as `[channel, height, width]`."""

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

Size = tuple[int, ...]
"""What a model takes of one image: channels, height, width; or frames, channels, height, width, in either order."""


def default(input_size: Size) -> tuple[Preprocess, dict[str, Any]]:
    """The preprocessing of a model that brings none, and its description for JSON.

    The shorter side is resized (bicubic, antialiased) so that the centre crop covers as much as it can. Three channels
    are normalised as ImageNet's; one channel is the luminance, with mean and deviation 0.5; of four or more nothing is
    known, so images are refused, with `bands` as the cure. Frames of clips are preprocessed one by one (`clip`).

    Args:
        input_size: What the model takes of one image.

    Raises:
        ArgumentError: It is of no such form.
    """
    from torchvision import transforms

    if len(input_size) == 4:
        first = _first(input_size)
        frames, channels = input_size[:2] if first == "frame" else input_size[1::-1]
        inner, described = default((channels, *input_size[2:]))
        return clip(inner, frames, first=first), {**described, "frames": frames, "order": _ORDER[first]}
    if len(input_size) != 3 or min(input_size) < 1:
        raise ArgumentError(
            f"The input size {input_size} is neither that of an image nor that of a clip.",
            cure="give channels, height, width; or frames, channels, height, width; or `preprocess` as well",
        )
    channels, height, width = input_size
    if channels not in (1, 3):
        return _Unknown(channels), {"unknown": f"{channels} bands without mean and deviation"}
    mean, std = (MEAN, STD) if channels == 3 else ((0.5,), (0.5,))
    short = max(height, width)
    bicubic = transforms.InterpolationMode.BICUBIC
    preprocess = transforms.Compose(
        [
            *([transforms.Grayscale()] if channels == 1 else []),
            transforms.Resize(short, interpolation=bicubic),
            transforms.CenterCrop((height, width)),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    described = describe(short, (height, width), mean, std, "bicubic")
    return preprocess, {**described, "colour": "luminance"} if channels == 1 else described


@dataclass(frozen=True)
class _Unknown:
    """Of a model whose bands are not known: every image is refused."""

    channels: int

    def __call__(self, picture: Image.Image) -> Tensor:
        raise DataError(
            f"The model takes {self.channels} bands, and their means and deviations are not known.",
            cure="give `preprocess=unweave.models.preprocessing.bands(mean, std, size)` to Model.from_module",
        )

    @property
    def pictured(self) -> Preprocess:
        return self


def grey(preprocess: Preprocess) -> Preprocess:
    """A preprocessing of colours for a model of one channel: luminance, normalised as the colours are on average."""
    return _Grey(preprocess)


@dataclass(frozen=True)
class _Grey:
    inner: Preprocess

    def __call__(self, picture: Image.Image) -> Tensor:
        """`[1, height, width]`."""
        return self.inner(picture.convert("L").convert("RGB")).mean(-3, keepdim=True)


def fitted(preprocess: Preprocess, described: dict[str, Any], channels: int) -> tuple[Preprocess, dict[str, Any]]:
    """A library's preprocessing for a model of so many channels: of colours for one channel it makes `grey`.

    Args:
        preprocess: The library's.
        described: The same in words.
        channels: Of the model.
    """
    if channels == 1 and preprocess(Image.new("RGB", (64, 64))).shape[-3] == 3:
        means = {name: [sum(described[name]) / len(described[name])] for name in ("mean", "std") if described.get(name)}
        return grey(preprocess), {**described, **means, "colour": "luminance"}
    return preprocess, described


def bands(mean: Sequence[float | int], std: Sequence[float | int], size: int | tuple[int, int]) -> BandPreprocess:
    """A preprocessing of files with any number of bands, for `Model.from_module(preprocess=...)`.

    A file's own numbers are taken, unscaled: `(number - mean) / std` for each band, resized and cut like a picture.
    Files are TIFFs of any bands, `.npy` arrays `[height, width, band]` or `[band, height, width]`, and pictures: three
    bands of 0 ... 255, or their luminance for one band.

    Args:
        mean: Of each band, in the file's own numbers.
        std: Of each band.
        size: Height and width that the model takes.

    Raises:
        ArgumentError: There are not as many deviations as means, one is not positive, or the size is not.
    """
    height, width = (size, size) if isinstance(size, int) else size
    means, deviations = (tuple(float(value) for value in values) for values in (mean, std))
    if not means or len(means) != len(deviations) or not all(map(math.isfinite, (*means, *deviations))):
        raise ArgumentError(
            f"{len(means)} means do not go with {len(deviations)} deviations.", cure="give one of each for each band"
        )
    if min(deviations) <= 0 or min(height, width) < 1:
        raise ArgumentError("A deviation or a size is not positive.", cure="use numbers above 0")
    return BandPreprocess(means, deviations, (int(height), int(width)))


@dataclass(frozen=True)
class BandPreprocess:
    """See `bands`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]

    def __call__(self, picture: Image.Image | np.ndarray) -> Tensor:
        """`[band, height, width]` of a picture, or of an array `[height, width, band]`.

        Raises:
            DataError: It has other bands, or numbers that are none.
        """
        from torchvision.transforms import functional

        pixels = torch.from_numpy(np.array(self._numbers(picture), np.float32)).permute(2, 0, 1)
        if not pixels.isfinite().all():
            raise DataError("The image has numbers that are NaN or infinite.", cure="fill what is missing beforehand")
        short = max(self.size)
        pixels = functional.resize(pixels, short, functional.InterpolationMode.BICUBIC, antialias=True)
        pixels = functional.center_crop(pixels, list(self.size))
        return functional.normalize(pixels, self.mean, self.std)

    def _numbers(self, picture: Image.Image | np.ndarray) -> np.ndarray:
        count = len(self.mean)
        if isinstance(picture, Image.Image):
            if "bands" in picture.info:
                return picture.info["bands"].read(count)
            picture = np.asarray(picture.convert("L" if count == 1 else "RGB"))
        values = picture if picture.ndim == 3 else picture[..., None]
        if values.shape[-1] != count:
            raise DataError(
                f"The image has {values.shape[-1]} bands, and the model takes {count}.",
                cure="give images of the model's bands, as TIFF or `.npy`",
            )
        return values

    @property
    def pictured(self) -> Preprocess:
        """The picture that stands for the bands, resized and cut in the same way."""
        return default((3, *self.size))[0]

    @property
    def described(self) -> dict[str, Any]:
        """The same in words, ready for JSON."""
        return {**describe(max(self.size), self.size, self.mean, self.std, "bicubic"), "numbers": "the file's own"}


def clip(frame: Preprocess, frames: int, *, first: Literal["frame", "channel"] = "frame") -> ClipPreprocess:
    """A preprocessing of clips, for `Model.from_module(preprocess=...)`; clips are opened as `clips:FOLDER`.

    Args:
        frame: The preprocessing of one frame, to `[channel, height, width]`.
        frames: How many the model takes: as many are taken evenly, from the first to the last; of a clip with fewer,
            some several times.
        first: Which axis comes first: `frame` for `[frame, channel, height, width]`, `channel` for `[channel, frame,
            height, width]`.

    Raises:
        ArgumentError: There is no frame, or no such axis.
    """
    if frames < 1 or first not in _ORDER:
        raise ArgumentError(
            f"Clips of {frames} frames, {first} first, are none.", cure="give 1 frame or more, and `frame` or `channel`"
        )
    return ClipPreprocess(frame, frames, first)


_ORDER = {"frame": "frame, channel, height, width", "channel": "channel, frame, height, width"}


@dataclass(frozen=True)
class ClipPreprocess:
    """See `clip`."""

    frame: Preprocess
    frames: int
    first: Literal["frame", "channel"]

    def __call__(self, clip: Image.Image | Sequence[Image.Image]) -> Tensor:
        """A clip's picture, which carries its frames, or the frames themselves, as the model takes them.

        Raises:
            DataError: It is a single picture.
        """
        found = clip.info.get("frames") if isinstance(clip, Image.Image) else clip
        if not found:
            raise DataError(
                f"The model takes clips of {self.frames} frames, and this is one picture.",
                cure="open a folder whose folders hold frames, as `clips:FOLDER`",
            )
        places = np.linspace(0, len(found) - 1, self.frames).round().astype(int)
        return torch.stack([self.frame(found[int(place)]) for place in places], 0 if self.first == "frame" else 1)

    @property
    def pictured(self) -> Preprocess:
        """The preprocessing of one frame."""
        return self.frame

    @property
    def described(self) -> dict[str, Any]:
        """The same in words, ready for JSON."""
        frame = getattr(self.frame, "described", None) or {"custom": name_of(self.frame)}
        return {**frame, "frames": self.frames, "order": _ORDER[self.first]}


def _first(input_size: Size) -> Literal["frame", "channel"]:
    """Which of a clip's first two axes comes first: channels are three, or else one; of two such the second are."""
    one, two = input_size[:2]
    return "frame" if two == 3 or (one != 3 and two == 1) else "channel"


def in_words(preprocess: Preprocess) -> dict[str, Any]:
    """A preprocessing of the user's, ready for JSON."""
    known = getattr(preprocess, "described", None)
    return dict(known) if isinstance(known, dict) else {"custom": name_of(preprocess)}


def name_of(preprocess: Preprocess) -> str:
    """What a function or its class is called."""
    return getattr(preprocess, "__qualname__", type(preprocess).__qualname__)


def describe(
    resize: int | tuple[int, ...] | None,
    crop: tuple[int, int] | None,
    mean: object,
    std: object,
    interpolation: str,
) -> dict[str, Any]:
    """One shape for every library's preprocessing, ready for JSON; None stands for a step that is not taken."""
    return {
        "resize": list(resize) if isinstance(resize, tuple) else resize,
        "crop": None if crop is None else list(crop),
        "mean": [float(value) for value in mean],  # type: ignore[attr-defined]
        "std": [float(value) for value in std],  # type: ignore[attr-defined]
        "interpolation": interpolation,
    }


def viewed(preprocess: Preprocess, picture: Image.Image) -> Float[np.ndarray, "height width 3"]:
    """A picture as the model sees it, cut and scaled, 0 ... 1: the preprocessing without its normalisation, which is
    told from what it makes of black and of white. Of many bands, and of clips, the picture that stands for them.
    """
    preprocess = getattr(preprocess, "pictured", preprocess)
    black, white = (preprocess(Image.new("RGB", picture.size, shade)) for shade in ("black", "white"))
    seen, span = preprocess(picture) - black, white - black
    found = torch.where(span.abs() > 1e-6, seen / span, 0.0).expand(3, -1, -1)
    return found.permute(1, 2, 0).float().cpu().numpy().clip(0, 1)
