"""The images that contributions were made of, opened again by their ids."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from unweave.errors import DataError
from unweave.images import ImageSet, Picture, open_images
from unweave.source import Listed
from unweave.store.manifest import Listing
from unweave.view import View


def opened(listing: Listed | Listing) -> ImageSet:
    """Images as they were listed.

    Raises:
        DataError: They can no longer be opened.
    """
    images = open_images(listing.data, split=listing.split, white=listing.white, max_pixels=listing.max_pixels)
    return images.at(*listing.regions) if listing.regions else images


def whole_pictures(view: View, images: Sequence[ImageSet] = ()) -> list[Picture]:
    """As `pictures`, of a view whose rows are whole images.

    Raises:
        DataError: Its rows are regions; or as for `pictures`.
    """
    region = next((listing.regions for listing in getattr(view.origin, "images", ()) if listing.regions), None)
    if region is not None:
        raise DataError(
            f"The rows are regions of images (`{region[0]}`), and this needs whole images.",
            where=str(view.source),
            cure="extract the images as they are into another store",
        )
    return pictures(view, images)


def pictures(view: View, images: Sequence[ImageSet] = ()) -> list[Picture]:
    """The images of a view, in its order, not read yet.

    Args:
        view: The contributions; those of a store know where their images lie.
        images: Image sets that have them, for contributions that do not know it.

    Raises:
        DataError: An image is no longer there, or the place where it lay can no longer be opened.
    """
    wanted, pictured = set(view.ids), dict[str, Picture]()
    listed = view.origin.images if view.origin is not None else ()
    for images_there in chain(images, map(opened, listed)):
        pictured |= {name: images_there[row] for row, name in enumerate(images_there.ids) if name in wanted}
        if len(pictured) == len(wanted):
            break
    missing = next((name for name in view.ids if name not in pictured), None)
    if missing is not None:
        raise DataError(
            "An image can no longer be opened.", where=missing, cure="put it back, or give the images themselves"
        )
    return [pictured[name] for name in view.ids]
