"""An extractor: a model with its plans, which turns blocks of images into blocks of a store.

It knows all it needs from the store's manifest, so any process on any machine can be one. A block depends on nothing
but the manifest: whoever computes it, in whatever order, on the same kind of machine, gets the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

import unweave
from unweave.components import Level
from unweave.contributions import Contributions
from unweave.decomposition import Plan, RegionPlan
from unweave.device import device_of
from unweave.errors import DataError, StoreError
from unweave.extraction.inputs import MOST, Input, Rows, reader, rows_of, run
from unweave.extraction.pictures import opened as opened_again
from unweave.images import ImageSet
from unweave.images.batches import decoded
from unweave.models import Model, opened
from unweave.store import Manifest, Place, writer
from unweave.store.writer import Block

Plans: TypeAlias = Mapping[str, Plan | RegionPlan]
"""A plan for each level."""

_BLOCK = 2**26
"""Bytes of contributions that the regions of one picture make at a time, at most."""

OnImages = Callable[[int], None]
"""Called with the number of images that were just dealt with."""


def plans_of(model: Model, levels: Sequence[str], select: Sequence[str] | None, **options: Any) -> Plans:
    """A plan for each level, of one capture.

    Args:
        model: The model.
        levels: At which.
        select: The components to compute.
        options: Further options of `unweave.plan`; with `regions` plans are of regions.
    """
    known, chosen = cast("Sequence[Level]", levels), list(select) if select else None
    first = unweave.plan(model, level=known[0], select=chosen, **options)
    return {known[0]: first, **{level: first.at(level=level, select=chosen) for level in known[1:]}}


def at_once(width: int, regions: Sequence[str]) -> int:
    """How many regions of a picture are computed at a time.

    Args:
        width: Bytes of a row's contributions.
        regions: Those of each picture.
    """
    return max(1, min(len(regions), MOST, _BLOCK // max(1, width)))


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
        plans: Plans | None = None,
        images: dict[int, ImageSet] | None = None,
    ) -> None:
        self.place, self.manifest, self.on_error = place, manifest, on_error
        self.device = device_of(device)
        known = model or manifest.loading or manifest.model
        self.model = model = opened(known, device=self.device, dtype=manifest.computed_in)
        self.agree()
        options = {"attention": manifest.attention, "nonlinear": manifest.nonlinear, "regions": manifest.regional}
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

    def _awaited(self, blocks: Iterable[int]) -> Iterator[tuple[int, Iterator[tuple[Rows, Input | DataError]]]]:
        """For each block what is read of its pictures, while those that come next are read, of the next block too."""
        rows = (listed for number in blocks for listed in self.listed(number))
        return groupby(self.decoded(rows), key=lambda read: read[0].block)

    def decoded(self, rows: Iterable[Rows]) -> Iterator[tuple[Rows, Input | DataError]]:
        """What is read of pictures, while those that come next are read."""
        plan = next(iter(self._plans.values()))
        return decoded(rows, reader(self.model, plan), ahead=2 * self.manifest.batch)

    def listed(self, number: int, wanted: Container[str] | None = None) -> Iterator[Rows]:
        """The rows of a block, in the order of the listing; those that are wanted, or all."""
        which, places = self.manifest.listing(number)
        listed = writer.listing(self.place, self.manifest, which)["id"].slice(places.start, len(places))
        images, known = self._opened(which)
        ids = [name for name in listed.to_pylist() if wanted is None or name in wanted]
        for there, names in groupby(ids, key=known.__contains__):
            if there:
                yield from rows_of((images[known[name]] for name in names), self._at_once(which), number)
            else:
                yield from (Rows((name,), None, block=number) for name in names)

    def _at_once(self, which: int) -> int:
        plan = next(iter(self._plans.values()))
        return at_once(4 * len(plan.components) * plan.dim, self.manifest.listings[which].regions)

    def _opened(self, which: int) -> tuple[ImageSet, dict[str, int]]:
        if which not in self._images:
            self._images[which] = opened_again(self.manifest.listings[which])
        if which not in self._places:
            self._places[which] = {name: place for place, name in enumerate(self._images[which].ids)}
        return self._images[which], self._places[which]

    def block(self, number: int, awaited: Iterable[tuple[Rows, Input | DataError]], on_images: OnImages) -> Block:
        """A block of the store, computed."""
        regions = self._at_once(self.manifest.listing(number)[0])
        reasons: list[str | None] = []
        waiting: list[Input] = []
        parts: list[dict[str, Any]] = []
        for rows, read in awaited:
            if isinstance(read, DataError):
                if self.on_error == "raise":
                    raise read
                reasons += [read.what] * len(rows.ids)
                on_images(len(rows.ids))
                continue
            reasons += [None] * len(rows.ids)
            waiting.append(read)
            if len(waiting) == self.manifest.batch:
                parts.append(self.computed(waiting, regions))
                on_images(sum(len(image.ids) for image in waiting))
                waiting = []
        if waiting:
            parts.append(self.computed(waiting, regions))
            on_images(sum(len(image.ids) for image in waiting))
        elif not parts:  # the shapes of no images; models reshape none of them in ways of their own
            plan = next(iter(self._plans.values()))
            weights = torch.ones(1, plan.tokens.count) if isinstance(plan, RegionPlan) else None
            nothing = self.computed([Input(("none",), self.model.example(1)[0], weights)], regions)
            parts.append({name: _none(values) for name, values in nothing.items()})
        return Block(
            number,
            {level: np.concatenate([part["values"][level] for part in parts]) for level in self._plans},
            np.concatenate([part["representation"] for part in parts]),
            None if self.manifest.classes is None else np.concatenate([part["logits"] for part in parts]),
            np.concatenate([part["error"] for part in parts]),
            np.concatenate([part["rounding"] for part in parts]),
            reasons,
        )

    def computed(self, inputs: Sequence[Input], regions: int = 1) -> dict[str, Any]:
        """One batch in the store's numbers.

        Args:
            inputs: What was read.
            regions: How many regions of a picture are computed at a time.
        """
        arrays: dict[str, Any] = {"values": {}}
        errors, roundings = [], []
        for level, plan in self._plans.items():
            contributions = run(plan, inputs, self.model, regions)
            stored = self._rounded(contributions)
            errors.append(contributions.error)
            roundings.append(_moved(contributions, stored))
            arrays["values"][level] = stored.cpu().numpy()
        z = contributions.representation
        arrays["representation"] = z.to(torch.float32).cpu().numpy()
        if self.manifest.classes is not None and self.model.classifier is not None:
            with torch.inference_mode():
                arrays["logits"] = self.model.classifier(z.to(self.model.dtype)).to(torch.float32).cpu().numpy()
        arrays["error"] = torch.stack(errors).amax(0).float().cpu().numpy()
        arrays["rounding"] = torch.stack(roundings).amax(0).float().cpu().numpy()
        return arrays

    def speed(self, images: ImageSet) -> float:
        """Images a second, from reading to the store's numbers, measured on the first of these for some seconds.

        Raises:
            DataError: None of them can be read.
        """
        regions = at_once(0, images.regions)
        some = list(rows_of(images[: self.manifest.batch * regions], regions))

        def read() -> list[Input]:
            return [one for _, one in self.decoded(some) if isinstance(one, Input)]

        inputs = read()
        if not inputs:
            raise DataError("None of the first images could be read.", where=images.origin, cure="check the images")
        self.computed(inputs[:1], regions)  # makes the weight products
        began, count, done = time.perf_counter(), sum(len(rows.ids) for rows in some), 0
        while done == 0 or (done < 4 * count and time.perf_counter() - began < 5):
            self.computed(read(), regions)
            done += count
        return done / (time.perf_counter() - began)

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
    return {name: _none(part) for name, part in values.items()} if isinstance(values, dict) else values[:0]


def _moved(contributions: Contributions, stored: Tensor) -> Tensor:
    """How far rounding moves the sum of each image's contributions, relative to the representation."""
    values = contributions.values
    moved = (values - stored.to(values.dtype)).sum(1).norm(dim=-1)
    return moved / contributions.representation.to(values.dtype).norm(dim=-1).clamp_min(torch.finfo(values.dtype).tiny)
