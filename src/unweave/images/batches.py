"""Images as batches of a model's own input, with the next ones decoded while the model works on this one."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

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


@runtime_checkable
class Preprocessor(Protocol):
    """Whatever turns a picture into a model's input; every `Model` does."""

    def preprocess(self, image: Image, /) -> Tensor:
        """What the model takes of one image, such as `[channel, height, width]`."""


_Read: TypeAlias = tuple[Tensor | DataError, list[Note]]
"""An image's tensor, or why there is none; and what there is to say of it."""


class Skipped(NamedTuple):
    """An image that was left out, and why."""

    id: str
    reason: str


class Batches:
    """Batches of preprocessed images, in the order of the images.

    Iterating yields `(ids, tensor [image, channel, height, width])`, or what else the model takes of each image. Every
    batch but the last is full: the place of a broken image is taken by the next one. While the caller works on a batch,
    threads decode the images of the following one, so at most two batches are held. Each iteration starts from the
    first image.

    Attributes:
        skipped: The images left out so far in the current iteration, with their reasons.
        failure: Why the first of them was.
    """

    def __init__(
        self, model: Preprocessor, images: Sequence[Source], batch_size: int, on_error: OnError = "skip"
    ) -> None:
        """Remember what to read; nothing is opened yet.

        Args:
            model: Its `preprocess` turns a picture into a tensor.
            images: What to read.
            batch_size: Images in a batch.
            on_error: `skip` leaves a broken image out and notes it in `skipped`; `raise` stops with its DataError.

        Raises:
            DataError: The batch size is not positive.
        """
        if batch_size < 1:
            raise DataError(f"A batch of {batch_size} images is not possible.", cure="use a batch size of 1 or more")
        self._model, self._images, self._batch_size, self._on_error = model, images, batch_size, on_error
        self.skipped: list[Skipped] = []
        self.failure: DataError | None = None

    @property
    def total(self) -> int:
        """How many images there are, broken ones included."""
        return len(self._images)

    def __iter__(self) -> Iterator[tuple[tuple[str, ...], Tensor]]:
        """Read the images from the first one on."""
        self.skipped.clear()
        ids: list[str] = []
        tensors: list[Tensor] = []
        for image, found in decoded(self._model, self._images, ahead=self._batch_size):
            if isinstance(found, DataError):
                if self._on_error == "raise":
                    raise found
                self.failure = found if not self.skipped else self.failure
                self.skipped.append(Skipped(image.id, found.what))
                continue
            tensors.append(found)
            ids.append(image.id)
            if len(tensors) == self._batch_size:
                yield tuple(ids), stacked(ids, tensors)
                ids, tensors = [], []
        if tensors:
            yield tuple(ids), stacked(ids, tensors)


def decoded(
    model: Preprocessor, images: Iterable[AnySource], *, ahead: int
) -> Iterator[tuple[AnySource, Tensor | DataError]]:
    """Preprocessed images in their order, or why there is none, while threads read the next ones.

    Args:
        model: Its `preprocess` turns a picture into a tensor.
        images: What to read; taken only when its turn comes.
        ahead: How many images are read before they are asked for.
    """
    coming = iter(images)
    waiting: deque[tuple[AnySource, Future[_Read]]] = deque()
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1), thread_name_prefix="unweave-images")
    try:
        while True:
            while len(waiting) < ahead and (image := next(coming, None)) is not None:
                waiting.append((image, pool.submit(_tensor, model, image)))
            if not waiting:
                return
            image, future = waiting.popleft()
            found, kept = future.result()
            for note in kept:
                note.say()
            yield image, found
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _tensor(model: Preprocessor, image: Source) -> _Read:
    with keeping() as kept:
        try:
            return input_of(model, image.read(), image.id), kept
        except DataError as error:
            return error, kept


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
    for one in beside:
        one.check(getattr(model, "input_size", (None,))[0])
    return tensor


class _Beside(Protocol):
    """What a picture stands for: the numbers of a file, or the frames of a clip."""

    def check(self, channels: int | None) -> None:
        """Refuse a preprocessing that needed it and saw the picture alone."""


def batches(model: Preprocessor, images: Sequence[Source], batch_size: int, on_error: OnError = "skip") -> Batches:
    """Preprocessed batches of the images, in order (see `Batches`)."""
    return Batches(model, images, batch_size, on_error)


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
