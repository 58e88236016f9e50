"""Finding image files, and reading them as upright 8-bit RGB."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from io import BufferedIOBase
from pathlib import Path

from PIL import Image

from unweave.errors import DataError
from unweave.images.decoding import picture_of
from unweave.images.reading import Reading

# fmt: off
SUFFIXES = frozenset((
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
))
# fmt: on
"""What counts as an image inside a folder, in either case. A file that is named itself is read whatever its suffix."""

ARRAYS = frozenset((".npy",))
"""What counts as one as well, in a folder that has no others: beside photographs arrays are something else."""


@dataclass(frozen=True)
class ImageFile:
    """An image on disk.

    Attributes:
        id: The path below the folder it was found in, with forward slashes; the file's name where it was given itself.
        path: Where it lies.
        reading: How it is read.
    """

    id: str
    path: Path
    reading: Reading = field(default_factory=Reading, compare=False, repr=False)

    def read(self) -> Image.Image:
        """The upright RGB picture (see `read_image`)."""
        return picture_of(self.path, None, self.reading)

    def as_code(self) -> str:
        """The Python that names it again."""
        options = "".join(f", {name}={value!r}" for name, value in self.reading.options.items())
        return f"unweave.open_images({str(self.path)!r}{options})[0]"

    def as_options(self, name: str) -> list[str]:
        """The words of a command line that name it again."""
        return [str(self.path), *self.reading.as_options()]


def find_images(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    reading: Reading | None = None,
) -> list[ImageFile]:
    """All images named by files and folders, folders searched to the bottom.

    The order is that of the given paths, and within a folder that of the ids; hidden files and folders are passed
    over. A file met twice is kept once. Where two folders hold the same id, both put their own path in front of
    theirs.

    Args:
        paths: One path or several.
        reading: How they are read.

    Raises:
        DataError: A path does not exist or cannot be listed, or a folder holds no images.
    """
    roots = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    images: dict[str, tuple[Path, ImageFile]] = {}
    for root in map(Path, roots):
        for image in _below(root):
            images.setdefault(os.path.realpath(image.path), (root, image))
    if not images:
        raise DataError("No images were named.", cure="give image files or folders")
    counts = Counter(image.id for _, image in images.values())
    clashing = {root for root, image in images.values() if counts[image.id] > 1}
    reading = reading or Reading()
    return [
        replace(image, id=_printable(image.path.as_posix()) if root in clashing else image.id, reading=reading)
        for root, image in images.values()
    ]


def _below(root: Path) -> list[ImageFile]:
    if root.is_file():
        return [ImageFile(_printable(root.name), root)]
    if not root.is_dir():
        raise DataError("There is no such file or folder.", where=str(root), cure="check the path to the images")
    images, arrays, others, visited = list[ImageFile](), list[ImageFile](), Counter[str](), set()
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
            if path.suffix.lower() in SUFFIXES | ARRAYS:
                kind = images if path.suffix.lower() in SUFFIXES else arrays
                kind.append(ImageFile(_printable(path.relative_to(root).as_posix()), path))
            else:
                others[path.suffix.lower() or "no suffix"] += 1
    images = images or arrays
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


def read_image(
    source: str | os.PathLike[str] | BufferedIOBase,
    *,
    name: str | None = None,
    white: float | int | None = None,
    max_pixels: int | None = None,
) -> Image.Image:
    """One image file as upright 8-bit RGB.

    The EXIF rotation is applied, transparency is laid on white, numbers of more than 8 bits are scaled (white becomes
    255), and of an animation or of several pages the first is taken. What is taken for granted so is said, as a
    `DataWarning`. Numbers that the picture does not hold (more bits, more than three bands) lie beside it as
    `picture.info["bands"]`, for `unweave.models.preprocessing.bands`.

    Args:
        source: Where the file lies, or the file itself: whatever Pillow reads, `.npy`, and, with `unweave[tiff]`, any
            TIFF.
        name: What to call it in messages; the path if not given.
        white: The value that is white, in files of more than 8 bits: 4095 for 12 bits. Where it is not given it is
            what the file's tags say, else the largest that fits (65535; 1 for floating-point numbers).
        max_pixels: The most pixels that an image may have, where Pillow's limit (about 179 million) is too low.

    Raises:
        ArgumentError: One of the numbers is not positive.
        DataError: The file is missing, empty, truncated, not an image, too large to decode safely, or holds numbers
            whose range is unknown.
    """
    return picture_of(source, name, Reading(white, max_pixels))
