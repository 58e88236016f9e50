"""The preprocessing of a model that brings none: resize the shorter side, crop the centre, normalise as ImageNet."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from PIL import Image
from torch import Tensor

from unweave.errors import ModelError

Preprocess = Callable[[Image.Image], Tensor]
"""One RGB image to `[channel, height, width]`."""

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def default(input_size: tuple[int, ...]) -> tuple[Preprocess, dict[str, Any]]:
    """The default preprocessing for images of `(channel, height, width)`, and its description for JSON.

    The shorter side is resized (bicubic, antialiased) so that the centre crop covers as much as it can. Of a clip there
    is none: its frames may lie along any axis.
    """
    from torchvision import transforms

    if len(input_size) != 3:
        return partial(_no_image, input_size), {"custom": "none"}
    channels, height, width = input_size
    mean, std = (MEAN, STD) if channels == 3 else ((0.5,) * channels, (0.5,) * channels)
    short = max(height, width)
    bicubic = transforms.InterpolationMode.BICUBIC
    preprocess = transforms.Compose(
        [
            transforms.Resize(short, interpolation=bicubic),
            transforms.CenterCrop((height, width)),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    return preprocess, describe(short, (height, width), mean, std, "bicubic")


def _no_image(input_size: tuple[int, ...], image: Image.Image) -> Tensor:
    raise ModelError(
        f"The model takes {' x '.join(map(str, input_size))}, which cannot be made of one image.",
        cure="give `Model.from_module` a `preprocess`, or run a plan on tensors (`unweave.plan(model).run(clips)`)",
    )


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
