"""The images of a store, opened again by their ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unweave.errors import DataError
from unweave.images import ImageSet, Picture, open_images
from unweave.store import Store


def pictures(store: Store, ids: Sequence[str], images: Mapping[int, ImageSet] | None = None) -> list[Picture]:
    """The images with these ids, not read yet.

    Args:
        store: Which knows where they lie.
        ids: Some of the store's.
        images: The images of each listing, where the store cannot open them.

    Raises:
        DataError: An image is no longer there.
        DataError: A listing can no longer be opened.
    """
    wanted, found = set(ids), dict[str, Picture]()
    for number, own in enumerate(store.manifest.listings):
        opened = (images or {}).get(number) or open_images(own.data, split=own.split)
        found.update({name: opened[place] for place, name in enumerate(opened.ids) if name in wanted})
    missing = next((name for name in ids if name not in found), None)
    if missing is not None:
        raise DataError("An image of the store is no longer there.", where=missing, cure="put it back")
    return [found[name] for name in ids]
