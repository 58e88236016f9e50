"""One image file as the upright 8-bit RGB picture that a viewer would show, whatever it holds.

Files come in more shapes than models take: 16-bit scans, CMYK prints, palettes with a transparent entry, animations,
photographs held sideways, satellites' bands, arrays. What is taken for granted on the way is said, once a set
(`Reading.notes`); what would have to be guessed, such as floating-point values without a known range, is refused.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import cache, partial
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from unweave.errors import DataError
from unweave.images.bands import (
    Bands,
    File,
    array,
    banded,
    is_transparency,
    png_colours,
    png_depth,
    said_white,
    tiff,
    tiff_pages,
    unscaled,
    within,
)
from unweave.images.reading import Reading

_DEEP = 65535.0
"""What is white in 16 bits."""

_DARK = 0.1
"""The share of the range that an image uses at least, unless something is wrong."""

_UNLIMITED = threading.Lock()


def picture_of(source: File, name: str | None, reading: Reading) -> Image.Image:
    """The upright RGB picture of a file; its own numbers lie beside it where they are more (`Bands`).

    Args:
        source: Where the file lies, or the file itself.
        name: What to call it in messages; the path if not given.
        reading: How to read it.

    Raises:
        DataError: See `unweave.images.read_image`.
    """
    where = name or str(source)
    decoding = _Decoding(source, where, reading)
    try:
        if isinstance(source, (str, os.PathLike)) and Path(source).stat().st_size == 0:
            raise DataError("The file is empty.", where=where)
        picture = decoding.run()
    except DataError as error:
        raise DataError(error.what, where=where, cure=error.cure) from None
    except UnidentifiedImageError as error:
        raise DataError("This is not an image in a known format.", where=where) from error
    # Decoders of damaged files raise whatever their parsing trips over, so no narrower list is complete.
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"The image cannot be decoded: {reason.strip(' .')}.", where=where) from error
    for kind, text in decoding.noticed.items():
        reading.notes.say(kind, f"{where}: {text}")
    return picture


class _Decoding:
    """One file on its way to a picture, and what is noticed on the way, by kind."""

    def __init__(self, source: File, name: str, reading: Reading) -> None:
        self.source, self.name, self.reading = source, name, reading
        self.noticed: dict[str, str] = {}
        limit = Image.MAX_IMAGE_PIXELS
        self.limit = float(reading.max_pixels or (float("inf") if limit is None else 2 * limit))

    def run(self) -> Image.Image:
        """The picture."""
        head = _head(self.source)
        if head.startswith(b"\x93NUMPY"):
            values = array(self.source)
            height, width, *bands = banded(values).shape
            within(width, height, self.limit, bands=bands[0] if bands else 1)
            return self.of_array(np.asarray(values), either=values.ndim == 3)
        try:
            image = self.opened()
        except UnidentifiedImageError:
            if head[128:] == b"DICM":
                raise DataError(
                    "This is a DICOM file, which is not read here.",
                    cure="save its numbers, `numpy.save('a.npy', pydicom.dcmread(path).pixel_array)`, and name their "
                    "`white`: 4095 where 12 bits are stored",
                ) from None
            if head[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
                raise
            return self.of_array(tiff(self.source, limit=self.limit))
        with image:
            within(*image.size, self.limit)
            try:
                image.load()
            # Pillow opens TIFFs of many bands that lie one after the other, and only then finds that it cannot.
            except Exception:
                if image.format != "TIFF" or int(image.tag_v2.get(277, 1)) < 4:  # type: ignore[attr-defined]
                    raise
                return self.of_array(tiff(self.source, limit=self.limit))
            return self.of_image(image)

    def opened(self) -> Image.Image:
        """The file, opened by Pillow."""
        if isinstance(self.source, BufferedIOBase):
            self.source.seek(0)
        if self.reading.max_pixels is None:
            try:
                return Image.open(self.source, formats=formats())  # type: ignore[arg-type]  # it asks for less than IO
            except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
                size = next((int(word) for word in str(error).replace("(", " ").split() if word.isdigit()), 10**9)
                raise DataError(
                    f"The image is too large to decode safely: {error}",
                    cure=f"let it through with `max_pixels={size}` (`--max-pixels {size}`), or make it smaller",
                ) from error
        with _UNLIMITED:  # the limit is Pillow's own for all of the process, and only looked at while a file is opened
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                return Image.open(self.source, formats=formats())  # type: ignore[arg-type]
            finally:
                Image.MAX_IMAGE_PIXELS = limit

    # -- arrays, and TIFFs of many bands

    def of_array(self, values: np.ndarray, *, either: bool = False) -> Image.Image:
        """The picture of one or three bands; of others the first three, stretched, which merely stand for them."""
        last = banded(values) if either else values
        if last.ndim == 2 or last.shape[-1] in (1, 3):
            picture = Image.fromarray(_three(self.eight_bits(last)))
            only = False
        else:
            picture, only = Image.fromarray(_three(_stretched(last[..., : 3 if last.shape[-1] > 2 else 1]))), True
        picture.info["bands"] = Bands(values, name=self.name, only=only, either=either)
        return picture

    # -- what Pillow reads

    def of_image(self, image: Image.Image) -> Image.Image:
        """The picture of a decoded image of any mode."""
        upright = _upright(image)
        samples = int(image.tag_v2.get(277, 1)) if image.format == "TIFF" else 0  # type: ignore[attr-defined]
        pages = self.pages(image)
        if samples > 4 or (samples == 2 and image.mode == "L"):
            return self.of_array(tiff(self.source, limit=self.limit))
        stack = partial(tiff, self.source, limit=self.limit, pages=True) if samples == 1 and pages > 1 else None
        if image.mode.startswith(("I", "F")):
            values = np.asarray(upright)
            shown = self.eight_bits(values, self.white(image, values))
            if image.format == "TIFF" and image.tag_v2.get(262) == 0:  # type: ignore[attr-defined]
                shown = 255 - shown  # 0 is white; of 8 bits Pillow sees to it
            picture = Image.fromarray(_three(shown))
            picture.info["bands"] = Bands(values, name=self.name, pages=stack)
            return picture
        whole = self.whole(image)
        coloured = self.without_data(upright, image) if samples == 4 else upright
        deep = None if whole is None else self.of_deep(coloured, image, whole)
        picture = rgb(coloured) if deep is None else Image.fromarray(deep)
        if coloured.mode in ("RGBA", "LA", "RGBa", "La") and np.asarray(coloured)[..., -1].min() < 255:
            number = "fourth" if len(coloured.getbands()) == 4 else "second"
            self.noticed["transparency"] = f"its {number} band was taken for transparency, and laid on white."
        divided = samples == 4 and image.tag_v2.get(338, ())[:1] == (1,)  # type: ignore[attr-defined]
        if whole is not None or divided or (samples == 4 and upright.mode == "RGB"):
            picture.info["bands"] = Bands(whole or partial(tiff, self.source, limit=self.limit), name=self.name)
        elif upright.mode in ("RGBA", "LA") or stack is not None:
            picture.info["bands"] = Bands(partial(np.asarray, upright), name=self.name, pages=stack)
        return picture

    def pages(self, image: Image.Image) -> int:
        """How many pages or frames a file has; all but the first are left out."""
        try:
            pages = tiff_pages(image) if image.format == "TIFF" else getattr(image, "n_frames", 1)
        # The first is whole; that the others are damaged does not matter.
        except Exception:
            return 1
        if pages > 1 and image.format != "MPO":  # in whose further frames a camera keeps what belongs to the first
            self.noticed["pages"] = f"only the first of its {pages} {'pages' if image.format == 'TIFF' else 'frames'}."
        return pages

    def whole(self, image: Image.Image) -> Callable[[], np.ndarray] | None:
        """What reads colours of more than 8 bits, of which Pillow keeps the upper 8; None where there are none."""
        if image.mode not in ("RGB", "RGBA"):
            return None
        if image.format == "TIFF" and max(image.tag_v2.get(258, (8,))) > 8:  # type: ignore[attr-defined]
            return partial(tiff, self.source, limit=self.limit)
        if image.format == "PNG" and png_depth(self.source)[0] > 8:
            return partial(png_colours, self.opened)
        return None

    def without_data(self, upright: Image.Image, image: Image.Image) -> Image.Image:
        """A TIFF of four bands without the fourth, unless that is transparency: it has to be marked as such, and look
        like it.
        """
        marked = image.tag_v2.get(338, (0,))  # type: ignore[attr-defined]
        if upright.mode != "RGBA":
            if upright.mode == "RGB":
                self.noticed["fourth band"] = "its fourth band is data, and left out of the picture."
            return upright
        if marked[:1] in ((1,), (2,)) and is_transparency(np.asarray(upright)[..., 3]):
            return upright
        self.noticed["fourth band"] = "its fourth band does not look like transparency, and is left out of the picture."
        if marked[:1] == (1,):  # Pillow has divided the colours by it
            values = tiff(self.source, limit=self.limit)[..., :3]
            return Image.fromarray(values if values.dtype == np.uint8 else (values >> 8).astype(np.uint8))
        return Image.merge("RGB", upright.split()[:3])

    def of_deep(
        self, image: Image.Image, source: Image.Image, whole: Callable[[], np.ndarray]
    ) -> UInt8[np.ndarray, "height width 3"] | None:
        """Colours of more than 8 bits, scaled, where the upper 8 are not what is to be shown; else None."""
        white = self.reading.white or said_white(source)
        significant = png_depth(self.source)[1] if source.format == "PNG" else None
        if white is None and significant is None and _used(np.asarray(image)[..., :3], 255.0) >= _DARK:
            return None
        values = whole()[..., :3]
        shown = _three(self.eight_bits(values, unscaled(values, significant) if white is None else white))
        if image.mode == "RGB":
            return shown
        alpha = np.asarray(image)[..., -1:] / 255
        return np.rint(shown * alpha + 255 * (1 - alpha)).astype(np.uint8)

    # -- numbers

    def white(self, image: Image.Image, values: np.ndarray) -> float | None:
        """What a file of one band says is white."""
        if image.format == "PNG":
            return unscaled(values, png_depth(self.source)[1])
        return said_white(image)

    def eight_bits(
        self, values: np.ndarray, said: float | int | None = None
    ) -> UInt8[np.ndarray, "height width *band"]:
        """Numbers as 0 ... 255.

        Args:
            values: Of one band or three.
            said: What the file says is white.

        Raises:
            DataError: Which of them is white is not known.
        """
        if values.dtype in (np.uint8, np.bool_):
            return values.astype(np.uint8) * (1 if values.dtype == np.uint8 else 255)
        low, high = float(values.min()), float(values.max())
        usual = 1.0 if values.dtype.kind == "f" else _DEEP
        white = self.reading.white or (said if said is not None and high <= said else usual)
        if not (np.isfinite(low) and np.isfinite(high) and (self.reading.white or (low >= 0 and high <= white))):
            kind = "floating-point numbers" if values.dtype.kind == "f" else f"{8 * values.dtype.itemsize}-bit integers"
            raise DataError(
                f"The image holds {kind} from {low:g} to {high:g}, and which of them is white is unknown.",
                cure=f"name it with `white=...` (`--white`), scale the values to 0 ... {white:g}, or save 8 bits",
            )
        if white == _DEEP and not self.reading.white and high > 0 and _used(values, _DEEP) < _DARK:
            cure = "scale it to the whole range"
            if high < _DARK * _DEEP:
                likely = 2 ** int(high).bit_length() - 1
                cure = f"if {likely} is white, say so with `white={likely}` (`--white {likely}`)"
            self.noticed["range"] = f"its values are {low:g} to {high:g} of 0 to {white:g}: {cure}."
        exact = values.astype(np.float64 if values.dtype.itemsize > 2 else np.float32)
        return np.rint(exact.clip(0, white) * (255 / white)).astype(np.uint8)


def _used(values: np.ndarray, white: float) -> float:
    """The share of a range that is used: what is dark all over, or differs nowhere by more."""
    low, high = float(values.min()), float(values.max())
    return min(high, high - low or high) / white


def _three(values: UInt8[np.ndarray, "height width *band"]) -> UInt8[np.ndarray, "height width 3"]:
    values = values if values.ndim == 3 else values[..., None]
    return np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)))


def _stretched(values: np.ndarray) -> UInt8[np.ndarray, "height width band"]:
    """Each band from its 2nd to its 98th percentile, for the eye alone."""
    known = np.where(np.isfinite(values), values, np.nan).astype(np.float64)
    if np.isnan(known).all():
        return np.zeros(values.shape, np.uint8)
    low, high = np.nanpercentile(known, (2, 98), axis=(0, 1))
    spread = (np.nan_to_num(known) - low) / np.maximum(high - low, 1e-12)
    return np.rint(255 * spread.clip(0, 1)).astype(np.uint8)


def _head(source: File) -> bytes:
    if isinstance(source, BufferedIOBase):
        source.seek(0)
        return source.read(132)
    with Path(source).open("rb") as file:
        return file.read(132)


@cache
def formats() -> list[str]:
    """Whatever Pillow reads by itself: for PostScript it would start another program, whatever the file is called."""
    Image.init()
    return [name for name in Image.OPEN if name != "EPS"]


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    # The pixels are whole; a damaged tag beside them only means that no rotation is known.
    except Exception:
        return image.copy()


def rgb(image: Image.Image) -> Image.Image:
    """A decoded picture of 8 bits as RGB, with what is transparent laid on white."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
