"""Contact sheets: scenes beside each other with their captions, for people to look at.

`python -m unweave.pocket.contact docs/figures` draws those of the documentation.
"""

from __future__ import annotations

import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import TypeVar

from PIL import Image, ImageDraw, ImageFont
from PIL.Image import Resampling

from unweave.pocket.backgrounds import SIDE
from unweave.pocket.birds import Birds, BirdScene
from unweave.pocket.scene import Scene
from unweave.pocket.things import LOCATIONS, STYLES
from unweave.pocket.world import World

S = TypeVar("S", bound=Scene)

_ZOOM, _GAP, _TEXT = 2, 14, 38


def contact_sheet(scenes: Sequence[Scene], columns: int) -> Image.Image:
    """Scenes at twice their size, row by row, each above its caption."""
    rows, side = -(-len(scenes) // columns), _ZOOM * SIDE
    sheet = Image.new("RGB", (columns * (side + _GAP) + _GAP, rows * (side + _TEXT + _GAP) + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10.5)
    for index, scene in enumerate(scenes):
        row, column = divmod(index, columns)
        left, top = _GAP + column * (side + _GAP), _GAP + row * (side + _TEXT + _GAP)
        sheet.paste(Image.fromarray(scene.image).resize((side, side), Resampling.NEAREST), (left, top))
        lines = textwrap.wrap(scene.caption, 24)
        draw.multiline_text((left, top + side + 4), "\n".join(lines), fill=(60, 60, 64), font=font, spacing=2)
    return sheet


def in_rows(
    draw: Callable[[int], S], name: Callable[[S], str], names: Sequence[str], columns: int, most: int
) -> list[S]:
    """The first scenes that fill a row for each name.

    Args:
        draw: A scene from its number.
        name: The row that a scene belongs to.
        names: The rows, from top to bottom.
        columns: How many scenes fill a row.
        most: How often an object is shown at most.
    """
    rows: dict[str, list[S]] = {row: [] for row in names}
    shown = Counter[str]()
    numbers = count()
    while any(len(row) < columns for row in rows.values()):
        scene = draw(next(numbers))
        row = rows[name(scene)]
        if len(row) < columns and shown[scene.factors.object] < most:
            row.append(scene)
            shown[scene.factors.object] += 1
    return [scene for row in rows.values() for scene in row]


def _location(scene: Scene) -> str:
    return scene.factors.location


def _group(scene: BirdScene) -> str:
    return str(scene.factors.group)


def main() -> None:
    """Draw the documentation's sheets into the folder given as the only argument."""
    folder = Path(sys.argv[1])
    birds = in_rows(Birds(balanced=True).scene, _group, ("0", "1", "2", "3"), 7, most=4)
    sheets: dict[str, Sequence[Scene]] = {
        "pocket-world": in_rows(World().scene, _location, LOCATIONS, 7, most=2),
        "pocket-held-out": [World(styles=STYLES[1:]).scene(number) for number in range(14)],
        "pocket-birds": birds,
    }
    for name, scenes in sheets.items():
        contact_sheet(scenes, 7).save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
