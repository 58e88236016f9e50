"""The locations: one procedure each, drawn at twice the size and halved, then given texture and light.

Each place has its own palette and its own things near the edges, since the object covers the middle.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Int16, UInt8
from numpy.random import Generator
from PIL import Image, ImageDraw
from PIL.Image import Resampling

SIDE = 64
"""Of every image, in pixels."""

_BIG = 2 * SIDE

Colour = tuple[int, int, int]


def background(location: str, rng: Generator) -> UInt8[np.ndarray, "64 64 3"]:
    """A view of a location, one of `LOCATIONS`; every call with the same generator draws another."""
    draw, rows, columns, strength = _PLACES[location]
    image = Image.new("RGB", (_BIG, _BIG))
    draw(image, rng)
    pixels = np.asarray(image.reduce(2)).astype(np.float32)
    pixels += _texture(rng, rows, columns)[..., None] * (strength / 128)
    light = rng.uniform(0.9, 1.1) * rng.uniform(0.97, 1.03, 3)
    return np.clip(pixels * light.astype(np.float32), 0, 255).astype(np.uint8)


def _texture(rng: Generator, rows: int, columns: int) -> Int16[np.ndarray, "64 64"]:
    """Smooth noise, -128 ... 127, of so many grains from top to bottom and from left to right."""
    grains = Image.fromarray(rng.integers(0, 256, (rows, columns), np.uint8))
    return np.asarray(grains.resize((SIDE, SIDE), Resampling.BICUBIC)).astype(np.int16) - 128


def _gradient(image: Image.Image, top: float, bottom: float, first: Colour, last: Colour) -> None:
    """Fill from one height to another (0 ... 1) with a colour that turns into another."""
    start, stop = round(top * _BIG), round(bottom * _BIG)
    column = np.linspace(first, last, max(stop - start, 1)).astype(np.uint8)[:, None]
    image.paste(Image.fromarray(column).resize((_BIG, len(column)), Resampling.NEAREST), (0, start))


def _near(rng: Generator, colour: Colour, spread: int = 12) -> Colour:
    """A colour like the given one."""
    red, green, blue = rng.integers(-spread, spread + 1, 3).tolist()
    return _byte(colour[0] + red), _byte(colour[1] + green), _byte(colour[2] + blue)


def _byte(value: int) -> int:
    return min(max(value, 0), 255)


def _sides(rng: Generator, count: int) -> list[int]:
    """Places along the image, mostly near its left and right edge, where the object does not hide them."""
    offsets = rng.integers(-6, 34, count)
    return [int(offset) if index % 2 else _BIG - int(offset) for index, offset in enumerate(offsets)]


def _clouds(draw: ImageDraw.ImageDraw, rng: Generator, count: int, low: int, high: int) -> None:
    for _ in range(count):
        x, y, size = int(rng.integers(-10, _BIG)), int(rng.integers(low, high)), int(rng.integers(8, 15))
        for step, part in ((0, 0.7), (0.9, 1.0), (1.9, 0.8)):
            radius = size * part
            draw.ellipse((x + step * size, y - radius, x + step * size + 2 * radius, y + radius), fill=(250, 251, 253))
        draw.rounded_rectangle((x, y, x + 3.4 * size, y + 0.8 * size), 0.4 * size, fill=(236, 241, 248))


def _sea(image: Image.Image, rng: Generator) -> None:
    horizon = rng.uniform(0.1, 0.3)
    _gradient(image, 0.0, horizon, _near(rng, (150, 196, 232)), _near(rng, (206, 228, 240)))
    _gradient(image, horizon, 1.0, _near(rng, (28, 112, 176)), _near(rng, (6, 50, 112)))
    draw = ImageDraw.Draw(image)
    for _ in range(22):
        depth = float(rng.uniform(0.03, 1))
        x, y, width = int(rng.integers(-10, _BIG)), (horizon + (1 - horizon) * depth) * _BIG, 5 + 15 * depth
        draw.arc((x, y, x + width, y + width / 2), 200, 340, fill=_near(rng, (150, 200, 232)), width=2)


def _beach(image: Image.Image, rng: Generator) -> None:
    horizon = rng.uniform(0.18, 0.3)
    shore = horizon + rng.uniform(0.16, 0.26)
    _gradient(image, 0.0, horizon, _near(rng, (110, 190, 240)), _near(rng, (190, 228, 246)))
    _gradient(image, horizon, shore, _near(rng, (20, 140, 190)), _near(rng, (90, 214, 214)))
    _gradient(image, shore, 1.0, _near(rng, (248, 228, 168)), _near(rng, (232, 200, 130)))
    draw = ImageDraw.Draw(image)
    y = shore * _BIG
    for x in range(-8, _BIG, 16):
        draw.ellipse((x, y - 5, x + 22, y + 4 + rng.integers(0, 4)), fill=(250, 252, 250))
    _palm(draw, rng)
    for _ in range(6):
        x, z = int(rng.integers(0, _BIG)), int(rng.integers(round(y) + 12, _BIG))
        draw.ellipse((x, z, x + 6, z + 4), fill=_near(rng, (250, 240, 222)), outline=(196, 160, 110))


def _palm(draw: ImageDraw.ImageDraw, rng: Generator) -> None:
    x = int(rng.integers(4, 20))
    x = x if rng.random() < 0.5 else _BIG - x
    top = int(rng.integers(18, 34))
    draw.line((x, _BIG - 30, x + 3, 70, x, top), fill=(126, 88, 50), width=6)
    for reach, drop in ((-34, 8), (-26, 24), (-20, -10), (20, -10), (26, 24), (34, 8)):
        draw.polygon(
            (x, top - 3, x + reach * 0.6, top + drop * 0.3 - 7, x + reach, top + drop, x, top + 3), (30, 124, 52)
        )


def _forest(image: Image.Image, rng: Generator) -> None:
    ground = rng.uniform(0.66, 0.8)
    _gradient(image, 0.0, ground, _near(rng, (104, 148, 84)), _near(rng, (40, 86, 48)))
    _gradient(image, ground, 1.0, _near(rng, (76, 98, 44)), _near(rng, (52, 60, 30)))
    draw = ImageDraw.Draw(image)
    for x in rng.integers(0, _BIG, 8):
        draw.rectangle((int(x), 0, int(x) + 4, ground * _BIG), fill=_near(rng, (58, 70, 46)))
    for x in _sides(rng, 6):
        width, foot = int(rng.integers(6, 11)), ground * _BIG + int(rng.integers(0, 18))
        draw.rectangle((x - width / 2, 0, x + width / 2, foot), fill=_near(rng, (88, 60, 38)))
    for x in rng.integers(-10, _BIG + 10, 14):
        size, y = int(rng.integers(10, 20)), int(rng.integers(-12, 14))
        draw.ellipse((int(x) - size, y - size, int(x) + size, y + size * 0.8), fill=_near(rng, (38, 108, 46), 18))


def _desert(image: Image.Image, rng: Generator) -> None:
    horizon = rng.uniform(0.26, 0.42)
    _gradient(image, 0.0, horizon, _near(rng, (240, 178, 116)), _near(rng, (252, 224, 170)))
    _gradient(image, horizon, 1.0, _near(rng, (226, 150, 76)), _near(rng, (186, 104, 46)))
    draw = ImageDraw.Draw(image)
    for part in (0.0, 0.3, 0.62):
        y, x = (horizon + part * (1 - horizon)) * _BIG, int(rng.integers(-40, _BIG))
        shade = _near(rng, (218 - round(40 * part), 138 - round(36 * part), 66 - round(20 * part)))
        draw.polygon((x - 70, y + 16, x, y - 12, x + 16, y - 4, x + 90, y + 18), fill=shade)
    for x in _sides(rng, 2):
        y, tall, green = int(rng.integers(84, 116)), int(rng.integers(40, 60)), _near(rng, (62, 118, 62))
        draw.line((x, y, x, y - tall), fill=green, width=8)
        for side, height in ((-12, 0.4), (12, 0.55)):
            draw.line((x, y - tall * height, x + side, y - tall * height, x + side, y - tall * height - 16), green, 5)


def _city(image: Image.Image, rng: Generator) -> None:
    street = rng.uniform(0.76, 0.86)
    _gradient(image, 0.0, street, _near(rng, (150, 172, 200)), _near(rng, (206, 210, 218)))
    draw = ImageDraw.Draw(image)
    x = -int(rng.integers(0, 12))
    while x < _BIG:
        width, top = int(rng.integers(18, 30)), int(rng.integers(2, 50))
        wall = _near(rng, (112, 104, 112), 26)
        draw.rectangle((x, top, x + width - 2, street * _BIG), fill=wall)
        for row in range(top + 5, round(street * _BIG) - 6, 10):
            for column in range(x + 4, x + width - 6, 7):
                draw.rectangle(
                    (column, row, column + 3, row + 5), (250, 224, 140) if rng.random() < 0.5 else (66, 76, 100)
                )
        x += width
    _gradient(image, street, 1.0, _near(rng, (84, 84, 90)), _near(rng, (60, 60, 66)))
    shift = int(rng.integers(0, 20))
    for dash in range(-shift, _BIG, 28):
        draw.rectangle((dash, 0.94 * _BIG, dash + 14, 0.94 * _BIG + 3), fill=(236, 232, 210))


def _sky(image: Image.Image, rng: Generator) -> None:
    _gradient(image, 0.0, 1.0, _near(rng, (58, 132, 222)), _near(rng, (158, 208, 246)))
    _clouds(ImageDraw.Draw(image), rng, 7, 4, _BIG)


def _marsh(image: Image.Image, rng: Generator) -> None:
    horizon = rng.uniform(0.16, 0.3)
    _gradient(image, 0.0, horizon, _near(rng, (176, 186, 168)), _near(rng, (206, 204, 172)))
    _gradient(image, horizon, 1.0, _near(rng, (122, 128, 84)), _near(rng, (62, 78, 58)))
    draw = ImageDraw.Draw(image)
    for _ in range(5):
        x, y, size = (
            int(rng.integers(0, _BIG)),
            int(rng.integers(round(horizon * _BIG) + 20, _BIG)),
            int(rng.integers(7, 12)),
        )
        draw.pieslice((x - size, y - size / 2, x + size, y + size / 2), 30, 340, fill=_near(rng, (82, 140, 62)))
    for x in _sides(rng, 22):
        foot, tall, lean = int(rng.integers(84, _BIG + 8)), int(rng.integers(50, 92)), int(rng.integers(-8, 9))
        draw.line((x, foot, x + lean, foot - tall), fill=_near(rng, (108, 122, 44), 22), width=3)
        if rng.random() < 0.45:
            draw.line((x + lean, foot - tall, x + lean, foot - tall + 14), fill=(92, 54, 26), width=6)


def _snow(image: Image.Image, rng: Generator) -> None:
    ground = rng.uniform(0.4, 0.55)
    _gradient(image, 0.0, ground, _near(rng, (166, 188, 214)), _near(rng, (214, 224, 236)))
    draw = ImageDraw.Draw(image)
    for x in (-10, 40, 100):
        peak, x = int(rng.integers(8, 34)), x + int(rng.integers(-14, 15))
        draw.polygon((x - 44, ground * _BIG, x, peak, x + 44, ground * _BIG), fill=_near(rng, (128, 150, 184), 8))
        draw.polygon(
            (x - 13, peak + 16, x, peak, x + 13, peak + 16, x + 4, peak + 12, x - 4, peak + 20), (250, 252, 255)
        )
    _gradient(image, ground, 1.0, _near(rng, (236, 242, 250), 5), _near(rng, (212, 224, 242), 5))
    for x in _sides(rng, 3):
        y, tall = int(rng.integers(84, 112)), int(rng.integers(44, 62))
        for level in (0.0, 0.28, 0.56):
            wide, base = 17 * (1 - 0.7 * level), y - tall * level
            draw.polygon((x - wide, base, x, base - tall * 0.45, x + wide, base), fill=(48, 92, 84))
            draw.polygon(
                (x - wide * 0.4, base - tall * 0.27, x, base - tall * 0.45, x + wide * 0.4, base - tall * 0.27), "white"
            )
    for x, y in rng.integers(0, _BIG, (26, 2)):
        draw.ellipse((int(x), int(y), int(x) + 3, int(y) + 3), fill=(255, 255, 255))


def _meadow(image: Image.Image, rng: Generator) -> None:
    horizon = rng.uniform(0.22, 0.4)
    _gradient(image, 0.0, horizon, _near(rng, (116, 188, 242)), _near(rng, (200, 230, 246)))
    draw = ImageDraw.Draw(image)
    _clouds(draw, rng, 1, 8, 20)
    _gradient(image, horizon, 1.0, _near(rng, (146, 204, 76)), _near(rng, (78, 158, 42)))
    x = int(rng.integers(0, _BIG))
    draw.ellipse((x - 70, horizon * _BIG - 10, x + 70, horizon * _BIG + 40), fill=_near(rng, (136, 198, 74)))
    petals = ((250, 250, 250), (252, 214, 50), (236, 80, 120), (168, 110, 220))
    for x, y in rng.integers((0, round(horizon * _BIG) + 18), (_BIG, _BIG), (24, 2)):
        draw.ellipse((int(x), int(y), int(x) + 5, int(y) + 5), fill=petals[int(rng.integers(4))])


def _indoors(image: Image.Image, rng: Generator) -> None:
    floor = rng.uniform(0.7, 0.82)
    walls = ((228, 206, 184), (206, 190, 214), (222, 196, 190), (226, 220, 198))
    wall = _near(rng, walls[int(rng.integers(4))], 8)
    _gradient(image, 0.0, floor, wall, (wall[0] - 24, wall[1] - 24, wall[2] - 24))
    _gradient(image, floor, 1.0, _near(rng, (168, 112, 66)), _near(rng, (124, 78, 42)))
    draw = ImageDraw.Draw(image)
    y = floor * _BIG
    draw.rectangle((0, y - 7, _BIG, y), fill=(246, 240, 232))
    for x in range(-int(rng.integers(0, 24)), _BIG, 24):
        draw.line((x, y, x + (x - 64) * 0.4, _BIG), fill=(104, 64, 36), width=2)
    left = bool(rng.random() < 0.5)
    x, top = int(rng.integers(2, 10)), int(rng.integers(6, 22))
    x = x if left else _BIG - 36 - x
    draw.rectangle((x, top, x + 36, top + 46), fill=(250, 246, 240))
    draw.rectangle((x + 4, top + 4, x + 32, top + 42), fill=_near(rng, (150, 200, 236)))
    draw.line((x + 18, top, x + 18, top + 46), fill=(250, 246, 240), width=3)
    draw.line((x, top + 23, x + 36, top + 23), fill=(250, 246, 240), width=3)
    x = _BIG - 14 if left else 14
    draw.line((x, 52, x, y + 10), fill=(70, 56, 50), width=3)
    draw.polygon((x - 15, 54, x - 8, 30, x + 8, 30, x + 15, 54), fill=_near(rng, (246, 190, 84)))


_Place = tuple[Callable[[Image.Image, Generator], None], int, int, float]

_PLACES: dict[str, _Place] = {
    "sea": (_sea, 24, 6, 22),
    "beach": (_beach, 20, 20, 12),
    "forest": (_forest, 20, 16, 22),
    "desert": (_desert, 24, 8, 12),
    "city": (_city, 16, 16, 9),
    "sky": (_sky, 4, 4, 14),
    "marsh": (_marsh, 24, 8, 18),
    "snow": (_snow, 10, 10, 6),
    "meadow": (_meadow, 24, 20, 16),
    "indoors": (_indoors, 8, 8, 6),
}
"""What draws each location, and its texture: grains down and across, and strength in grey levels."""
