"""What plans take of pictures: the whole of each, or some of its regions; a picture is read once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from unweave.contributions import Contributions
from unweave.decomposition import Plan, RegionPlan
from unweave.errors import ArgumentError, DataError, DeviceError
from unweave.images import Picture, input_of, read_image
from unweave.images.batches import Source, stacked
from unweave.models import Model
from unweave.models.preprocessing import viewed
from unweave.regions import Region, mask, named

MOST = 64
"""Regions of one picture that are computed at a time, at most."""


@dataclass(frozen=True)
class Rows:
    """Rows of a result that come of one picture.

    Attributes:
        ids: Of the rows.
        picture: Where to read it; None where the images no longer have it.
        regions: The regions of it that the rows are of, one for each; none where the one row is of the whole.
        block: The block of a store that they belong to.
    """

    ids: tuple[str, ...]
    picture: Source | None
    regions: tuple[str, ...] = ()
    block: int = 0

    @property
    def id(self) -> str:
        """What the picture is called."""
        return str(self.picture.fields["image"]) if isinstance(self.picture, Picture) and self.regions else self.ids[0]

    def read(self) -> Image.Image:
        """The picture; raises an DataError where there is none."""
        if self.picture is None:
            raise DataError("The image is no longer where it was listed.", where=self.id)
        return self.picture.read()


def rows_of(pictures: Iterable[Source], most: int = MOST, block: int = 0) -> Iterator[Rows]:
    """The rows of pictures, those of regions of one picture together.

    Args:
        pictures: In order; those of a set at regions follow one another (see `ImageSet.at`).
        most: How many together, at most.
        block: The block of a store that they belong to.
    """
    for _, group in groupby(pictures, key=lambda picture: picture.row if _region(picture) is not None else picture.id):  # type: ignore[attr-defined]
        same = list(group)
        for start in range(0, len(same), most):
            part = same[start : start + most]
            regions = tuple(region for picture in part if (region := _region(picture)) is not None)
            yield Rows(tuple(picture.id for picture in part), part[0], regions, block)


def _region(picture: Source) -> str | None:
    return picture.region if isinstance(picture, Picture) else None


class Input(NamedTuple):
    """What a plan takes of one picture.

    Attributes:
        ids: Of the rows that come of it.
        image: The model's own input, without the axis of images.
        weights: Of each region's tokens, `[region, token]`; None where the row is of the whole.
    """

    ids: tuple[str, ...]
    image: Tensor
    weights: Float[Tensor, "region token"] | None = None


def reader(model: Model, plan: Plan | RegionPlan) -> Callable[[Rows], Input]:
    """What reads rows for a plan, and raises an DataError where they cannot be read.

    Args:
        model: Its preprocessing is used.
        plan: Of regions, where rows are of regions.
    """

    def read(rows: Rows) -> Input:
        picture = rows.read()
        image = input_of(model, picture, rows.id)
        if isinstance(plan, Plan):
            return Input(rows.ids, image)
        weights = [_weights(model, plan, rows, region, picture) for region in rows.regions]
        return Input(rows.ids, image, torch.stack(weights))

    return read


def _weights(model: Model, plan: RegionPlan, rows: Rows, region: str, picture: Image.Image) -> Float[Tensor, " token"]:
    try:
        return region_of(model, rows.picture, region, picture).weigh(plan.grid, plan.size)
    except (ArgumentError, DataError) as error:
        raise DataError(error.what, where=f"{rows.id}, {region}", cure=error.cure) from None


def region_of(model: Model, source: Source | None, name: str, picture: Image.Image) -> Region:
    """A region of a photograph, as the model sees it: cut and scaled like the photograph.

    Args:
        model: Its preprocessing is used.
        source: Where the picture comes from, which may know its mask.
        name: Of the region (see `ImageSet.at`).
        picture: The photograph.

    Raises:
        ArgumentError: There is no such region.
        DataError: It does not lie in the picture, or a mask cannot be read or is of another size.
    """
    kind, _, given = name.partition(" ")
    if kind not in ("box", "mask"):
        return named(name)
    inside = _box(given, picture) if kind == "box" else _mask(given, source)
    if inside.shape != picture.size[::-1]:
        raise DataError(
            f"The mask has {inside.shape[1]} x {inside.shape[0]} pixels, the image {picture.width} x {picture.height}.",
            cure="give a mask of the image's own size",
        )
    return mask(viewed(model.preprocess, Image.fromarray(inside).convert("RGB")).mean(-1), name)


def _box(given: str, picture: Image.Image) -> Bool[np.ndarray, "height width"]:
    left, top, right, bottom = (float(number) for number in given.split(","))
    if not (0 <= left < right <= picture.width and 0 <= top < bottom <= picture.height):
        raise DataError(
            f"There is no box from ({left:g}, {top:g}) to ({right:g}, {bottom:g}) in an image of "
            f"{picture.width} x {picture.height} pixels.",
            cure="give left < right and top < bottom, in pixels of the image",
        )
    inside = np.zeros(picture.size[::-1], bool)
    inside[int(top) : max(int(top) + 1, round(bottom)), int(left) : max(int(left) + 1, round(right))] = True
    return inside


def _mask(given: str, source: Source | None) -> Bool[np.ndarray, "height width"]:
    if given != "each":
        return np.asarray(read_image(Path(given)).convert("L")) > 0
    assert isinstance(source, Picture)
    return source.mask()


def run(plan: Plan | RegionPlan, inputs: Sequence[Input], model: Model, regions: int = 1) -> Contributions:
    """The contributions of what was read, a row for each id.

    Args:
        plan: Of regions, where rows are of regions.
        inputs: What was read.
        model: On its device.
        regions: How many regions of a picture the plan computes at a time; of fewer, the last is computed again.

    Raises:
        DeviceError: The memory does not hold them.
        UnweaveError: As for `Plan.run`.
    """
    images = stacked([read.ids[0] for read in inputs], [read.image for read in inputs]).to(model.device, model.dtype)
    try:
        if isinstance(plan, Plan):
            return plan.run(images, [name for read in inputs for name in read.ids])
        places = [[min(place, len(read.ids) - 1) for place in range(regions)] for read in inputs]
        padded = [(read, at) for read, at in zip(inputs, places, strict=True) if read.weights is not None]
        weights = torch.stack([read.weights[at] for read, at in padded])  # type: ignore[index]
        names = [read.ids[place] for read, at in padded for place in at]
        every = plan.of(regions).run(images, names, regions=weights.to(images.device, images.dtype))
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise DeviceError(
            f"The memory does not hold a batch of {len(inputs)} images.",
            where=str(error),
            cure="use a smaller batch (`--batch-size`), select fewer components, or use a coarser level",
        ) from error
    kept = [row * regions + place for row, read in enumerate(inputs) for place in range(len(read.ids))]
    if len(kept) == len(names):
        return every
    return replace(
        every,
        values=every.values[kept],
        ids=tuple(names[place] for place in kept),
        representation=every.representation[kept],
        error=every.error[kept],
    )
