"""Image sets that lie in larger files: WebDataset tars, and datasets of Hugging Face."""

from __future__ import annotations

import io
import json
import tarfile
import threading
from pathlib import Path
from typing import Any

from PIL import Image

from unweave.errors import DataError, UnweaveError
from unweave.hub import fetching
from unweave.images.decoding import picture_of
from unweave.images.imageset import Field, ImageSet, columns
from unweave.images.read import SUFFIXES
from unweave.images.reading import Reading
from unweave.notation import LARGEST, parse_json

_WHOLE = "use tars that are whole and not compressed"


def webdataset(path: str, reading: Reading) -> ImageSet:
    """Tars of samples, as WebDataset keeps them: files of one name and several endings are one sample.

    An image's id is the tar's name and the sample's. Text beside it (`.cls`, `.txt`) and the fields of a `.json` file
    become fields; what such a file calls `id` or `bytes` becomes `json_id` or `json_bytes`. Tars are read through once,
    for where their files lie; they must not be compressed.

    Args:
        path: A tar, a folder of tars, or a pattern such as `train-*.tar`.
        reading: How its images are read.

    Raises:
        DataError: There is no such tar, or one is damaged or compressed.
    """
    named = Path(path)
    found = named.glob("*.tar") if named.is_dir() else named.parent.glob(named.name)
    files = sorted(str(file) for file in found if file.is_file())
    if not files:
        raise DataError("There are no tars here.", where=path, cure="name a tar, or a folder or pattern of tars")
    samples: list[tuple[str, str, int, int, dict[str, Field]]] = []
    for file in files:
        samples += _samples(file, Path(file).stem)
    names = list(dict.fromkeys(name for *_, fields in samples for name in fields))
    rows: dict[str, list[Field]] = {"id": [own for own, *_ in samples]}
    rows |= {name: [fields.get(name) for *_, fields in samples] for name in names}
    rows["bytes"] = [size for *_, size, _ in samples]

    def read(row: int) -> Image.Image:
        own, file, offset, size, _ = samples[row]
        with Path(file).open("rb") as tar:
            tar.seek(offset)
            return picture_of(io.BytesIO(tar.read(size)), own, reading)

    return ImageSet(path, columns(rows, where=path), read, reading=reading)


def _samples(file: str, shard: str) -> list[tuple[str, str, int, int, dict[str, Field]]]:
    images: dict[str, tuple[int, int]] = {}
    known: dict[str, dict[str, Field]] = {}
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                folder, _, last = member.name.rpartition("/")
                stem, _, ending = last.partition(".")
                name = f"{folder}/{stem}" if folder else stem
                if not member.isfile() or not stem:
                    continue
                if f".{ending.lower()}" in SUFFIXES:
                    if member.issparse():
                        raise DataError("An image in a tar has holes.", where=f"{file}, {member.name}", cure=_WHOLE)
                    images.setdefault(name, (member.offset_data, member.size))
                elif ending in ("cls", "txt", "json"):
                    known.setdefault(name, {}).update(_said(tar, member, ending, file))
    except DataError:
        raise
    # Headers hold numbers and names of any kind, and a damaged one raises whatever its parsing trips over.
    except Exception as error:
        raise DataError(f"The tar cannot be read: {error}.", where=file, cure=_WHOLE) from error
    return [(f"{shard}/{name}", file, *at, known.get(name, {})) for name, at in images.items()]


def _said(tar: tarfile.TarFile, member: tarfile.TarInfo, ending: str, file: str) -> dict[str, Field]:
    try:
        if member.size > LARGEST:
            raise ValueError(f"it has more than {LARGEST >> 20} MB")
        inner = tar.extractfile(member)
        assert inner is not None
        content = inner.read()
        if ending == "json":
            said = parse_json(content)
        else:
            text = content.decode().strip()
            number = int(text) if ending == "cls" and text.isdecimal() else None
            return {"caption": text} if ending == "txt" else {"label": number if str(number) == text else text}
    except ValueError as error:
        raise DataError(
            f"What a tar says of an image cannot be read: {error}.",
            where=f"{file}, {member.name}",
            cure="mend this member, or leave it out of the tar",
        ) from error
    fields = said if isinstance(said, dict) else {"json": said}
    return {
        f"json_{name}" if name in ("id", "bytes") else name: value if isinstance(value, Field) else json.dumps(value)
        for name, value in fields.items()
    }


def huggingface(name: str, split: str | None, reading: Reading) -> ImageSet:
    """A dataset of Hugging Face with a column of images, from a folder or from the hub.

    A column of classes becomes `label` in words; other plain columns keep their names. The id is a column `id` or
    `image_id` where there is one whose values differ, else the row's number.

    Args:
        name: The folder that `save_to_disk` wrote, or the name on the hub (`ORG/NAME`).
        split: Which split; needed where there are several.
        reading: How its files are read.

    Raises:
        DataError: The library is not installed, there is no such dataset or split, or it has no images.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError("Datasets of Hugging Face need a library.", cure="pip install 'unweave[hf]'") from error
    try:
        if Path(name).is_dir():
            found = datasets.load_from_disk(name)
        else:
            with fetching(name, cure="go online once, or name a folder that `save_to_disk` wrote"):
                found = datasets.load_dataset(name)
    except UnweaveError as error:
        raise DataError(error.what, where=name, cure=error.cure) from error
    # Whatever the hub or the reading of a file trips over.
    except Exception as error:
        raise DataError(f"The dataset cannot be loaded: {error}", where=name) from error
    if isinstance(found, datasets.DatasetDict):
        if split is None and len(found) == 1:
            split = next(iter(found))
        if split not in found:
            raise DataError(
                f"The dataset has no split {split!r}." if split else "The dataset has several splits.",
                where=name,
                cure=f"choose one of {', '.join(found)}",
            )
        found = found[split]
    kinds = found.features
    image = next((column for column, kind in kinds.items() if isinstance(kind, datasets.Image)), None)
    if image is None:
        raise DataError("The dataset has no column of images.", where=name, cure=f"its columns are {list(kinds)}")
    found = found.cast_column(image, datasets.Image(decode=False))
    lock = threading.Lock()
    rows: dict[str, list[Field]] = {"id": _row_ids(found, split)}
    if split is not None:
        rows["split"] = [split] * len(found)
    for column, kind in kinds.items():
        if isinstance(kind, datasets.ClassLabel):
            rows["label"] = [None if one is None or one < 0 else kind.int2str(one) for one in found[column]]
        elif isinstance(kind, datasets.Value) and column not in ("id", "image_id"):
            rows[column] = [one if isinstance(one, Field) else str(one) for one in found[column]]

    def read(row: int) -> Image.Image:
        with lock:  # a dataset is not made for several threads
            cell: dict[str, Any] = found[row][image]
        content = cell["bytes"]
        return picture_of(io.BytesIO(content) if content is not None else cell["path"], str(rows["id"][row]), reading)

    return ImageSet(name, columns(rows, where=name), read, mark=found._fingerprint, reading=reading)


def _row_ids(found: Any, split: str | None) -> list[Field]:
    for column in ("id", "image_id"):
        if column in found.column_names:
            values = [str(value) for value in found[column]]
            if len(set(values)) == len(values):
                return list(values)
    width = len(str(len(found) - 1))
    return [f"{split}/{row:0{width}}" if split else f"{row:0{width}}" for row in range(len(found))]
