"""The pocket world as image sets."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from PIL import Image

from unweave.errors import DataError
from unweave.images.imageset import ImageSet, columns
from unweave.pocket.birds import Birds
from unweave.pocket.shipped import evaluation
from unweave.pocket.world import World

PATTERN = "`pocket/evaluation`, `pocket/world/SEED/COUNT` or `pocket/birds/SEED/SPLIT/COUNT`"


def pocket(name: str) -> ImageSet:
    """Scenes of the pocket world, with their factors as fields, their captions, and masks.

    Args:
        name: `evaluation`, the scenes that are shipped; `world/SEED/COUNT`, scenes drawn anew;
            `birds/SEED/SPLIT/COUNT`, birds, whose `label` is the bird's kind.

    Raises:
        DataError: There are no such scenes.
    """
    scenes: Any
    match name.split("/"):
        case ["evaluation"]:
            scenes = evaluation()
            count = len(scenes)
        case ["world", seed, number] if seed.isdecimal() and number.isdecimal():
            scenes, count = World(int(seed)), int(number)
        case ["birds", seed, split, number] if seed.isdecimal() and number.isdecimal():
            scenes, count = Birds(int(seed), split), int(number)
        case _:
            raise DataError("There are no such scenes.", where=f"pocket/{name}", cure=f"name {PATTERN}")
    known = [scenes.scene(row) for row in range(count)]
    found = [{**asdict(scene.factors), "caption": scene.caption} for scene in known]
    rows: dict[str, list[Any]] = {"id": [f"{name.partition('/')[0]}/{row:06}" for row in range(count)]}
    rows["label"] = [fields.get("bird", fields["object"]) for fields in found]
    for field, example in next(iter(found), {}).items():
        if not isinstance(example, tuple):
            rows[field] = [fields[field] for fields in found]
    if "bird" in rows:
        rows["group"] = [scene.factors.group for scene in known]
    return ImageSet(
        f"pocket/{name}",
        columns(rows, where=f"pocket/{name}"),
        lambda row: Image.fromarray(scenes.scene(row).image),
        lambda row: scenes.scene(row).mask,
    )
