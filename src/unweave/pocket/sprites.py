"""The drawings: emoji of two artists, shipped as one sheet for each style, and geometric shapes.

A sheet holds one cell of 64 x 64 pixels with transparency for each name in `EMOJI`, in that order, so that drawing
never needs a font. `python -m unweave.pocket.sprites` makes the sheets anew from the artists' files.
"""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features
from PIL.Image import Resampling

from unweave.errors import ArgumentError, DataError
from unweave.pocket.things import STYLES

CELL = 64
"""The side of a sprite, in pixels; every drawing fills its cell in one direction."""

EMOJI = {
    "elephant": "🐘", "giraffe": "🦒", "zebra": "🦓", "lion": "🦁", "panda": "🐼", "pig": "🐷", "frog": "🐸",
    "butterfly": "🦋", "owl": "🦉", "duck": "🦆", "swan": "🦢", "parrot": "🦜", "penguin": "🐧", "flamingo": "🦩",
    "chef": "👨‍🍳", "policeman": "👮", "firefighter": "👨‍🚒", "astronaut": "👨‍🚀", "wizard": "🧙", "car": "🚗",
    "bus": "🚌", "tractor": "🚜", "bicycle": "🚲", "helicopter": "🚁", "sailboat": "⛵", "apple": "🍎", "banana": "🍌",
    "grape": "🍇", "strawberry": "🍓", "pineapple": "🍍", "watermelon": "🍉", "shirt": "👕", "dress": "👗",
    "cap": "🧢", "rooster": "🐓", "turkey": "🦃", "eagle": "🦅", "goose": "🪿",
}  # fmt: skip
"""Each drawing's name and the character that stands for it."""

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")

_SHEETS = Path(__file__).parent / "sheets"
_COLUMNS = 8
_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")


@cache
def sprite(name: str, style: str) -> Image.Image:
    """One drawing.

    Args:
        name: One of `EMOJI` or `SHAPES`.
        style: One of `STYLES`.

    Returns:
        An RGBA image of `CELL` pixels squared.

    Raises:
        ArgumentError: There is no such drawing, or the sheet that holds it is damaged.
    """
    if style not in STYLES:
        raise ArgumentError(f"There is no style {style!r}.", cure=f"use one of {', '.join(STYLES)}")
    if name in SHAPES:
        return _shape(name, shaded=style == "noto")
    if name not in EMOJI:
        raise ArgumentError(f"There is no drawing of {name!r}.", cure=f"use one of {', '.join((*EMOJI, *SHAPES))}")
    row, column = divmod(list(EMOJI).index(name), _COLUMNS)
    left, top = column * CELL, row * CELL
    return _sheet(style).crop((left, top, left + CELL, top + CELL))


@cache
def _sheet(style: str) -> Image.Image:
    path = _SHEETS / f"{style}.png"
    try:
        with Image.open(path) as image:
            image.load()
            if (image.mode, image.size) != ("RGBA", _sheet_size()):
                raise ValueError(f"it is {image.mode} of {image.size[0]} x {image.size[1]} pixels")
            return image.copy()
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(
            f"The sprites of the pocket world cannot be read: {error}.",
            where=str(path),
            cure="install unweave again, or run `python -m unweave.pocket.sprites`",
        ) from error


def _sheet_size() -> tuple[int, int]:
    return _COLUMNS * CELL, -(-len(EMOJI) // _COLUMNS) * CELL


def _shape(name: str, *, shaded: bool) -> Image.Image:
    """A geometric shape, drawn at four times its size: lit from above, or flat within a darker rim."""
    side = 4 * CELL
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    if name == "circle":
        draw.ellipse((4, 4, side - 4, side - 4), fill=255)
    elif name == "heart":
        draw.ellipse((2, 12, 138, 148), fill=255)
        draw.ellipse((118, 12, 254, 148), fill=255)
        draw.polygon([(19, 125), (128, 70), (237, 125), (128, 250)], fill=255)
    else:
        draw.polygon([(round(x * side), round(y * side)) for x, y in _OUTLINES[name]], fill=255)
    mask = mask.resize((CELL, CELL), Resampling.LANCZOS)
    alpha = np.asarray(mask)
    if shaded:
        shade = np.broadcast_to(np.linspace(1.0, 0.72, CELL)[:, None], alpha.shape)
    else:
        inner = np.asarray(mask.resize((CELL - 8, CELL - 8), Resampling.LANCZOS))
        shade = 0.6 + 0.4 * np.pad(inner, 4) / 255
    red = np.stack([shade * 230, shade * 30, shade * 30, alpha], axis=-1)
    return Image.fromarray(np.rint(red).astype(np.uint8), "RGBA")


_OUTLINES = {
    "square": ((0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94)),
    "triangle": ((0.5, 0.03), (0.98, 0.94), (0.02, 0.94)),
    "cross": (
        (0.34, 0.02), (0.66, 0.02), (0.66, 0.34), (0.98, 0.34), (0.98, 0.66), (0.66, 0.66),
        (0.66, 0.98), (0.34, 0.98), (0.34, 0.66), (0.02, 0.66), (0.02, 0.34), (0.34, 0.34),
    ),
    "star": (
        (0.5, 0.02), (0.632, 0.369), (1.0, 0.387), (0.713, 0.619), (0.809, 0.975),
        (0.5, 0.773), (0.191, 0.975), (0.287, 0.619), (0.0, 0.387), (0.368, 0.369),
    ),
}  # fmt: skip


def rebuild(font: Path, folder: Path, target: Path) -> None:
    """Make both sheets.

    Args:
        font: `NotoColorEmoji.ttf`.
        folder: Twemoji's drawings as PNG files named by code points, such as `1f418.png`.
        target: Where the sheets go.

    Raises:
        UnweaveError: The font, or one of the drawings, is missing.
    """
    for style, draw in (("noto", _noto(font)), ("twemoji", _twemoji(folder))):
        sheet = Image.new("RGBA", _sheet_size())
        for index, image in enumerate(draw):
            row, column = divmod(index, _COLUMNS)
            sheet.paste(_fitted(image), (column * CELL, row * CELL))
        sheet.save(target / f"{style}.png", optimize=True)


def _noto(font: Path) -> list[Image.Image]:
    if not font.is_file():
        raise DataError(
            "The font of the first style is missing.",
            where=str(font),
            cure="install Noto Color Emoji (`apt-get install fonts-noto-color-emoji`), or name it by --font",
        )
    if not features.check("raqm"):
        raise DataError("This Pillow cannot join emoji sequences.", cure="install a Pillow that has raqm")
    letters = ImageFont.truetype(str(font), 109)
    images = []
    for character in EMOJI.values():
        image = Image.new("RGBA", (180, 180))
        ImageDraw.Draw(image).text((20, 20), character, font=letters, embedded_color=True)
        images.append(image)
    return images


def _twemoji(folder: Path) -> list[Image.Image]:
    images = []
    for name, character in EMOJI.items():
        path = folder / ("-".join(f"{ord(point):04x}" for point in character) + ".png")
        if not path.is_file():
            raise DataError(
                f"The second style's drawing of {name!r} is missing.",
                where=str(path),
                cure="unpack the npm package emoji-datasource-twitter, and name its folder img/twitter/64 by --twemoji",
            )
        with Image.open(path) as image:
            images.append(image.convert("RGBA"))
    return images


def _fitted(image: Image.Image) -> Image.Image:
    """The drawing without its margins, in the middle of a cell that it fills in one direction."""
    image = image.crop(image.getbbox())
    scale = CELL / max(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Resampling.LANCZOS)
    cell = Image.new("RGBA", (CELL, CELL))
    cell.paste(image, ((CELL - image.width) // 2, (CELL - image.height) // 2))
    return cell


def main() -> None:
    """Make the shipped sheets anew."""
    parser = argparse.ArgumentParser(prog="python -m unweave.pocket.sprites", description=main.__doc__)
    parser.add_argument("--font", type=Path, default=_FONT, help="NotoColorEmoji.ttf")
    parser.add_argument("--twemoji", type=Path, required=True, help="folder of Twemoji's PNG files")
    arguments = parser.parse_args()
    rebuild(arguments.font, arguments.twemoji, _SHEETS)


if __name__ == "__main__":
    main()
