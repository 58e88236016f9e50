"""The preprocessing of a model that brings none: resize the shorter side, crop the centre, normalise as ImageNet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image
from torch import Tensor

Preprocess = Callable[[Image.Image], Tensor]
"""One RGB image to `[channel, height, width]`."""

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def default(input_size: tuple[int, int, int]) -> tuple[Preprocess, dict[str, Any]]:
    """The default preprocessing for images of `(channel, height, width)`, and its description for JSON.

    The shorter side is resized (bicubic, antialiased) so that the centre crop covers as much as it can.
    """
    from torchvision import transforms

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
