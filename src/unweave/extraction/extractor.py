"""An extractor: a model with its plans, which turns blocks of images into blocks of a store.

It knows all it needs from the store's manifest, so any process on any machine can be one. A block depends on nothing
but the manifest: whoever computes it, in whatever order, on the same kind of machine, gets the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

import unweave
from unweave.components import Level
from unweave.contributions import Contributions
from unweave.decomposition import Plan
from unweave.device import device_of
from unweave.errors import DataError, DeviceError, StoreError
from unweave.images import ImageSet, Picture, open_images
from unweave.images.batches import decoded, stacked
from unweave.models import Model, opened
from unweave.store import Manifest, Place, writer
from unweave.store.writer import Block

OnImages = Callable[[int], None]
"""Called with the number of images that were just dealt with."""


@dataclass(frozen=True)
class Awaited:
    """A picture whose place in the store is known.

    Attributes:
        id: Of the picture.
        block: The block that it belongs to.
        picture: Where to read it; None where the images no longer have it.
    """

    id: str
    block: int
    picture: Picture | None

    def read(self) -> Image:
        """The picture; raises an DataError where there is none."""
        if self.picture is None:
            raise DataError("The image is no longer where it was listed.", where=self.id)
        return self.picture.read()


def plans_of(model: Model, levels: Sequence[str], select: Sequence[str] | None, **options: Any) -> dict[str, Plan]:
    """A plan for each level, of one capture."""
    known, chosen = cast("Sequence[Level]", levels), list(select) if select else None
    first = unweave.plan(model, level=known[0], select=chosen, **options)
    return {known[0]: first, **{level: first.at(level=level, select=chosen) for level in known[1:]}}


class Extractor:
    """Computes blocks of one store.

    Args:
        place: The store.
        manifest: What it says of itself.
        device: Where to compute.
        on_error: At a broken image: `skip` notes it in the store, `raise` stops with its DataError.
        model: The model, where it is loaded already.
        plans: Its plans, where they are made already.
        images: The images of each listing, where they are opened already.

    Raises:
        StoreError: The model that is loaded, or its components, are not those of the store.
    """

    def __init__(
        self,
        place: Place,
        manifest: Manifest,
        *,
        device: str = "auto",
        on_error: str = "skip",
        model: Model | None = None,
        plans: dict[str, Plan] | None = None,
        images: dict[int, ImageSet] | None = None,
    ) -> None:
        self.place, self.manifest, self.on_error = place, manifest, on_error
        self.device = device_of(device)
        known = model or manifest.loading or manifest.model
        self.model = model = opened(known, device=self.device, dtype=manifest.computed_in)
        self.agree()
        options = {"attention": manifest.attention, "nonlinear": manifest.nonlinear}
        self._plans = plans or plans_of(model, manifest.levels, manifest.selection, **options)
        self._images = images or {}
        self._places: dict[int, dict[str, int]] = {}
        for level, plan in self._plans.items() if writer.is_store(place) else ():
            if writer.components(place, manifest, level) != plan.components:
                raise StoreError(
                    f"The model has other components at level {level} than the store.",
                    where=f"{place}/{writer.components_file(level)}",
                    cure="use the version of unweave that is named in the manifest, or extract again",
                )

    def agree(self) -> None:
        """Refuse a model that is not the store's; reads all of its weights, as they are now.

        Raises:
            StoreError: It has other weights, or another preprocessing.
        """
        present = {"weights_hash": self.model.weights_hash, "preprocessing": self.model.preprocessing}
        self.manifest.agree(present, where=str(self.place))

    def run(self, blocks: Iterable[int], on_images: OnImages = lambda count: None) -> None:
        """Compute blocks and write them, one after the other.

        Raises:
            UnweaveError: A sum does not hold, a number does not fit into the store's, an image is broken under
                `on_error="raise"`, or the store cannot be written.
        """
        for number, awaited in self._awaited(blocks):
            writer.put(self.place, self.manifest, self.block(number, awaited, on_images))

    def _awaited(self, blocks: Iterable[int]) -> Iterator[tuple[int, Iterator[tuple[Awaited, Tensor | DataError]]]]:
        """For each block its pictures, while those that come next are read, of the next block too."""
        pictures = (one for number in blocks for one in self.listed(number))
        return groupby(decoded(self.model, pictures, ahead=2 * self.manifest.batch), key=lambda found: found[0].block)

    def listed(self, number: int) -> Iterator[Awaited]:
        """The images of a block, in the order of the listing."""
        which, places = self.manifest.listing(number)
        listed = writer.listing(self.place, self.manifest, which)["id"].slice(places.start, len(places))
        images, known = self._opened(which)
        for name in listed.to_pylist():
            at = known.get(name)
            yield Awaited(name, number, None if at is None else images[at])

    def _opened(self, which: int) -> tuple[ImageSet, dict[str, int]]:
        if which not in self._images:
            listing = self.manifest.listings[which]
            self._images[which] = open_images(
                listing.data, split=listing.split, white=listing.white, max_pixels=listing.max_pixels
            )
        if which not in self._places:
            self._places[which] = {name: place for place, name in enumerate(self._images[which].ids)}
        return self._images[which], self._places[which]

    def block(self, number: int, awaited: Iterable[tuple[Awaited, Tensor | DataError]], on_images: OnImages) -> Block:
        """A block of the store, computed."""
        batch = self.manifest.batch
        reasons: list[str | None] = []
        ids: list[str] = []
        tensors: list[Tensor] = []
        parts: list[dict[str, Any]] = []
        for image, found in awaited:
            if isinstance(found, DataError):
                if self.on_error == "raise":
                    raise found
                reasons.append(found.what)
                on_images(1)
                continue
            reasons.append(None)
            ids.append(image.id)
            tensors.append(found)
            if len(tensors) == batch:
                parts.append(self.computed(ids, tensors))
                on_images(len(ids))
                ids, tensors = [], []
        if tensors:
            parts.append(self.computed(ids, tensors))
            on_images(len(ids))
        elif not parts:  # the shapes of no images; models reshape none of them in ways of their own
            one = self.computed(["none"], list(self.model.example(1)))
            parts.append({name: _none(values) for name, values in one.items()})
        return Block(
            number,
            {level: np.concatenate([part["values"][level] for part in parts]) for level in self._plans},
            np.concatenate([part["representation"] for part in parts]),
            None if self.manifest.classes is None else np.concatenate([part["logits"] for part in parts]),
            np.concatenate([part["error"] for part in parts]),
            np.concatenate([part["rounding"] for part in parts]),
            reasons,
        )

    def computed(self, ids: Sequence[str], tensors: Sequence[Tensor]) -> dict[str, Any]:
        """One batch in the store's numbers."""
        example = self.model.example(1)
        images = stacked(ids, tensors).to(example.device, example.dtype)
        found: dict[str, Any] = {"values": {}}
        errors, roundings = [], []
        for level, plan in self._plans.items():
            try:
                contributions = plan.run(images, ids)
            except (MemoryError, torch.OutOfMemoryError) as error:
                raise DeviceError(
                    f"The memory does not hold a batch of {len(ids)} images.",
                    where=str(error),
                    cure="use a smaller `--batch-size`, or `--select` fewer components",
                ) from error
            stored = self._rounded(contributions)
            errors.append(contributions.error)
            roundings.append(_moved(contributions, stored))
            found["values"][level] = stored.cpu().numpy()
        z = contributions.representation
        found["representation"] = z.to(torch.float32).cpu().numpy()
        if self.manifest.classes is not None and self.model.classifier is not None:
            with torch.inference_mode():
                found["logits"] = self.model.classifier(z.to(example.dtype)).to(torch.float32).cpu().numpy()
        found["error"] = torch.stack(errors).amax(0).float().cpu().numpy()
        found["rounding"] = torch.stack(roundings).amax(0).float().cpu().numpy()
        return found

    def speed(self, images: ImageSet) -> float:
        """Images a second, from reading to the store's numbers, measured on the first of these for some seconds.

        Raises:
            DataError: None of them can be read.
        """
        some = list(images[: self.manifest.batch])
        ids = [image.id for image in some]

        def read() -> list[Tensor]:
            return [found for _, found in decoded(self.model, some, ahead=len(some)) if isinstance(found, Tensor)]

        tensors = read()
        if not tensors:
            raise DataError("None of the first images could be read.", where=images.origin, cure="check the images")
        self.computed(ids[:1], tensors[:1])  # makes the weight products
        began, count = time.perf_counter(), 0
        while count == 0 or (count < 4 * len(some) and time.perf_counter() - began < 5):
            tensors = read()
            self.computed(ids[: len(tensors)], tensors)
            count += len(some)
        return count / (time.perf_counter() - began)

    def _rounded(self, contributions: Contributions) -> Tensor:
        stored = contributions.values.to(getattr(torch, self.manifest.dtype))
        if not bool(torch.isfinite(stored).all()):
            image, component, _ = (~torch.isfinite(stored)).nonzero()[0].tolist()
            raise StoreError(
                f"A contribution is too large for {self.manifest.dtype}.",
                where=f"{contributions.components[component]}, image {contributions.ids[image]}",
                cure="store float32 (`--store-dtype float32`)",
            )
        return stored


def _none(values: Any) -> Any:
    """Arrays, or a dictionary of arrays, without a row."""
    return {name: _none(own) for name, own in values.items()} if isinstance(values, dict) else values[:0]


def _moved(contributions: Contributions, stored: Tensor) -> Tensor:
    """How far rounding moves the sum of each image's contributions, relative to the representation."""
    values = contributions.values
    moved = (values - stored.to(values.dtype)).sum(1).norm(dim=-1)
    return moved / contributions.representation.to(values.dtype).norm(dim=-1).clamp_min(torch.finfo(values.dtype).tiny)
