"""Finding image files and reading them as upright 8-bit RGB.

Files come in more shapes than models take: 16-bit greyscale scans, CMYK prints, palettes with a transparent entry,
animations, photographs held sideways. `read_image` maps each to the RGB picture that a viewer would show, and refuses
what it would have to guess, such as floating-point values without a known range.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from unweave.errors import DataError

# fmt: off
SUFFIXES = frozenset((
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
))
# fmt: on
"""What counts as an image inside a folder, in either case. A file that is named itself is read whatever its suffix."""


@dataclass(frozen=True)
class ImageFile:
    """An image on disk.

    Attributes:
        id: The path below the folder it was found in, with forward slashes; the file's name where it was given itself.
        path: Where it lies.
    """

    id: str
    path: Path

    def read(self) -> Image.Image:
        """The upright RGB picture (see `read_image`)."""
        return read_image(self.path)


def find_images(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[ImageFile]:
    """All images named by files and folders, folders searched to the bottom.

    The order is that of the given paths, and within a folder that of the ids; hidden files and folders are passed
    over. A file met twice is kept once. Where two folders hold the same id, both put their own path in front of
    theirs.

    Args:
        paths: One path or several.

    Raises:
        DataError: A path does not exist or cannot be listed, or a folder holds no images.
    """
    roots = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    found: dict[str, tuple[Path, ImageFile]] = {}
    for root in map(Path, roots):
        for image in _below(root):
            found.setdefault(os.path.realpath(image.path), (root, image))
    if not found:
        raise DataError("No images were named.", cure="give image files or folders")
    counts = Counter(image.id for _, image in found.values())
    clashing = {root for root, image in found.values() if counts[image.id] > 1}
    return [
        replace(image, id=_printable(image.path.as_posix())) if root in clashing else image
        for root, image in found.values()
    ]


def _below(root: Path) -> list[ImageFile]:
    if root.is_file():
        return [ImageFile(_printable(root.name), root)]
    if not root.is_dir():
        raise DataError("There is no such file or folder.", where=str(root), cure="check the path to the images")
    images, others, visited = [], Counter[str](), set()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=_unlistable):
        real = os.path.realpath(folder)
        folders[:] = [] if real in visited else [name for name in folders if not name.startswith(".")]
        if real in visited:
            continue
        visited.add(real)
        for name in files:
            path = Path(folder, name)
            if name.startswith(".") or not path.is_file():
                continue
            if path.suffix.lower() in SUFFIXES:
                images.append(ImageFile(_printable(path.relative_to(root).as_posix()), path))
            else:
                others[path.suffix.lower() or "no suffix"] += 1
    if not images:
        kinds = ", ".join(f"{count} with {suffix}" for suffix, count in others.most_common(3))
        holds = f"It holds no images, only other files ({kinds})." if others else "The folder is empty."
        raise DataError(holds, where=str(root), cure="name a folder of photographs (JPEG, PNG, WebP, TIFF, ...)")
    return sorted(images, key=lambda image: image.id)


def _unlistable(error: OSError) -> None:
    raise DataError(f"A folder cannot be listed: {error.strerror}.", where=error.filename) from error


def _printable(path: str) -> str:
    """The path as text that every terminal and file can carry, for names that are not valid UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def read_image(source: str | os.PathLike[str] | BufferedIOBase, *, name: str | None = None) -> Image.Image:
    """One image file as upright 8-bit RGB.

    The EXIF rotation is applied, transparency is laid on white, 16-bit greyscale is scaled (65535 becomes 255), and
    of an animation the first frame is taken.

    Args:
        source: Where the file lies, or the file itself.
        name: What to call it in messages; the path if not given.

    Raises:
        DataError: The file is missing, empty, truncated, not an image, too large to decode safely, or holds numbers
            whose range is unknown.
    """
    where = name or str(source)
    try:
        if isinstance(source, (str, os.PathLike)) and Path(source).stat().st_size == 0:
            raise DataError("The file is empty.", where=where)
        with Image.open(source, formats=formats()) as image:  # type: ignore[arg-type]  # it asks for less than IO
            image.load()
            return rgb(_upright(image))
    except DataError as error:
        raise DataError(error.what, where=where, cure=error.cure) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"The image is too large to decode safely: {error}", where=where) from error
    except UnidentifiedImageError as error:
        raise DataError("This is not an image in a known format.", where=where) from error
    # Decoders of damaged files raise whatever their parsing trips over, so no narrower list is complete.
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"The image cannot be decoded: {reason.strip(' .')}.", where=where) from error


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
        return image


def rgb(image: Image.Image) -> Image.Image:
    """A decoded picture of any mode as 8-bit RGB."""
    if image.mode.startswith("I"):
        return _scaled(image, 65535, "32-bit integers")
    if image.mode == "F":
        return _scaled(image, 1, "floating-point numbers")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _scaled(image: Image.Image, white: int, kind: str) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= white):
        raise DataError(
            f"The image holds {kind} from {low:g} to {high:g}, and which of them is white is unknown.",
            cure=f"scale the values to 0 ... {white:g}, or save the image with 8 bits",
        )
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8)).convert("RGB")
