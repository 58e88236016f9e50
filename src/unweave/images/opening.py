"""What names an image set: a path, whose kind is seen from what lies there, or a kind and a name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from unweave.errors import ArgumentError, DataError
from unweave.images.archives import huggingface, webdataset
from unweave.images.clips import clips
from unweave.images.folders import folder, imagenet, manifest, waterbirds
from unweave.images.imageset import ImageSet
from unweave.images.masks import masked, segmentation
from unweave.images.reading import Reading


def _pocket(name: str) -> ImageSet:
    from unweave.images.pocket import pocket  # draws, so it is only read when it is asked for

    return pocket(name)


KINDS: dict[str, Callable[[str, Reading], ImageSet]] = {
    "folder": folder,
    "manifest": manifest,
    "imagenet": imagenet,
    "waterbirds": waterbirds,
    "clips": clips,
    "masks": masked,
    "segmentation": segmentation,
    "webdataset": webdataset,
}
"""Kinds of image sets that lie at a path; `KIND:PATH` says which one it is."""


def open_images(
    data: str | os.PathLike[str],
    *,
    split: str | None = None,
    limit: int | None = None,
    white: float | int | None = None,
    max_pixels: int | None = None,
) -> ImageSet:
    """An image set, in an order that is always the same.

    Args:
        data: A folder, a table (`.csv`, `.parquet`), tars (`.tar`), `gtsegs_ijcv.mat`, the folder of a dataset as
            published (ImageNet, Waterbirds, a dataset of Hugging Face); the same with a kind before it
            (`waterbirds:FOLDER`, one of `KINDS`) where it cannot be told; `clips:FOLDER`, where each folder of frames
            is an image; `hf/ORG/NAME` for a dataset on Hugging Face's hub; `pocket/evaluation`,
            `pocket/world/SEED/COUNT` or `pocket/birds/SEED/SPLIT/COUNT`.
        split: Only the images of this split.
        limit: Only the first so many.
        white, max_pixels: How files are read (see `unweave.images.read_image`).

    Raises:
        ArgumentError: `data` is no name, or a number is out of range.
        DataError: There are no such images.
    """
    if not isinstance(data, (str, os.PathLike)):
        raise ArgumentError(
            f"A set of images is opened by its name, not by a {type(data).__name__}.",
            cure="give a path, such as 'photos'; for several paths use unweave.images.find_images",
        )
    if limit is not None and limit < 1:
        raise ArgumentError(f"There cannot be {limit} images.", cure="use a limit of 1 or more, or none")
    data = os.fspath(data)
    try:
        images = replace(_opened(data, split, Reading(white, max_pixels)), origin=lasting(data), split=split)
    except OSError as error:
        raise DataError(
            f"The images cannot be read: {error.strerror or error}.", where=data, cure="check the path to the images"
        ) from error
    if split is not None:
        images = images.where("split", split)
        images = replace(images, _opened=images._rows)
    return images if limit is None else images[:limit]


def lasting(data: str) -> str:
    """The same images, named so that a process with another working folder finds them."""
    kind, colon, rest = data.partition(":")
    prefix, path = (f"{kind}:", rest) if colon and kind in (*KINDS, "hf") else ("", data)
    there = _exists(Path(path)) or ("*" in path and _exists(Path(path).parent))
    return f"{prefix}{Path(path).resolve()}" if there else data


def _opened(data: str, split: str | None, reading: Reading) -> ImageSet:
    kind, colon, rest = data.partition(":")
    if colon and kind == "hf":
        return huggingface(rest, split, reading)
    if colon and kind in KINDS:
        return KINDS[kind](rest, reading)
    path = Path(data)
    if not _exists(path):
        if data.startswith("pocket/"):
            return _pocket(data.removeprefix("pocket/"))
        if data.startswith("hf/"):
            return huggingface(data.removeprefix("hf/"), split, reading)
        if not (data.endswith(".tar") and any(sign in data for sign in "*?[")):
            raise DataError(
                "There are no such images.",
                where=data,
                cure="name a folder, a table (.csv, .parquet), tars, `hf/ORG/NAME` or `pocket/evaluation`; "
                f"or put a kind before a path: {', '.join(KINDS)}",
            )
    kind = _kind(path)
    return huggingface(data, split, reading) if kind == "hf" else KINDS[kind](data, reading)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file can have, such as one of a thousand characters
        return False


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    if path.is_dir():
        names = {entry.name for entry in path.iterdir()}
        table = path / "metadata.csv"
        if table.is_file() and b"img_filename" in table.read_bytes()[:1000]:
            return "waterbirds"
        if names & {"dataset_info.json", "dataset_dict.json"}:
            return "hf"
        if {"images", "masks"} <= names:
            return "masks"
        if names & {"ILSVRC", "LOC_val_solution.csv"} or any(re.fullmatch(r"n\d{8}", name) for name in names):
            return "imagenet"
        visible = [name for name in names if not name.startswith(".")]
        return (
            "webdataset" if visible and all(name.endswith((".tar", ".json", ".txt")) for name in visible) else "folder"
        )
    return {".csv": "manifest", ".parquet": "manifest", ".tar": "webdataset", ".mat": "segmentation"}.get(
        suffix, "folder"
    )
