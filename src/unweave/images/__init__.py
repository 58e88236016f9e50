"""Images on their way to a model: found, read as RGB, preprocessed and batched, each under its id.

    images = open_images("photos/")         # also tables, tars, datasets: see `open_images`
    images[0].id, images[0].fields, images[0].read()

A photograph is known by its path below the folder that was named, so that a row of results can be traced to its image
on any machine. Whatever cannot be read is reported with its path and the reason; nothing is dropped in silence.
"""

from unweave.images.batches import Batches, Skipped, batches, input_of
from unweave.images.imageset import ImageSet, Picture
from unweave.images.opening import open_images
from unweave.images.read import ImageFile, find_images, read_image
from unweave.images.reading import Reading
from unweave.images.sample import sample_images
from unweave.images.squares import squares

__all__ = [
    "Batches",
    "ImageFile",
    "ImageSet",
    "Picture",
    "Reading",
    "Skipped",
    "batches",
    "find_images",
    "input_of",
    "open_images",
    "read_image",
    "sample_images",
    "squares",
]
