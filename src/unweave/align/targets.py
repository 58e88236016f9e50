"""Where the images of a store lie in a text space: what the space's own image encoder makes of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.errors import DataError
from unweave.extraction import pictures
from unweave.images import ImageSet, Picture
from unweave.images.batches import decoded
from unweave.store import Store
from unweave.text import TextSpace, cache

_AT_ONCE = 32
"""Images that the encoder reads at a time."""

_PART = 1024
"""Images whose embeddings are kept in one file; what an interruption costs, at most."""

OnImages = Callable[[int], None]


def embeddings(
    store: Store,
    space: TextSpace,
    images: Mapping[int, ImageSet] | None = None,
    *,
    on_images: OnImages = lambda count: None,
) -> Float[Tensor, "image dim"]:
    """What the space's image encoder makes of the images of a store, row by row; computed once, then kept on disk.

    Args:
        store: Whose images.
        space: The text space.
        images: The images of each listing, where the store cannot open them.
        on_images: Called with the number of images that were just dealt with.

    Raises:
        StoreError: An image is no longer there, or can no longer be read.
    """
    known = [space.weights_hash, space.images.preprocessing, [own.fingerprint for own in store.manifest.listings]]
    found: list[Tensor] = []
    opened: dict[str, Picture] = {}

    def part(ids: Sequence[str]) -> Tensor:
        if not opened:  # nothing of a store is opened whose embeddings are all kept
            opened.update(zip(store.ids, pictures(store, store.ids, images), strict=True))
        return torch.cat(list(_embedded(space, [opened[name] for name in ids])))

    for start in range(0, len(store), _PART):
        ids = store.ids[start : start + _PART]
        key = hashlib.sha256(json.dumps([*known, ids], default=str).encode()).hexdigest()
        found.append(cache.kept(key, lambda ids=ids: part(ids)))  # type: ignore[misc]
        on_images(len(ids))
    return torch.cat(found)


def _embedded(space: TextSpace, chosen: Sequence[Picture]) -> Iterator[Tensor]:
    example = space.images.example(1)
    waiting: list[Tensor] = []
    for count, (picture, tensor) in enumerate(decoded(space.images, chosen, ahead=2 * _AT_ONCE), 1):
        if not isinstance(tensor, Tensor):
            raise DataError(f"An image can no longer be read: {tensor.what}", where=picture.id)
        waiting.append(tensor)
        if len(waiting) == _AT_ONCE or count == len(chosen):
            with torch.inference_mode():
                yield space.images.readout(torch.stack(waiting).to(example.device, example.dtype)).float().cpu()
            waiting = []
