"""Images as batches of what a model takes, with the next ones decoded while the model works on these."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Generic, Literal, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from PIL.Image import Image
from torch import Tensor

from unweave.errors import DataError
from unweave.images.reading import Note, keeping

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
        """The RGB picture; raises an DataError where there is none."""


AnySource = TypeVar("AnySource", bound=Source)
Read = TypeVar("Read")
Batch = TypeVar("Batch")


@runtime_checkable
class Preprocessor(Protocol):
    """Whatever turns a picture into a model's input; every `Model` does."""

    def preprocess(self, image: Image, /) -> Tensor:
        """What the model takes of one image, such as `[channel, height, width]`."""


class Skipped(NamedTuple):
    """An image that was left out, and why."""

    id: str
    reason: str


class Batches(Generic[AnySource, Read, Batch]):
    """Batches of what is read of images, in the order of the images.

    Every batch but the last is full: the place of a broken image is taken by the next one. While the caller works on a
    batch, threads read the images of the following one, so at most two batches are held. Each iteration starts from the
    first image.

    Attributes:
        skipped: The images left out so far in the current iteration, with their reasons.
        failure: Why the first of them was.
    """

    def __init__(
        self,
        images: Sequence[AnySource],
        read: Callable[[AnySource], Read],
        joined: Callable[[Sequence[str], Sequence[Read]], Batch],
        batch_size: int,
        on_error: OnError = "skip",
    ) -> None:
        """Remember what to read; nothing is opened yet.

        Args:
            images: What to read.
            read: What is made of an image; raises an DataError where it cannot be.
            joined: What is made of a batch, from the ids of its images and what was read of them.
            batch_size: Images in a batch.
            on_error: `skip` leaves a broken image out and notes it in `skipped`; `raise` stops with its DataError.

        Raises:
            DataError: The batch size is not positive.
        """
        if batch_size < 1:
            raise DataError(f"A batch of {batch_size} images is not possible.", cure="use a batch size of 1 or more")
        self._images, self._read, self._joined = images, read, joined
        self._batch_size, self._on_error = batch_size, on_error
        self.skipped: list[Skipped] = []
        self.failure: DataError | None = None

    @property
    def total(self) -> int:
        """How many images there are, broken ones included."""
        return len(self._images)

    def __iter__(self) -> Iterator[tuple[tuple[str, ...], Batch]]:
        """The ids of a batch, and what was made of it, from the first image on."""
        self.skipped.clear()
        ids: list[str] = []
        read: list[Read] = []
        for image, found in decoded(self._images, self._read, ahead=self._batch_size):
            if isinstance(found, DataError):
                if self._on_error == "raise":
                    raise found
                self.failure = found if not self.skipped else self.failure
                self.skipped.append(Skipped(image.id, found.what))
                continue
            read.append(found)
            ids.append(image.id)
            if len(read) == self._batch_size:
                yield tuple(ids), self._joined(ids, read)
                ids, read = [], []
        if read:
            yield tuple(ids), self._joined(ids, read)


def decoded(
    images: Iterable[AnySource], read: Callable[[AnySource], Read], *, ahead: int
) -> Iterator[tuple[AnySource, Read | DataError]]:
    """What is read of images in their order, or why there is nothing, while threads read the next ones.

    Args:
        images: What to read; taken only when its turn comes.
        read: What is made of an image, such as `partial(preprocessed, model)`.
        ahead: How many images are read before they are asked for.
    """
    coming = iter(images)
    waiting: deque[tuple[AnySource, Future[tuple[Read | DataError, list[Note]]]]] = deque()
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1), thread_name_prefix="unweave-images")

    def kept(image: AnySource) -> tuple[Read | DataError, list[Note]]:
        with keeping() as notes:
            try:
                return read(image), notes
            except DataError as error:
                return error, notes

    try:
        while True:
            while len(waiting) < ahead and (image := next(coming, None)) is not None:
                waiting.append((image, pool.submit(kept, image)))
            if not waiting:
                return
            image, future = waiting.popleft()
            found, notes = future.result()
            for note in notes:
                note.say()
            yield image, found
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def preprocessed(model: Preprocessor, image: Source) -> Tensor:
    """An image as the model's own input, without the axis of images.

    Args:
        model: Its `preprocess` turns a picture into a tensor.
        image: What to read.

    Raises:
        DataError: It cannot be read, or as for `input_of`.
    """
    return input_of(model, image.read(), image.id)


def input_of(model: Preprocessor, picture: Image, name: str) -> Tensor:
    """A picture as the model's own input, without the axis of images.

    Args:
        model: Its `preprocess` turns a picture into a tensor.
        picture: What was read.
        name: Of the image, for messages.

    Raises:
        DataError: The picture is too narrow, merely stands for what the model does not take (more bands, a clip), or
            the preprocessing fails.
    """
    # Preprocessings enlarge the short side to hundreds of pixels, and the long side would grow along without bound.
    if max(picture.size) > _NARROW * min(picture.size):
        raise DataError("The image is too narrow: {} x {} pixels.".format(*picture.size), where=name)
    try:
        tensor = model.preprocess(picture)
    except DataError as error:
        raise DataError(error.what, where=name, cure=error.cure) from None
    # A preprocessing is anybody's code, and one odd picture must not end the run.
    except Exception as error:
        raise DataError(f"The preprocessing failed: {error}", where=name) from error
    beside: list[_Beside] = [picture.info[kind] for kind in ("bands", "frames") if kind in picture.info]
    for region in beside:
        region.check(getattr(model, "input_size", (None,))[0])
    return tensor


class _Beside(Protocol):
    """What a picture stands for: the numbers of a file, or the frames of a clip."""

    def check(self, channels: int | None) -> None:
        """Refuse a preprocessing that needed it and saw the picture alone."""


def batches(
    model: Preprocessor, images: Sequence[AnySource], batch_size: int, on_error: OnError = "skip"
) -> Batches[AnySource, Tensor, Tensor]:
    """Preprocessed batches of the images, in order: `[image, channel, height, width]`, or what else the model takes of
    each (see `Batches`).
    """
    return Batches(images, partial(preprocessed, model), stacked, batch_size, on_error)


def stacked(ids: Sequence[str], tensors: Sequence[Tensor]) -> Tensor:
    """Preprocessed images as one batch.

    Raises:
        DataError: They are not of one size.
    """
    first = tensors[0].shape
    for name, tensor in zip(ids, tensors, strict=True):
        if tensor.shape != first:
            raise DataError(
                f"The preprocessing gives {list(tensor.shape)} here and {list(first)} for {ids[0]}.",
                where=name,
                cure="use a preprocessing with one size, or a batch size of 1",
            )
    return torch.stack(list(tensors))
