"""Image sets that know where the object is: ImageNet-Segmentation, folders of masks."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image

from unweave.errors import DataError
from unweave.images.decoding import formats, rgb
from unweave.images.folders import from_files
from unweave.images.imageset import ImageSet, columns
from unweave.images.read import find_images
from unweave.images.reading import Reading

Mask = Bool[np.ndarray, "height width"]


def masked(path: str, reading: Reading) -> ImageSet:
    """A folder with `images/` and `masks/`: a mask has its image's name, and any ending.

    What is black in a mask is background. The `label` is the first folder below `images/`, where all have one.

    Raises:
        DataError: A folder is missing, or an image has no mask.
    """
    root = Path(path)
    if not (root / "images").is_dir() or not (root / "masks").is_dir():
        raise DataError("This folder has no `images` and `masks`.", where=path, cure="put both into one folder")
    images = find_images(root / "images", reading)
    known = {Path(mask.id).with_suffix("").as_posix(): mask for mask in find_images(root / "masks")}
    found = [known.get(Path(image.id).with_suffix("").as_posix()) for image in images]
    if None in found:
        raise DataError("An image has no mask.", where=images[found.index(None)].id, cure="add it to `masks`")
    parts = [image.id.split("/")[:-1] for image in images]
    files = from_files(path, images, {"label": [own[0] for own in parts]} if all(parts) else {}, reading)

    def mask(row: int) -> Mask:
        own = found[row]
        assert own is not None
        try:
            with Image.open(own.path, formats=formats()) as image:  # a palette's numbers are classes, not colours
                values = np.asarray(image if image.mode[0] in "1LPIF" and len(image.getbands()) == 1 else rgb(image))
        # Decoders of damaged files raise whatever their parsing trips over.
        except Exception as error:
            raise DataError(f"The mask cannot be read: {error}", where=str(own.path)) from error
        return (values != 0) if values.ndim == 2 else (values != 0).any(-1)

    return replace(files, read_mask=mask)


def segmentation(path: str, reading: Reading) -> ImageSet:
    """ImageNet-Segmentation (Guillaumin et al., 2014), from `gtsegs_ijcv.mat`.

    Raises:
        DataError: The library that reads it is missing, or the file is not of this shape.
    """
    try:
        import h5py
    except ImportError as error:
        raise DataError("This file needs a library.", where=path, cure="pip install 'unweave[segmentation]'") from error
    lock = threading.Lock()  # HDF5 is not made for several threads
    try:
        file = h5py.File(path, "r")
        pictures, truths = file["value/img"], file["value/gt"]
        ids = _names(file, len(pictures))
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"This is not a file of ImageNet-Segmentation: {error}.", where=path, cure="name gtsegs_ijcv.mat"
        ) from error

    def read(row: int) -> Image.Image:
        with lock:
            values = np.array(file[pictures[row, 0]])
        return rgb(Image.fromarray(values.transpose(2, 1, 0).astype(np.uint8)))

    def mask(row: int) -> Mask:
        with lock:
            values = np.array(file[file[truths[row, 0]][0, 0]])
        return values.T != 0

    return ImageSet(path, columns({"id": ids}, where=path), read, mask, reading=reading)


def _names(file: Any, count: int) -> Sequence[str]:
    """The images' names where the file has them (MATLAB's text is numbers of characters), else their numbers."""
    if "id" in file["value"]:
        return ["".join(map(chr, np.array(file[one]).ravel())) for (one,) in file["value/id"]]
    return [f"{row:0{len(str(count - 1))}}" for row in range(count)]
