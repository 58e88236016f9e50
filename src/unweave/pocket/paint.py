"""Painting a drawing in a colour and a pattern, with its light and shadow kept.

A paintable drawing has one main hue (the body of a car, the cloth of a shirt). Pixels of that hue are paint; their
brightness, relative to the median, becomes the shade that the new colour receives. All else (windows, wheels, the
black veins of a butterfly) stays as drawn.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from jaxtyping import Float, UInt8
from numpy.random import Generator
from PIL import Image

from unweave.pocket.sprites import sprite
from unweave.pocket.things import RGB

_SHADES = 128
"""The shade, as stored in 8 bits, that leaves a colour as it is."""


@cache
def paint_map(name: str, style: str) -> Image.Image:
    """Where a drawing takes paint.

    Returns:
        An RGBA image of the sprite's size: the shade (128 leaves the colour as it is), how much of the pixel is
        paint (0 ... 255), nothing, and the drawing's own alpha.
    """
    pixels = np.asarray(sprite(name, style)).astype(np.float64)
    rgb, alpha = pixels[..., :3], pixels[..., 3]
    chroma = rgb - rgb.mean(axis=-1, keepdims=True)
    hue = np.average(chroma.reshape(-1, 3), axis=0, weights=alpha.ravel())
    along = (chroma * hue).sum(axis=-1) / np.maximum(rgb.max(axis=-1), 1)
    solid = alpha > 128
    paint = np.clip(along / np.quantile(along[solid], 0.8) * 3 - 0.6, 0, 1)
    value = rgb.max(axis=-1)
    shade = np.clip(value / np.median(value[solid & (paint > 0.5)]), 0.45, 1.6) * _SHADES
    layers = np.stack([shade, paint * 255, np.zeros_like(shade), alpha], axis=-1)
    return Image.fromarray(np.rint(layers).astype(np.uint8), "RGBA")


def painted(
    rgb: Float[np.ndarray, "row column 3"],
    paint: UInt8[np.ndarray, "row column 4"],
    colour: str,
    where: Float[np.ndarray, "row column"],
) -> Float[np.ndarray, "row column 3"]:
    """The pixels of a drawing, 0 ... 255, with its paintable ones in a colour and its contrasting colour.

    Args:
        rgb: The drawing as it is.
        paint: Its `paint_map`, placed as the drawing is.
        colour: One of `COLOURS`.
        where: Where the contrasting colour goes, 0 ... 1.
    """
    base, other = np.array(RGB[colour], np.float32), np.array(contrasting(colour), np.float32)
    flat = base + where[..., None] * (other - base)
    shade = paint[..., :1] / np.float32(_SHADES)
    lit = np.where(shade < 1, flat * shade, flat + (255 - flat) * (shade - 1))
    return rgb + paint[..., 1:2] / np.float32(255) * (lit - rgb)


def contrasting(colour: str) -> tuple[int, int, int]:
    """The second colour of a pattern: near white on what is dark or strong, grey on white and black."""
    special = {"white": (112, 112, 118), "black": (186, 186, 190), "yellow": (96, 78, 10), "pink": (255, 246, 250)}
    return special.get(colour, (250, 244, 236))


def pattern(kind: str, rng: Generator, side: int, scale: float) -> Float[np.ndarray, "side side"]:
    """A pattern with soft edges, turned and shifted at random.

    Args:
        kind: One of `PATTERNS`.
        rng: Where the angle and the shift come from.
        side: Of the square, in pixels.
        scale: The distance from stripe to stripe, in pixels.

    Returns:
        How much of each pixel is the contrasting colour, 0 ... 1.
    """
    angle = math.radians(float(rng.uniform(-20, 20)) + (90 if rng.random() < 0.5 else 0))
    shift_u, shift_v = rng.random(2).tolist()
    if kind == "plain":
        return np.zeros((side, side), np.float32)
    x = np.arange(side, dtype=np.float32)[None] / np.float32(scale)
    y = x.T
    u = x * math.cos(angle) + y * math.sin(angle) + shift_u
    v = y * math.cos(angle) - x * math.sin(angle) + shift_v
    if kind == "striped":
        return _soft(0.21 - _from_middle(u), scale)
    if kind == "spotted":
        return _soft(0.31 - np.sqrt(_from_middle(u) ** 2 + _from_middle(v) ** 2), scale)
    return _soft((_from_middle(u / 1.4) - 0.25) * (_from_middle(v / 1.4) - 0.25) * 6, scale)


def _from_middle(position: np.ndarray) -> np.ndarray:
    """The distance from the middle of the unit interval that a position lies in, 0 ... 0.5."""
    return np.abs(position - np.floor(position) - 0.5)


def _soft(inside: np.ndarray, scale: float) -> np.ndarray:
    """A step at zero, one pixel wide."""
    return np.clip(inside * scale + 0.5, 0, 1)
