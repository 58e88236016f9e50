"""Images as batches of a model's own input, with the next ones decoded while the model works on this one."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from PIL.Image import Image
from torch import Tensor

from unweave.errors import ImageError

_NARROW = 200
"""How many times longer than its short side an image may be."""

OnError: TypeAlias = Literal["skip", "raise"]


@runtime_checkable
class Source(Protocol):
    """An image that is read when its turn comes: an `ImageFile`, or a drawn `SampleImage`."""

    @property
    def id(self) -> str:
        """The image's name in the results."""

    def read(self) -> Image:
        """The RGB picture; raises an ImageError where there is none."""


@runtime_checkable
class Preprocessor(Protocol):
    """Whatever turns a picture into a model's input; every `Model` does."""

    def preprocess(self, image: Image, /) -> Tensor:
        """`[3, height, width]`."""


class Skipped(NamedTuple):
    """An image that was left out, and why."""

    id: str
    reason: str


class Batches:
    """Batches of preprocessed images, in the order of the images.

    Iterating yields `(ids, tensor [image, 3, height, width])`. Every batch but the last is full: the place of a
    broken image is taken by the next one. While the caller works on a batch, threads decode the images of the
    following one, so at most two batches are held. Each iteration starts from the first image.

    Attributes:
        skipped: The images left out so far in the current iteration, with their reasons.
    """

    def __init__(
        self, model: Preprocessor, images: Sequence[Source], batch_size: int, on_error: OnError = "skip"
    ) -> None:
        """Remember what to read; nothing is opened yet.

        Args:
            model: Its `preprocess` turns a picture into a tensor.
            images: What to read.
            batch_size: Images in a batch.
            on_error: `skip` leaves a broken image out and notes it in `skipped`; `raise` stops with its ImageError.

        Raises:
            ImageError: The batch size is not positive.
        """
        if batch_size < 1:
            raise ImageError(f"A batch of {batch_size} images is not possible.", cure="use a batch size of 1 or more")
        self._model, self._images, self._batch_size, self._on_error = model, images, batch_size, on_error
        self.skipped: list[Skipped] = []

    @property
    def total(self) -> int:
        """How many images there are, broken ones included."""
        return len(self._images)

    def __iter__(self) -> Iterator[tuple[tuple[str, ...], Tensor]]:
        """Read the images from the first one on."""
        self.skipped.clear()
        coming = iter(self._images)
        ahead: deque[tuple[str, Future[Tensor]]] = deque()
        ids: list[str] = []
        tensors: list[Tensor] = []
        pool = ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1), thread_name_prefix="unweave-images")
        try:
            while True:
                while len(ahead) < self._batch_size and (image := next(coming, None)) is not None:
                    ahead.append((image.id, pool.submit(self._tensor, image)))
                if len(tensors) == self._batch_size or (tensors and not ahead):
                    yield tuple(ids), _stacked(ids, tensors)
                    ids, tensors = [], []
                if not ahead:
                    return
                name, future = ahead.popleft()
                try:
                    tensors.append(future.result())
                    ids.append(name)
                except ImageError as error:
                    if self._on_error == "raise":
                        raise
                    self.skipped.append(Skipped(name, error.what))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _tensor(self, image: Source) -> Tensor:
        picture = image.read()
        # Preprocessings enlarge the short side to hundreds of pixels, and the long side would grow along without bound.
        if max(picture.size) > _NARROW * min(picture.size):
            raise ImageError("The image is too narrow: {} x {} pixels.".format(*picture.size), where=image.id)
        try:
            return self._model.preprocess(picture)
        # A preprocessing is anybody's code, and one odd picture must not end the run.
        except Exception as error:
            raise ImageError(f"The preprocessing failed: {error}", where=image.id) from error


def batches(model: Preprocessor, images: Sequence[Source], batch_size: int, on_error: OnError = "skip") -> Batches:
    """Preprocessed batches of the images, in order (see `Batches`)."""
    return Batches(model, images, batch_size, on_error)


def _stacked(ids: list[str], tensors: list[Tensor]) -> Tensor:
    first = tensors[0].shape
    for name, tensor in zip(ids, tensors, strict=True):
        if tensor.shape != first:
            raise ImageError(
                f"The preprocessing gives {list(tensor.shape)} here and {list(first)} for {ids[0]}.",
                where=name,
                cure="use a preprocessing with one size, or a batch size of 1",
            )
    return torch.stack(tensors)
