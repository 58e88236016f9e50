"""Image sets that lie in folders: any folder, ImageNet in its usual layouts, and the two shapes of Waterbirds."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from unweave.errors import DataError
from unweave.images.decoding import picture_of
from unweave.images.imageset import Field, ImageSet, columns
from unweave.images.read import ImageFile, find_images
from unweave.images.reading import Reading
from unweave.images.tables import check_names, plain, read_csv
from unweave.notation import parse_xml

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""What folders of splits are called, and what the split is called then."""

KINDS = ("land", "water")
"""Of birds, and of what is behind them, in the order of Waterbirds' numbers."""


def folder(path: str, reading: Reading) -> ImageSet:
    """All images below a folder, or one image, sorted by path.

    A first folder that is called like a split gives `split`; the next one that all images of the set have gives
    `label`. `bytes` is the file's size.

    Raises:
        DataError: See `find_images`.
    """
    images = find_images(path, reading)
    parts = [image.id.split("/")[:-1] for image in images]
    rows: dict[str, Sequence[Field]] = {}
    if all(within and within[0].lower() in SPLITS for within in parts):
        rows["split"] = [SPLITS[within[0].lower()] for within in parts]
        parts = [within[1:] for within in parts]
    if all(parts):
        rows["label"] = [within[0] for within in parts]
    return from_files(path, images, rows, reading)


def from_files(
    origin: str, images: Sequence[ImageFile], rows: dict[str, Sequence[Field]], reading: Reading
) -> ImageSet:
    """An image set of files, to whose fields their sizes are added."""
    paths = [image.path for image in images]
    sizes = [_size(path) for path in paths]
    table = columns({"id": [image.id for image in images], **rows, "bytes": sizes}, where=origin)
    return ImageSet(origin, table, lambda row: picture_of(paths[row], None, reading), reading=reading)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (OSError, ValueError):  # reading it will say why
        return None


def imagenet(path: str, reading: Reading) -> ImageSet:
    """ImageNet as it is usually kept, with a `label` (the synset) and a `split`.

    Layouts: `train/n01440764/x.JPEG`, with or without the split's folder or `ILSVRC/Data/CLS-LOC` before it; and
    `val/ILSVRC2012_val_00000001.JPEG`, whose labels are read from `LOC_val_solution.csv` or from the annotations' XML
    files, where these lie beside it.

    Raises:
        DataError: An image has no label; see `find_images`.
    """
    root = Path(path)
    data = next((folder for folder in (root / "ILSVRC/Data/CLS-LOC", root / "Data/CLS-LOC") if folder.is_dir()), root)
    images = find_images(data, reading)
    known = _solutions(root, data)
    splits: list[Field] = []
    labels: list[Field] = []
    for image in images:
        inner = image.id.split("/")[:-1]
        splits.append(SPLITS.get(next(iter(inner), "").lower()))
        label = next((part for part in inner if re.fullmatch(r"n\d{8}", part)), None)
        labels.append(label or known.get(Path(image.id).stem))
    if None in labels and "test" not in splits:
        raise DataError(
            "The class of an image of ImageNet is not known.",
            where=images[labels.index(None)].id,
            cure="sort the images into folders of their classes, or put LOC_val_solution.csv beside them",
        )
    return from_files(path, images, {"split": splits, "label": labels}, reading)


def _solutions(root: Path, data: Path) -> dict[str, str]:
    """Image names to classes, from what is published beside the validation images."""
    for place in dict.fromkeys((root, data, data.parent)):
        table = place / "LOC_val_solution.csv"
        if table.is_file():
            rows = read_csv(table, ("ImageId", "PredictionString"))
            first = [(text.split() or [""])[0] for text in rows["PredictionString"]]
            if "" in first:
                raise DataError(
                    f"The prediction of {rows['ImageId'][first.index('')]!r} is empty.",
                    where=str(table),
                    cure="download the file again",
                )
            return dict(zip(rows["ImageId"], first, strict=True))
    known = {}
    for place in dict.fromkeys((root, data.parent.parent)):
        for note in sorted(place.glob("Annotations/CLS-LOC/val/*.xml")):
            try:
                found = parse_xml(note.read_bytes()).findtext("object/name")
            except (OSError, ValueError) as error:
                raise DataError(
                    f"The annotation cannot be read: {error}.", where=str(note), cure="download the file again"
                ) from error
            known.update({note.stem: found} if found else {})
    return known


def waterbirds(path: str, reading: Reading) -> ImageSet:
    """Waterbirds as published (`metadata.csv`), or cleaned (class folders, the background in the file's name).

    Fields: `label` (`land` or `water`: the bird), `place` (the background), `group` (2 x label + place, as published),
    and `split` where it is known.

    Raises:
        DataError: There is no such folder, or the table or a file's name is not of this shape.
    """
    root = Path(path)
    return _published(root, reading) if (root / "metadata.csv").is_file() else _cleaned(root, reading)


def _published(root: Path, reading: Reading) -> ImageSet:
    table = root / "metadata.csv"
    rows = read_csv(table, ("img_filename", "y", "place", "split"))
    images = [ImageFile(name, root / name) for name in rows["img_filename"]]
    birds, places = (_numbers(rows[name], 2, name, table) for name in ("y", "place"))
    splits = [("train", "val", "test")[number] for number in _numbers(rows["split"], 3, "split", table)]
    return from_files(str(root), images, _grouped(birds, places) | {"split": splits}, reading)


def _numbers(cells: Sequence[str], count: int, column: str, table: Path) -> list[int]:
    known = {str(number): number for number in range(count)}
    wrong = next((cell for cell in cells if cell not in known), None)
    if wrong is not None:
        raise DataError(
            f"This is not the table of Waterbirds: {column} is {wrong!r}.",
            where=str(table),
            cure=f"write {' or '.join(known)}, as published",
        )
    return [known[cell] for cell in cells]


def _cleaned(root: Path, reading: Reading) -> ImageSet:
    images = find_images(root, reading)
    birds, places, splits = [], [], []
    for image in images:
        *folders, name = image.id.lower().split("/")
        found = [KINDS.index(own) for own in _words(" ".join(folders).replace("bird", " "))]
        behind = [KINDS.index(own) for own in _words(re.sub(r"(land|water)[ _-]?bird", "", name))]
        if len(set(found)) != 1 or len(set(behind)) != 1:
            raise DataError(
                "The name does not tell the bird and the background.",
                where=image.id,
                cure="folders name the bird (landbird, waterbird), the file's name the background (land, water)",
            )
        birds.append(found[0])
        places.append(behind[0])
        splits.append(next((SPLITS[folder] for folder in folders if folder in SPLITS), None))
    rows = _grouped(birds, places)
    return from_files(str(root), images, rows if None in splits else rows | {"split": splits}, reading)


def _words(text: str) -> list[str]:
    return re.findall(r"(?<![a-z])(land|water)(?:background|bg)?s?(?![a-z])", text)


def _grouped(birds: list[int], places: list[int]) -> dict[str, Sequence[Field]]:
    groups = [2 * bird + place for bird, place in zip(birds, places, strict=True)]
    return {"label": [KINDS[bird] for bird in birds], "place": [KINDS[one] for one in places], "group": groups}


def manifest(path: str, reading: Reading) -> ImageSet:
    """A table of images (CSV or Parquet): `path`, and whatever fields there are; the `id` is the path if not given.

    Paths are relative to the table's folder, or absolute. In a CSV file a column is one of numbers where each is
    written as that number is written: `7` and `1.5` are, `007` and `1.50` are text.

    Raises:
        DataError: The table cannot be read, has no column `path` or one twice, or what is in it are no paths.
    """
    rows: dict[str, Any] = _parquet(path) if path.lower().endswith(".parquet") else _csv(path)
    files = rows.pop("path")
    for row, file in enumerate(files, start=1):
        if not isinstance(file, str) or not file or "\0" in file:
            raise DataError(
                "An image has no path." if file in (None, "") else f"This is not a path: {file!r}.",
                where=f"{path}, row {row}",
                cure="write paths as text, one for each image",
            )
    ids = [str(id_) for id_ in rows.pop("id", files)]
    images = [ImageFile(id_, Path(path).parent / str(file)) for id_, file in zip(ids, files, strict=True)]
    fields: dict[str, Sequence[Field]] = {
        name: [_field(cell) for cell in cells] for name, cells in rows.items() if name != "bytes"
    }
    return from_files(path, images, fields, reading)


def _csv(path: str) -> dict[str, Sequence[Field]]:
    cells = read_csv(Path(path), ["path"])
    return {name: column if name in ("path", "id") else plain(column) for name, column in cells.items()}


def _parquet(path: str) -> dict[str, list[Any]]:
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            check_names(file.schema_arrow.names, ["path"], where=path)
            table = file.read()
        return {name: table[name].to_pylist() for name in table.column_names}
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"The table of images cannot be read: {error}.", where=path, cure="write it again, as Parquet or CSV"
        ) from error


def _field(cell: object) -> Field:
    """What a field can hold; of a number that is none nothing is known."""
    if isinstance(cell, float) and not math.isfinite(cell):
        return None
    return cell if isinstance(cell, Field) else str(cell)
