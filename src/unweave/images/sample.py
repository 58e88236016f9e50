"""Eight drawn pictures, so that a first run needs no photographs: simple landscapes, the same on every machine."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFilter

SIZE = 384
_SCALE = 2  # drawn larger and reduced, for smooth edges

Colour = tuple[int, int, int]
Length = float | int
"""A part of the picture's side, where 1 is all of it."""

Draw = Callable[[Image.Image], None]


@dataclass(frozen=True)
class SampleImage:
    """A picture that is drawn when it is read.

    Attributes:
        id: Its name, `sample/NAME`.
    """

    id: str
    _draw: Draw = field(repr=False)

    def read(self) -> Image.Image:
        """The RGB picture, `SIZE` pixels square."""
        canvas = Image.new("RGB", (SIZE * _SCALE, SIZE * _SCALE))
        self._draw(canvas)
        return canvas.resize((SIZE, SIZE), Image.Resampling.LANCZOS)

    def as_code(self) -> str:
        """The Python that draws it again."""
        return f"next(image for image in unweave.sample_images() if image.id == {self.id!r})"


def sample_images() -> list[SampleImage]:
    """The eight pictures."""
    return [
        SampleImage(f"sample/{name}", draw)
        for name, draw in {
            "sunset-at-sea": _sunset,
            "red-barn": _barn,
            "snowy-peaks": _peaks,
            "desert-cactus": _desert,
            "sailing-boat": _boat,
            "forest-path": _forest,
            "city-night": _city,
            "hot-air-balloons": _balloons,
        }.items()
    ]


def _sky(canvas: Image.Image, top: Colour, bottom: Colour) -> ImageDraw.ImageDraw:
    draw = ImageDraw.Draw(canvas)
    width, height = canvas.size
    for y in range(height):
        t = y / (height - 1)
        colour = tuple(round(a + (b - a) * t) for a, b in zip(top, bottom, strict=True))
        draw.line([(0, y), (width, y)], fill=colour)
    return draw


def _box(canvas: Image.Image, x: Length, y: Length, rx: Length, ry: Length) -> list[tuple[Length, Length]]:
    width, height = canvas.size
    return [((x - rx) * width, (y - ry) * height), ((x + rx) * width, (y + ry) * height)]


def _points(canvas: Image.Image, *points: tuple[Length, Length]) -> list[tuple[Length, Length]]:
    width, height = canvas.size
    return [(x * width, y * height) for x, y in points]


def _hills(canvas: Image.Image, level: Length, swell: Length, waves: Length, phase: Length, colour: Colour) -> None:
    outline = [
        (x / 60, level + swell * (math.sin(waves * x / 60 * math.tau + phase) + 0.4 * math.sin(2.3 * waves * x / 10)))
        for x in range(61)
    ]
    ImageDraw.Draw(canvas).polygon(_points(canvas, (0, 1.01), *outline, (1, 1.01)), fill=colour)


def _glow(canvas: Image.Image, x: Length, y: Length, radius: Length, colour: Colour) -> None:
    mask = Image.new("L", canvas.size)
    ImageDraw.Draw(mask).ellipse(_box(mask, x, y, radius, radius), fill=150)
    mask = mask.filter(ImageFilter.GaussianBlur(radius * canvas.width * 0.4))
    canvas.paste(colour, mask=mask)


def _cloud(draw: ImageDraw.ImageDraw, canvas: Image.Image, x: Length, y: Length, size: Length) -> None:
    for dx, dy, r in ((-0.9, 0.1, 0.55), (0, -0.1, 0.8), (0.85, 0.12, 0.5), (0.35, 0.2, 0.55), (-0.4, 0.22, 0.5)):
        draw.ellipse(_box(canvas, x + dx * size, y + dy * size, r * size, r * size * 0.7), fill=(250, 251, 253))


def _sunset(canvas: Image.Image) -> None:
    draw = _sky(canvas, (52, 46, 108), (255, 170, 92))
    _glow(canvas, 0.5, 0.6, 0.26, (255, 226, 140))
    draw.ellipse(_box(canvas, 0.5, 0.6, 0.12, 0.12), fill=(255, 236, 170))
    draw.rectangle(_points(canvas, (0, 0.62), (1, 1)), fill=(38, 60, 112))
    for row in range(11):
        y, half = 0.64 + row * 0.033, 0.13 - row * 0.009
        draw.rounded_rectangle(_box(canvas, 0.5 + 0.02 * (-1) ** row, y, half, 0.007), 9, fill=(255, 190, 112))


def _barn(canvas: Image.Image) -> None:
    draw = _sky(canvas, (86, 160, 226), (208, 234, 250))
    _cloud(draw, canvas, 0.24, 0.2, 0.1)
    _cloud(draw, canvas, 0.78, 0.13, 0.07)
    _hills(canvas, 0.62, 0.035, 1.2, 0.4, (124, 178, 90))
    _hills(canvas, 0.76, 0.02, 0.8, 2.4, (92, 150, 66))
    draw.polygon(_points(canvas, (0.36, 0.8), (0.36, 0.52), (0.72, 0.52), (0.72, 0.8)), fill=(184, 48, 42))
    draw.polygon(_points(canvas, (0.32, 0.53), (0.42, 0.38), (0.66, 0.38), (0.76, 0.53)), fill=(92, 40, 40))
    draw.rectangle(_points(canvas, (0.47, 0.61), (0.61, 0.8)), fill=(244, 236, 222))
    draw.line(_points(canvas, (0.47, 0.61), (0.61, 0.8)), fill=(184, 48, 42), width=12)
    draw.line(_points(canvas, (0.61, 0.61), (0.47, 0.8)), fill=(184, 48, 42), width=12)


def _peaks(canvas: Image.Image) -> None:
    draw = _sky(canvas, (60, 120, 196), (214, 232, 246))
    for x, top, half, colour in ((0.76, 0.32, 0.36, (122, 138, 164)), (0.34, 0.2, 0.42, (94, 108, 138))):
        draw.polygon(_points(canvas, (x - half, 0.8), (x, top), (x + half, 0.8)), fill=colour)
        cap = [(x - half * 0.3, top + 0.18), (x, top), (x + half * 0.3, top + 0.18)]
        teeth = [(x + half * 0.14, top + 0.14), (x, top + 0.2), (x - half * 0.12, top + 0.14)]
        draw.polygon(_points(canvas, *cap, *teeth), fill=(248, 250, 254))
    _hills(canvas, 0.76, 0.02, 1.4, 0.8, (52, 98, 84))
    for n in range(9):
        x, y = 0.06 + n * 0.115, 0.9 + 0.03 * math.sin(n * 2.1)
        draw.polygon(_points(canvas, (x - 0.05, y), (x, y - 0.19), (x + 0.05, y)), fill=(26, 66, 58))


def _desert(canvas: Image.Image) -> None:
    draw = _sky(canvas, (246, 188, 120), (255, 234, 196))
    draw.ellipse(_box(canvas, 0.8, 0.2, 0.08, 0.08), fill=(255, 250, 226))
    _hills(canvas, 0.6, 0.04, 0.9, 1.2, (226, 156, 94))
    _hills(canvas, 0.74, 0.035, 0.7, 3.6, (206, 128, 70))
    green, width = (60, 118, 74), canvas.width
    for x, top, foot, w in ((0.36, 0.36, 0.86, 0.045), (0.72, 0.54, 0.8, 0.026)):
        draw.rounded_rectangle(_points(canvas, (x - w, top), (x + w, foot)), w * width, fill=green)
        for side, low, high in ((-1, 0.42, 0.22), (1, 0.54, 0.3)):
            end, y = x + side * 3.4 * w, foot - (foot - top) * low
            left, right = sorted((x, end))
            draw.rounded_rectangle(
                _points(canvas, (left, y - w * 0.6), (right + w * 0.6, y + w * 0.6)), w * 0.6 * width, fill=green
            )
            arm = _points(canvas, (end - w * 0.6, y - (foot - top) * high), (end + w * 0.6, y + w * 0.6))
            draw.rounded_rectangle(arm, w * 0.6 * width, fill=green)


def _boat(canvas: Image.Image) -> None:
    draw = _sky(canvas, (92, 178, 230), (222, 242, 250))
    _cloud(draw, canvas, 0.2, 0.16, 0.08)
    draw.rectangle(_points(canvas, (0, 0.66), (1, 1)), fill=(30, 112, 158))
    draw.polygon(_points(canvas, (0.51, 0.16), (0.51, 0.66), (0.8, 0.66)), fill=(252, 252, 248))
    draw.polygon(_points(canvas, (0.48, 0.24), (0.48, 0.66), (0.26, 0.66)), fill=(240, 120, 72))
    draw.line(_points(canvas, (0.495, 0.13), (0.495, 0.72)), fill=(92, 62, 44), width=10)
    draw.polygon(_points(canvas, (0.22, 0.7), (0.84, 0.7), (0.74, 0.81), (0.31, 0.81)), fill=(146, 58, 46))
    for row in range(4):
        y = 0.82 + row * 0.05
        wave = [(x / 80, y + 0.008 * math.sin(x / 80 * math.tau * 6 + row * 1.7)) for x in range(81)]
        draw.line(_points(canvas, *wave), fill=(132, 194, 220), width=6)


def _forest(canvas: Image.Image) -> None:
    draw = _sky(canvas, (186, 222, 200), (232, 240, 206))
    for depth, (count, shade) in enumerate(((9, (126, 172, 134)), (7, (78, 134, 92)), (5, (40, 92, 62)))):
        foot, height = 0.66 + depth * 0.1, 0.36 + depth * 0.14
        _hills(canvas, foot - 0.03, 0.01, 0.9, depth, shade)
        for n in range(count):
            x = (n + 0.5) / count
            if depth and abs(x - 0.5) < 0.16:
                continue
            draw.rectangle(_box(canvas, x, foot, 0.008 + depth * 0.004, 0.05), fill=(92, 66, 48))
            for tier in range(3):
                half, y = (0.05 + depth * 0.018) * (1 - tier * 0.24), foot - 0.02 - tier * height * 0.26
                draw.polygon(_points(canvas, (x - half, y), (x, y - height * 0.42), (x + half, y)), fill=shade)
    draw.polygon(_points(canvas, (0.48, 0.64), (0.53, 0.64), (0.74, 1.01), (0.3, 1.01)), fill=(206, 176, 128))


def _city(canvas: Image.Image) -> None:
    draw = _sky(canvas, (14, 20, 52), (70, 60, 116))
    for n in range(40):
        x, y = (n * 0.6180339) % 1, ((n * 0.7548776) % 1) * 0.5
        draw.ellipse(_box(canvas, x, y, 0.003, 0.003), fill=(236, 236, 255))
    _glow(canvas, 0.78, 0.2, 0.14, (200, 200, 236))
    draw.ellipse(_box(canvas, 0.78, 0.2, 0.07, 0.07), fill=(246, 242, 220))
    for n, top in enumerate((0.52, 0.36, 0.6, 0.44, 0.3, 0.56, 0.42, 0.62)):
        left = n * 0.125
        shade = 22 + 9 * (n % 3)
        draw.rectangle(_points(canvas, (left, top), (left + 0.118, 1)), fill=(shade, shade + 4, shade + 28))
        for row in range(int((0.97 - top) / 0.055)):
            for column in range(3):
                if (7 * n + 5 * row + 3 * column) % 4 < 2:
                    x, y = left + 0.024 + column * 0.035, top + 0.035 + row * 0.055
                    draw.rectangle(_box(canvas, x, y, 0.009, 0.014), fill=(255, 214, 122))


def _balloons(canvas: Image.Image) -> None:
    draw = _sky(canvas, (126, 176, 226), (252, 226, 214))
    _hills(canvas, 0.84, 0.03, 1.1, 0.2, (118, 160, 118))
    _hills(canvas, 0.92, 0.02, 0.8, 2.2, (84, 128, 92))
    for x, y, r, colours in (
        (0.34, 0.34, 0.19, ((216, 62, 56), (250, 206, 84))),
        (0.73, 0.24, 0.12, ((58, 96, 178), (240, 240, 244))),
        (0.76, 0.6, 0.08, ((110, 62, 140), (246, 150, 90))),
    ):
        draw.polygon(
            _points(canvas, (x - r * 0.62, y + r * 0.8), (x, y + r * 1.5), (x + r * 0.62, y + r * 0.8)), colours[0]
        )
        for stripe, share in enumerate((1, 0.72, 0.42, 0.14)):
            draw.ellipse(_box(canvas, x, y, r * share, r), fill=colours[stripe % 2])
        for side in (-1, 1):
            draw.line(
                _points(canvas, (x + side * r * 0.12, y + r * 1.26), (x + side * r * 0.12, y + r * 1.6)),
                (80, 60, 50),
                4,
            )
        draw.rounded_rectangle(_box(canvas, x, y + r * 1.72, r * 0.16, r * 0.13), 6, fill=(122, 82, 52))
