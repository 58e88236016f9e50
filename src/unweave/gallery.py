"""Components beside the images that they write most about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from PIL import Image

from unweave.align import Aligned
from unweave.extraction import pictures
from unweave.figures import NamedComponent, names_figure
from unweave.text import TextSpace
from unweave.textspan import Naming, extremes

MOST, LEAST = 6, 3
"""Images of either kind in a row."""

_SIDE = 96
"""Pixels."""


def gallery(seen: Aligned, space: TextSpace, namings: Sequence[Naming]) -> Figure:
    """Named components, each with the images in which it writes most along its first name, and least.

    Args:
        seen: The store in the text space.
        space: The text space.
        namings: Of components of this store.

    Raises:
        UnweaveError: None has a name, or an image is no longer there.
    """
    rows = []
    for own in namings:
        direction = space.encode([own.names[0].phrase])
        most, least = extremes(seen, seen.components.index(own.component), direction, MOST, LEAST)
        rows.append(
            NamedComponent(
                str(own.component),
                [(name.phrase, name.alone) for name in own.names],
                own.usual,
                _found(seen, most),
                _found(seen, least),
            )
        )
    return names_figure(
        rows, title=f"{seen.store.manifest.model}: what components stand for, {len(seen.rows):,} images"
    )


def _found(seen: Aligned, rows: Sequence[int]) -> UInt8[np.ndarray, "image side side 3"]:
    return squares(picture.read() for picture in pictures(seen.store, [seen.store.ids[row] for row in rows]))


def squares(images: Iterable[Image.Image]) -> UInt8[np.ndarray, "image side side 3"]:
    """The middles of images, of equal size."""
    found = []
    for image in images:
        edge = min(image.size)
        left, top = (image.width - edge) // 2, (image.height - edge) // 2
        middle = image.crop((left, top, left + edge, top + edge))
        found.append(np.asarray(middle.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)))
    return np.array(found, np.uint8).reshape(-1, _SIDE, _SIDE, 3)
