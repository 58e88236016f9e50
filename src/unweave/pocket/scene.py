"""One scene: what is in it, and how it is drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy.random import Generator
from PIL import Image, ImageFilter
from PIL.Image import Resampling, Transform

from unweave.errors import ArgumentError
from unweave.pocket.backgrounds import SIDE
from unweave.pocket.paint import paint_map, painted, pattern
from unweave.pocket.sprites import sprite

_STEP = 4
"""Grey levels from one shade to the next: too few to be seen, and half the size of a file without loss."""


@dataclass(frozen=True)
class Factors:
    """Everything that is true of a scene.

    Attributes:
        object: The name of the object, one of `OBJECTS`.
        category: Its category, one of `CATEGORIES`.
        colour: Its colour, one of `COLOURS`; None where no single colour dominates.
        pattern: Its pattern, one of `PATTERNS`; None for what is drawn without one.
        location: Where it is, one of `LOCATIONS`.
        style: Who drew it, one of `STYLES`.
        size: The longer side of the object, in pixels.
        centre: Column and row of the object's middle, in pixels.
        flip: Whether it is mirrored.
        rotation: How far it is turned, in degrees, anticlockwise.
    """

    object: str
    category: str
    colour: str | None
    pattern: str | None
    location: str
    style: str
    size: int
    centre: tuple[float, float]
    flip: bool
    rotation: float


@dataclass(frozen=True, eq=False)
class Scene:
    """An image and the truth about it.

    Attributes:
        image: RGB, 0 ... 255.
        mask: Where the object is.
        factors: What is in it.
        caption: A sentence about it.
        number: Its place in the world it comes from.
    """

    image: UInt8[np.ndarray, "64 64 3"]
    mask: Bool[np.ndarray, "64 64"]
    factors: Factors
    caption: str
    number: int


def stream(*key: int) -> Generator:
    """Random numbers of their own for each key, the same on every machine.

    Raises:
        ArgumentError: A number of the key is negative.
    """
    if min(key) < 0:
        raise ArgumentError(f"Scenes and seeds are numbered from 0, so there is no {min(key)}.")
    return np.random.default_rng(key)


Pixels = Float[np.ndarray, "64 64 3"]
Alpha = Float[np.ndarray, "64 64"]


def draw_object(name: str, factors: Factors, rng: Generator, *, paint: str | None = None) -> tuple[Pixels, Alpha]:
    """The object alone, in its place.

    Args:
        name: The sprite that is drawn.
        factors: How it is placed, and its pattern.
        rng: Where the pattern's angle and shift come from.
        paint: The colour it is painted in; None leaves it as drawn.

    Returns:
        Colours, 0 ... 255, and opacity, 0 ... 1.
    """
    pixels = _placed(_resized(name, factors.style, factors.size), factors)
    rgb = pixels[..., :3].astype(np.float32)
    if paint is not None:
        where = pattern(factors.pattern or "plain", rng, SIDE, scale=factors.size / 4.6)
        rgb = painted(rgb, _placed(_resized(name, factors.style, factors.size, paint=True), factors), paint, where)
    return rgb, pixels[..., 3] / np.float32(255)


@cache
def _resized(name: str, style: str, size: int, *, paint: bool = False) -> Image.Image:
    image = paint_map(name, style) if paint else sprite(name, style)
    return image.resize((size, size), Resampling.LANCZOS)


def _placed(image: Image.Image, factors: Factors) -> UInt8[np.ndarray, "64 64 4"]:
    """The sprite mirrored, turned and moved to where it belongs."""
    angle = math.radians(factors.rotation)
    cos, sin, mirror = math.cos(angle), math.sin(angle), -1 if factors.flip else 1
    (x, y), middle = factors.centre, image.width / 2
    # Each pixel of the scene asks for its place in the sprite.
    a, b, d, e = mirror * cos, -mirror * sin, sin, cos
    inverse = (a, b, middle - a * x - b * y, d, e, middle - d * x - e * y)
    return np.asarray(image.transform((SIDE, SIDE), Transform.AFFINE, inverse, Resampling.BICUBIC))


def compose(
    behind: UInt8[np.ndarray, "64 64 3"], rgb: Pixels, alpha: Alpha
) -> tuple[UInt8[np.ndarray, "64 64 3"], Bool[np.ndarray, "64 64"]]:
    """Put an object on a background, within a soft rim that is light around the dark and dark around the light.

    Returns:
        The image, and where the object covers more than half of a pixel.
    """
    mask = alpha > 0.5
    blurred = Image.fromarray(np.rint(alpha * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1.2))
    rim = np.asarray(blurred)[..., None] * np.float32(0.6 / 255)
    light = np.float32(255 if rgb[mask].mean() < 110 else 0)
    image = behind + rim * (light - behind)
    image += alpha[..., None] * (rgb - image)
    return np.clip(np.rint(image / _STEP) * _STEP, 0, 255).astype(np.uint8), mask
