"""The middles of images, of equal size, for figures."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

_SIDE = 96
"""Pixels."""


def squares(images: Iterable[Image.Image]) -> UInt8[np.ndarray, "image side side 3"]:
    """The middles of images, of equal size."""
    middles = []
    for image in images:
        edge = min(image.size)
        left, top = (image.width - edge) // 2, (image.height - edge) // 2
        box = (
            left,
            top,
            left + edge,
            top + edge,
        )  # cutting it out first would hold very large images to Pillow's limit
        middles.append(np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS, box=box)))
    return np.array(middles, np.uint8).reshape(-1, _SIDE, _SIDE, 3)
