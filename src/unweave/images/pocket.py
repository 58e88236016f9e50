"""The pocket world as image sets."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from PIL import Image

from unweave.errors import DataError
from unweave.images.imageset import ImageSet, columns
from unweave.notation import whole
from unweave.pocket.birds import Birds
from unweave.pocket.shipped import evaluation
from unweave.pocket.world import World

PATTERN = "`pocket/evaluation`, `pocket/world/SEED/COUNT` or `pocket/birds/SEED/SPLIT/COUNT`"


_MOST = 1_000_000
"""The largest number of scenes; to list so many takes minutes."""


def pocket(name: str) -> ImageSet:
    """Scenes of the pocket world, with their factors as fields, their captions, and masks.

    Args:
        name: `evaluation`, the scenes that are shipped; `world/SEED/COUNT`, scenes drawn anew;
            `birds/SEED/SPLIT/COUNT`, birds, whose `label` is the bird's kind.

    Raises:
        DataError: There are no such scenes.
    """
    scenes: Any
    count: int | None
    match name.split("/"):
        case ["evaluation"]:
            scenes = evaluation()
            count = len(scenes)
        case ["world", seed, number]:
            scenes, count = World(_seed(seed, name)), whole(number, 1, _MOST)
        case ["birds", seed, split, number]:
            scenes, count = Birds(_seed(seed, name), split), whole(number, 1, _MOST)
        case _:
            count = None
    if count is None:
        raise _no_scenes(name)
    groups, found = [], []
    for row in range(count):  # a scene holds its picture, which is drawn anew when it is read
        scene = scenes.scene(row)
        groups.append(getattr(scene.factors, "group", None))
        found.append({**asdict(scene.factors), "caption": scene.caption})
    rows: dict[str, list[Any]] = {"id": [f"{name.partition('/')[0]}/{row:06}" for row in range(count)]}
    rows["label"] = [fields.get("bird", fields["object"]) for fields in found]
    for field, example in next(iter(found), {}).items():
        if not isinstance(example, tuple):
            rows[field] = [fields[field] for fields in found]
    if "bird" in rows:
        rows["group"] = groups
    return ImageSet(
        f"pocket/{name}",
        columns(rows, where=f"pocket/{name}"),
        lambda row: Image.fromarray(scenes.scene(row).image),
        lambda row: scenes.scene(row).mask,
    )


def _seed(text: str, name: str) -> int:
    seed = whole(text, most=2**32 - 1)
    if seed is None:
        raise _no_scenes(name)
    return seed


def _no_scenes(name: str) -> DataError:
    return DataError(
        "There are no such scenes.",
        where=f"pocket/{name:.80}",
        cure=f"name {PATTERN}, with a seed below 2^32 and a count from 1 to {_MOST:,}",
    )
