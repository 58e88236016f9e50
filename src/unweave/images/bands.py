"""The numbers of a file that no 8-bit RGB picture holds: more bands, more bits, arrays.

A picture that is made of such a file carries them along, as `picture.info["bands"]`. A preprocessing that wants them
calls `read(count)`; any other sees the picture.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from io import BufferedIOBase
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from unweave.errors import DataError

File: TypeAlias = "str | os.PathLike[str] | BufferedIOBase"

_BANDS = 16
"""How many times the pixels that an image may have are the numbers that it may have, in all its bands."""

_ORIENTATION = 274
_HALF = 0.5


class Bands:
    """The numbers of a file.

    Args:
        values: `[height, width]`, `[height, width, band]`; or a function that reads them when they are asked for.
        name: The file, for messages.
        only: Whether the picture beside them merely stands for them, so that a model of pictures must not see it.
        either: Whether the bands may as well come first, `[band, height, width]`.
        pages: Reads the file's pages, one band each, where it has several.
    """

    def __init__(
        self,
        values: np.ndarray | Callable[[], np.ndarray],
        *,
        name: str,
        only: bool = False,
        either: bool = False,
        pages: Callable[[], np.ndarray] | None = None,
    ) -> None:
        self._values, self._name, self._only, self._either, self._pages = values, name, only, either, pages
        self._read = False

    @property
    def values(self) -> np.ndarray:
        """The numbers as the file holds them.

        Raises:
            DataError: They cannot be read.
        """
        return self._of(self._values) if callable(self._values) else self._values

    def _of(self, read: Callable[[], np.ndarray]) -> np.ndarray:
        try:
            return read()
        except DataError as error:
            raise DataError(error.what, where=self._name, cure=error.cure) from error
        except Exception as error:  # whatever the library trips over
            raise DataError(f"The bands cannot be decoded: {error}.", where=self._name) from error

    def read(self, count: int) -> np.ndarray:
        """The numbers, `[height, width, band]`.

        Args:
            count: How many bands are wanted.

        Raises:
            DataError: The file has another number of bands.
        """
        self._read = True
        values = self.values
        if values.ndim == 2:
            values = values[..., None]
        found = [values] if values.shape[-1] == count else []
        if not found and self._either and values.shape[0] == count:
            found = [np.moveaxis(values, 0, -1)]
        if not found and self._pages is not None:
            pages = self._of(self._pages)
            found, values = ([pages] if pages.shape[-1] == count else []), pages
        if not found:
            raise self._other(values.shape, count)
        return found[0]

    def check(self, channels: int | None) -> None:
        """After a preprocessing: refuse one that saw only a picture which stands for other numbers.

        Args:
            channels: What the model takes, for the message.

        Raises:
            DataError: It did.
        """
        if self._only and not self._read:
            raise self._other(self.values.shape, channels)

    def _other(self, shape: tuple[int, ...], count: int | None) -> DataError:
        takes = "the model takes pictures" if count is None else f"the model takes {count}"
        cure = (
            "give the model `preprocess=unweave.models.preprocessing.bands(mean, std, size)` with a mean and a "
            "deviation for each band of the files, or give files with the model's bands"
        )
        if self._either:
            what = f"The array is {' x '.join(map(str, shape))}, and {takes} bands, first or last."
            return DataError(what, where=self._name, cure=cure)
        bands = shape[2] if len(shape) == 3 else 1
        return DataError(f"The image has {bands} bands, and {takes}.", where=self._name, cure=cure)


def array(source: File) -> np.ndarray:
    """The array of a `.npy` file, of two axes or three; of pickled objects there are none.

    Raises:
        ValueError: It is damaged, or holds something else than numbers.
    """
    if isinstance(source, BufferedIOBase):
        source.seek(0)
    found = np.load(source, mmap_mode=None if isinstance(source, BufferedIOBase) else "r", allow_pickle=False)
    if (
        not isinstance(found, np.ndarray)
        or found.dtype.kind not in "buif"
        or found.ndim not in (2, 3)
        or not found.size
    ):
        raise ValueError("it is no array of numbers [height, width], [height, width, band] or [band, height, width]")
    return found


def banded(values: np.ndarray) -> np.ndarray:
    """An array with the bands last, where it has three axes: the shorter of the first and the last are they."""
    return np.moveaxis(values, 0, -1) if values.ndim == 3 and values.shape[0] < values.shape[-1] else values


def tiff(source: File, *, limit: float, pages: bool = False) -> np.ndarray:
    """The numbers of a TIFF's first page, `[height, width]` or `[height, width, band]`; or of all its pages as bands.

    Raises:
        DataError: The library that reads it is missing, or it is too large.
        Exception: Whatever the library trips over.
    """
    try:
        import tifffile
    except ImportError as error:
        raise DataError("The bands of this TIFF need a library.", cure="pip install 'unweave[tiff]'") from error
    if isinstance(source, BufferedIOBase):
        source.seek(0)
    with tifffile.TiffFile(source) as file:
        first = file.pages.first
        whole = [page for page in file.pages if page.shape == first.shape and not page.is_reduced] if pages else [first]
        within(first.imagewidth, first.imagelength, limit, bands=first.samplesperpixel * len(whole))
        if first.axes not in ("YX", "YXS", "SYX"):
            raise ValueError(f"its axes are {first.axes}, not rows, columns and bands")
        try:
            values = np.stack([page.asarray() for page in whole], -1) if len(whole) > 1 else first.asarray()
        except (KeyError, ValueError, ImportError) as error:
            if "imagecodecs" not in str(error) and not isinstance(error, ImportError):
                raise
            raise DataError(
                f"The TIFF is compressed ({first.compression.name}), which needs a library.",
                cure="pip install imagecodecs",
            ) from error
        turn = first.tags.get(_ORIENTATION)
    values = np.moveaxis(values, 0, -1) if first.axes == "SYX" else values
    return upright(values, 1 if turn is None else int(turn.value))


def upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Rows and columns as the EXIF orientation of a file has them."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    rows, columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return values[:: -1 if rows else 1, :: -1 if columns else 1]


def tiff_pages(image: Image.Image) -> int:
    """The pages of a TIFF, smaller versions and masks of one left out."""
    pages = 0
    for number in range(getattr(image, "n_frames", 1)):
        image.seek(number)
        pages += not int(image.tag_v2.get(254, 0)) & 5  # type: ignore[attr-defined]
    image.seek(0)
    return max(1, pages)


def png_colours(opened: Callable[[], Image.Image]) -> np.ndarray:
    """The numbers of a PNG of 16-bit colours, `[height, width, band]`.

    Pillow unpacks the upper byte of each number alone; told that the bytes lie the other way round, the lower one.

    Args:
        opened: The file, opened by Pillow anew.
    """
    upper: Any
    lower: Any
    with opened() as upper, opened() as lower:
        orientation = int(upper.getexif().get(_ORIENTATION, 1))
        codec, extent, offset, unpacked = lower.tile[0]
        lower.tile = [(codec, extent, offset, unpacked.replace("16B", "16L"))]
        return upright(np.asarray(upper).astype(np.uint16) << 8 | np.asarray(lower), orientation)


def png_depth(source: File) -> tuple[int, int | None]:
    """The bits of a PNG, and how many of them are said to mean something (`sBIT`)."""
    file: Any = source if isinstance(source, BufferedIOBase) else open(source, "rb")  # noqa: PTH123, SIM115
    try:
        file.seek(8)
        depth, significant = 8, None
        while len(head := file.read(8)) == 8 and head[4:] not in (b"IDAT", b"IEND"):
            length = int.from_bytes(head[:4], "big")
            content = file.read(length) if head[4:] in (b"IHDR", b"sBIT") else b""
            if head[4:] == b"IHDR":
                depth = content[8]
            elif content:
                significant = max(content[:3])
            file.seek(length - len(content) + 4, os.SEEK_CUR)
        return depth, significant
    finally:
        if file is not source:
            file.close()


def said_white(image: Image.Image) -> float | None:
    """The value that is white by a file's tags; None where they do not say it.

    A TIFF has the bits of its samples, the largest value that a sample can have (`SMaxSampleValue`), or the largest
    that one has (`MaxSampleValue`, which is taken for the bits that it needs).
    """
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return None
    largest, used = (_number(tags.get(tag)) for tag in (341, 281))
    if largest is not None and largest > 0:
        return largest
    if used is not None and 0 < used < 2**32:
        return float(2 ** int(used).bit_length() - 1)
    bits = _number(tags.get(258))
    return float(2**bits - 1) if bits is not None and bits in (10, 12, 14) else None


def _number(value: Any) -> float | None:
    first = max(value, default=None) if isinstance(value, tuple) else value
    return None if first is None else float(first)


def unscaled(values: np.ndarray, significant: int | None) -> float | None:
    """What is white in a PNG that means fewer bits than it has: its values are to be spread over all bits, and where
    they were not, the largest of those bits; None where they were, or nothing is said.
    """
    if significant is None or not 8 < significant < 16 or int(values.max()) >= 2**significant:
        return None
    rest = values & (2 ** (16 - significant) - 1)
    spread = (rest == 0) | (rest == values >> significant)
    return None if spread.all() else float(2**significant - 1)


def is_transparency(alpha: np.ndarray) -> bool:
    """Whether a band that a TIFF marks as transparency looks like it: something is opaque, and most is all or nothing.

    Libraries mark any fourth band so unless told otherwise, near infrared as well.
    """
    opaque, clear = (alpha == 255).mean(), (alpha == 0).mean()
    return bool(opaque > 0 and opaque + clear > _HALF)


def within(width: int, height: int, limit: float, *, bands: int = 1) -> None:
    """Refuse an image that is too large to decode safely.

    Raises:
        DataError: It is; the message has the option that lets it through.
    """
    if width * height > limit or width * height * bands > _BANDS * limit:
        most = max(width * height, -(-width * height * bands // _BANDS))
        raise DataError(
            f"The image is too large to decode safely: {width:,} x {height:,} pixels"
            + (f" in {bands} bands." if bands > 1 else "."),
            cure=f"let it through with `max_pixels={most}` (`--max-pixels {most}`), or make it smaller",
        )
