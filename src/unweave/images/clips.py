"""Clips: image sets whose images are folders of frames."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import overload

from PIL import Image

from unweave.errors import DataError
from unweave.images.decoding import picture_of
from unweave.images.folders import SPLITS
from unweave.images.imageset import Field, ImageSet, columns
from unweave.images.read import find_images
from unweave.images.reading import Reading


class Frames(Sequence[Image.Image]):
    """The frames of a clip, each read when it is asked for.

    The picture of a clip (its middle frame) carries them along, as `picture.info["frames"]`; a preprocessing takes
    those that its model wants.
    """

    def __init__(self, files: Sequence[Path], name: str, reading: Reading) -> None:
        self._files, self._name, self._reading = files, name, reading
        self._taken: list[int] = []

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, place: int) -> Image.Image: ...
    @overload
    def __getitem__(self, place: slice) -> list[Image.Image]: ...
    def __getitem__(self, place: int | slice) -> Image.Image | list[Image.Image]:
        """A frame; raises an DataError where it cannot be read."""
        if isinstance(place, slice):
            return [self[one] for one in range(len(self))[place]]
        self._taken.append(range(len(self))[place])
        return picture_of(self._files[place], None, self._reading)

    def check(self, channels: int | None) -> None:
        """After a preprocessing: say that not all frames were taken, or some twice; refuse one that took none.

        Args:
            channels: What the model takes; frames have as many as they have.

        Raises:
            DataError: It took none, so that a model of pictures saw one of them.
        """
        if not self._taken:
            raise DataError(
                f"This is a clip of {len(self)} frames, and the model takes one picture.",
                where=self._name,
                cure="open the frames as pictures (`folder:FOLDER`), or use a model of clips",
            )
        count, taken = len(self._taken), len(set(self._taken))
        if taken < len(self):
            self._reading.notes.say("frames", f"{self._name}: {taken} of its {len(self)} frames are taken, evenly.")
        elif taken < count:
            self._reading.notes.say(
                "frames", f"{self._name}: its {taken} frames stand for {count}; some are taken several times."
            )


def clips(path: str, reading: Reading) -> ImageSet:
    """The folders below a folder that hold frames; each is one image, whose `id` is its path.

    Frames are in the order of their names, numbers in them by value: `frame2.jpg` comes before `frame10.jpg`. A first
    folder that is called like a split gives `split`; the next one that all clips lie in gives `label`. `frames` is
    their number. Where the folder itself holds frames and no folders, it is one clip.

    Args:
        path: The folder.
        reading: How frames are read.

    Raises:
        DataError: See `find_images`.
    """
    root, frames = Path(path), dict[str, list[Path]]()
    if not root.is_dir():
        raise DataError("There is no such folder.", where=path, cure="name the folder that holds the clips' folders")
    for image in find_images(root):
        frames.setdefault(image.id.rpartition("/")[0], []).append(image.path)
    if "" in frames and len(frames) > 1:
        raise DataError(
            f"Beside the clips' folders there are {len(frames[''])} images.",
            where=str(frames[""][0]),
            cure="put the frames of each clip into a folder of its own, or leave the images out",
        )
    names = [name or root.resolve().name for name in frames]
    files = [sorted(own, key=lambda file: _natural(file.name)) for own in frames.values()]
    parts = [name.split("/")[:-1] for name in names]
    rows: dict[str, Sequence[Field]] = {"id": names}
    if all(own and own[0].lower() in SPLITS for own in parts):
        rows["split"] = [SPLITS[own[0].lower()] for own in parts]
        parts = [own[1:] for own in parts]
    if all(parts):
        rows["label"] = [own[0] for own in parts]
    rows["frames"] = [len(own) for own in files]
    rows["bytes"] = [sum(file.stat().st_size for file in own) for own in files]

    def read(row: int) -> Image.Image:
        own = files[row]
        picture = picture_of(own[len(own) // 2], None, reading)
        picture.info["frames"] = Frames(own, names[row], reading)
        return picture

    return ImageSet(path, columns(rows, where=path), read, reading=reading)


def _natural(name: str) -> list[tuple[int, int | str]]:
    """A name as words and numbers, which are compared as such."""
    words = re.split(r"(\d+)", name)
    return [(0, int(word)) if number % 2 else (1, word) for number, word in enumerate(words)]
