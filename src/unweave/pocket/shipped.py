"""The shipped evaluation set: 2,000 scenes that no model is trained on, with masks, factors and captions.

It is what measurements are made on, so it is kept rather than drawn: another version of Pillow may round a pixel
differently, and figures should not move for that. The last 400 scenes are of the held-out style.

    evaluation.webp         all images, side by side, without loss
    evaluation-masks.png    all masks, laid out alike
    evaluation.json         factors and captions, and the hashes of the two files above

`python -m unweave.pocket.shipped` draws it anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from unweave.errors import DataError
from unweave.notation import parse_json, read_text
from unweave.pocket.backgrounds import SIDE
from unweave.pocket.scene import Factors, Scene
from unweave.pocket.things import STYLES
from unweave.pocket.world import World

SEED = 1_000_000
"""The world that the evaluation scenes come from; train on any other."""

SCENES, HELD_OUT = 2000, 400
"""How many scenes, and how many of them, the last, are of the held-out style."""

_FOLDER = Path(__file__).parent / "sheets"
_IMAGES, _MASKS, _FACTORS = "evaluation.webp", "evaluation-masks.png", "evaluation.json"
_COLUMNS = 40
_CURE = "install unweave again, or run `python -m unweave.pocket.shipped`"
_FIELDS = tuple(field.name for field in dataclasses.fields(Factors))


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scenes side by side.

    Attributes:
        images: RGB, 0 ... 255.
        masks: Where the objects are.
        factors: What is in each.
        captions: A sentence about each.
    """

    images: UInt8[np.ndarray, "scene 64 64 3"]
    masks: Bool[np.ndarray, "scene 64 64"]
    factors: tuple[Factors, ...]
    captions: tuple[str, ...]

    def __len__(self) -> int:
        """How many scenes."""
        return len(self.factors)

    @property
    def held_out(self) -> Bool[np.ndarray, " scene"]:
        """Which scenes are of the held-out style."""
        return np.array([factors.style == STYLES[1] for factors in self.factors])

    def scene(self, place: int) -> Scene:
        """One of them."""
        return Scene(self.images[place], self.masks[place], self.factors[place], self.captions[place], place)

    def values(self, factor: str) -> tuple[Any, ...]:
        """One factor of all scenes, such as `location`."""
        return tuple(getattr(factors, factor) for factors in self.factors)


@cache
def evaluation() -> Evaluation:
    """The shipped evaluation set, read when it is first asked for.

    Raises:
        UnweaveError: One of its files is missing or damaged.
    """
    return read(_FOLDER)


def read(folder: Path) -> Evaluation:
    """An evaluation set from the folder it was written to (see `write`)."""
    table = _table(folder / _FACTORS)
    images = _sheet(folder / _IMAGES, "RGB", table["sha256"])
    masks = _sheet(folder / _MASKS, "1", table["sha256"])
    rows = zip(*(table[name] for name in _FIELDS), strict=True)
    factors = tuple(Factors(**dict(zip(_FIELDS, row, strict=True))) for row in rows)
    return Evaluation(images[: len(factors)], masks[: len(factors)], factors, tuple(table["caption"]))


def _table(path: Path) -> dict[str, Any]:
    try:
        table = parse_json(read_text(path))
        lengths = {len(table[name]) for name in (*_FIELDS, "caption")}
        table["centre"] = [(x, y) for x, y in table["centre"]]  # JSON knows no tuples
        if len(lengths) != 1 or not {_IMAGES, _MASKS} <= set(table["sha256"]):
            raise ValueError("its columns do not fit together")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"The factors of the evaluation set cannot be read: {error}.", where=str(path), cure=_CURE
        ) from error
    return table


def _sheet(path: Path, mode: str, hashes: dict[str, str]) -> np.ndarray:
    """The cells of a sheet, row by row: an array [cell, 64, 64] and its channels."""
    try:
        if hashlib.sha256(path.read_bytes()).hexdigest() != hashes[path.name]:
            raise ValueError(f"it is not the file that {_FACTORS} describes")
        with Image.open(path) as image:
            pixels = np.asarray(image.convert(mode))
    except (OSError, ValueError) as error:
        raise DataError(
            f"A sheet of the evaluation set cannot be read: {error}.", where=str(path), cure=_CURE
        ) from error
    rows, columns = pixels.shape[0] // SIDE, pixels.shape[1] // SIDE
    cells = pixels.reshape(rows, SIDE, columns, SIDE, *pixels.shape[2:]).swapaxes(1, 2)
    return cells.reshape(rows * columns, SIDE, SIDE, *pixels.shape[2:])


def write(scenes: Sequence[Scene], folder: Path) -> None:
    """Keep scenes in a folder.

    Args:
        scenes: As many as fill whole rows of 40.
        folder: Where they go; it exists.
    """
    images = _side_by_side(np.stack([scene.image for scene in scenes]))
    masks = _side_by_side(np.stack([scene.mask for scene in scenes]))
    Image.fromarray(images).save(folder / _IMAGES, lossless=True, quality=80, method=6)
    Image.fromarray(masks).save(folder / _MASKS, optimize=True)
    rows = [dataclasses.asdict(scene.factors) for scene in scenes]
    table: dict[str, Any] = {
        "sha256": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (_IMAGES, _MASKS)},
        **{name: [row[name] for row in rows] for name in _FIELDS},
        "caption": [scene.caption for scene in scenes],
    }
    lines = (f"{json.dumps(name)}: {json.dumps(column)}" for name, column in table.items())
    (folder / _FACTORS).write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _side_by_side(cells: np.ndarray) -> np.ndarray:
    rows = cells.reshape(-1, _COLUMNS, *cells.shape[1:]).swapaxes(1, 2)
    return rows.reshape(len(rows) * SIDE, _COLUMNS * SIDE, *cells.shape[3:])


def main() -> None:
    """Draw the evaluation set anew."""
    familiar, unseen = World(SEED, styles=STYLES[:1]), World(SEED, styles=STYLES[1:])
    write([(familiar if n < SCENES - HELD_OUT else unseen).scene(n) for n in range(SCENES)], _FOLDER)


if __name__ == "__main__":
    main()
