"""Where images lie in a text space: what the space's own image encoder makes of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.errors import DataError
from unweave.extraction import whole_pictures
from unweave.images import ImageSet, Picture
from unweave.images.batches import decoded, preprocessed
from unweave.progress import OnProgress, silent
from unweave.text import TextSpace, cache
from unweave.text.behaviour import vectors
from unweave.view import View

_AT_ONCE = 32
"""Images that the encoder reads at a time."""

_PART = 1024
"""Images whose embeddings are kept in one file; what an interruption costs, at most."""


def embeddings(
    view: View,
    space: TextSpace,
    images: Sequence[ImageSet] = (),
    *,
    on_progress: OnProgress = silent,
) -> Float[Tensor, "image dim"]:
    """What the space's image encoder makes of the images of a view, row by row; computed once, then kept on disk.

    Args:
        view: The contributions whose images are meant.
        space: The text space.
        images: Image sets that have them, for contributions that do not know where their images lie.
        on_progress: Called after every part of the images.

    Raises:
        DataError: An image is no longer there, or can no longer be read.
    """
    listed = view.origin.images if view.origin is not None else ()
    about = [space.weights_hash, space.images.preprocessing, [listing.fingerprint for listing in listed]]
    embedded: list[Tensor] = []
    opened: dict[str, Picture] = {}

    def part(ids: Sequence[str]) -> Tensor:
        if not opened:  # no image is opened where all embeddings are kept
            opened.update(zip(view.ids, whole_pictures(view, images), strict=True))
        return torch.cat(list(_embedded(space, [opened[name] for name in ids])))

    for start in range(0, len(view), _PART):
        ids = list(view.ids[start : start + _PART])
        if listed and not space.of_functions:
            key = hashlib.sha256(json.dumps([*about, ids], default=str).encode()).hexdigest()
            embedded.append(cache.kept(key, partial(part, ids)))
        else:  # nothing says what these ids are the names of, or what functions will do tomorrow
            embedded.append(part(ids))
        on_progress(f"embedding images in {space.id}", start + len(ids), len(view))
    return torch.cat(embedded)


def _embedded(space: TextSpace, chosen: Sequence[Picture]) -> Iterator[Tensor]:
    example = space.images.example(1)
    waiting: list[Tensor] = []
    names: list[str] = []
    for count, (picture, tensor) in enumerate(
        decoded(chosen, partial(preprocessed, space.images), ahead=2 * _AT_ONCE), 1
    ):
        if not isinstance(tensor, Tensor):
            raise DataError(f"An image can no longer be read: {tensor.what}", where=picture.id)
        waiting.append(tensor)
        names.append(picture.id)
        if len(waiting) == _AT_ONCE or count == len(chosen):
            with torch.inference_mode():
                made = space.images.readout(torch.stack(waiting).to(example.device, example.dtype))
            yield vectors(made, len(names), f"{space.id}, images {names[0]} to {names[-1]}")
            waiting, names = [], []
