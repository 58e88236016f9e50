"""An extraction: a store is prepared once, and blocks of it are computed by whoever has hands free.

    store = unweave.extract("timm/vit_base_patch16_224", "photos/", "out")

What is done is kept: the same call goes on where an earlier one was interrupted, and does nothing where all is done.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from time import perf_counter

import numpy as np
import psutil
import torch

from unweave.components import Component
from unweave.decomposition import Plan
from unweave.decomposition.planning import TOLERANCE
from unweave.device import device_of
from unweave.errors import StoreError
from unweave.extraction.account import Estimate, Extracted
from unweave.extraction.extractor import Extractor, Plans, at_once, plans_of
from unweave.extraction.launchers import LAUNCHERS
from unweave.extraction.settings import Part, Settings
from unweave.files import check_room
from unweave.images import ImageSet, open_images
from unweave.loading import Loading
from unweave.models import Model, opened
from unweave.progress import OnProgress, silent
from unweave.store import Manifest, Place, Store, writer
from unweave.store.lease import Lease
from unweave.store.manifest import Listing

_BLOCK = 64 * 2**20
"""Bytes of a block, at most; few images make smaller ones, so that an interruption costs little."""

_LARGEST = {"cpu": 16, "cuda": 128}
"""Images at a time, at most."""

_PREPARING = "prepare"


@dataclass(frozen=True, eq=False)
class Extraction:
    """A store that is ready to be filled.

    Attributes:
        place: Where it lies.
        manifest: What it says of itself.
        settings: How it is filled.
        extractor: The model, as this process has it.
    """

    place: Place
    manifest: Manifest
    settings: Settings
    extractor: Extractor

    def blocks(self, part: Part = Part()) -> list[int]:  # noqa: B008  # it cannot be changed
        """The blocks of a part that are still to be computed."""
        there = writer.done(self.place)
        return [block for block in part.blocks(self.manifest.blocks) if block not in there]

    def images(self, blocks: list[int]) -> int:
        """How many images those hold."""
        return sum(len(self.manifest.listing(block)[1]) for block in blocks)

    def lease(self, part: Part) -> Lease:
        """The right to compute a part; nobody else may compute it, or cut the work otherwise."""

        def against(other: str) -> bool:
            return other != _PREPARING and not other.endswith(f"-of-{part.of}")

        return Lease(self.place, part.lease, against=against, wait=self.settings.wait)

    def run(self, part: Part = Part(), *, on_progress: OnProgress = silent) -> Extracted:  # noqa: B008
        """Compute what is still to be computed of a part.

        Args:
            part: Which.
            on_progress: Called as images are dealt with.

        Returns:
            What was done, and the store, perhaps without the other parts.

        Raises:
            StoreError: Somebody else computes it, or it cannot be written.
        """
        started, total = perf_counter(), self.images(list(part.blocks(self.manifest.blocks)))
        with self.lease(part):
            blocks = self.blocks(part)
            before = done = total - self.images(blocks)

            def on_images(count: int) -> None:
                nonlocal done
                done += count
                on_progress("extracting images", done, total)

            if blocks:
                self.extractor.agree()  # the weights may have been edited since it was prepared
                LAUNCHERS[self.settings.launcher](self.extractor, blocks, self.settings.workers, on_images)
        if writer.merge(self.place, self.manifest):
            self.place.sweep()
        return Extracted(Store(self.place, partial=True), total - before, perf_counter() - started)


def prepare(
    model: Model | Loading | str,
    images: str | os.PathLike[str] | ImageSet,
    store: str | os.PathLike[str],
    settings: Settings = Settings(),  # noqa: B008
    *,
    append: bool = False,
) -> Extraction:
    """Make a store for these images, or go on with the one that is there.

    Args:
        model: A model's id, or its `Loading`; or a model, which other processes cannot load where it was made of a
            module.
        images: An image set, or what `unweave.open_images` takes.
        store: A folder, or a URL that fsspec knows.
        settings: How to extract.
        append: Whether images that the store does not have are added to it.

    Raises:
        StoreError: The store is of another model, of other images or made in another way; the message names the field
            that differs. Or the place has no room, or holds something else.
    """
    source = _Source(model, images, settings)
    place, manifest, images = Place(store), source.manifest(), source.images
    reading = images.reading
    listing = Listing(
        images.origin,
        images.split,
        len(images),
        images.fingerprint,
        0,
        0,
        reading.white,
        reading.max_pixels,
        images.regions,
    )
    _refuse_other_files(place)
    # Those who only go on wait for whoever makes the store; who adds images waits for all who work on it.
    wait = settings.wait if append else max(600.0, settings.wait)
    with Lease(place, _PREPARING, against=lambda other: append, wait=wait):
        if writer.is_store(place):
            known = Manifest.load(place)
            known.agree(manifest.identity, where=str(place))
            writer.mend(place, known, source.components, images.table, images.fingerprint)
            manifest, opened = _gone_on(place, known, images, listing, append=append)
        else:
            if place.local is not None:
                check_room(place.local, _bytes(manifest, len(images), source.components))
            writer.create(place, source.components)
            manifest, opened = writer.extend(place, manifest, images.table, listing), {0: images}
    return Extraction(place, manifest, settings, source.extractor(place, manifest, opened))


class _Source:
    """What is extracted: images, and a model with its plans."""

    def __init__(
        self,
        model: Model | Loading | str,
        images: str | os.PathLike[str] | ImageSet,
        settings: Settings,
    ) -> None:
        self.images = images if isinstance(images, ImageSet) else open_images(images)
        self.settings, self.device = settings, device_of(settings.device)
        self.model = model = opened(model, device=self.device, dtype=settings.computed_in)
        regional = bool(self.images.regions)
        self.plans = plans_of(model, settings.levels, settings.select, regions=regional, **settings.walk)

    @property
    def components(self) -> dict[str, tuple[Component, ...]]:
        """Of each level."""
        return {level: plan.components for level, plan in self.plans.items()}

    def manifest(self) -> Manifest:
        """Of a store for these, without listings."""
        settings, dim = self.settings, next(iter(self.plans.values())).dim
        width = _width(self.components, dim, settings.dtype)
        small = max(16, _power(len(self.images) // 8))
        return Manifest(
            model=self.model.id,
            loading=self.model.loading,
            weights_hash=self.model.weights_hash,
            preprocessing=self.model.preprocessing,
            levels=settings.levels,
            selection=settings.select,
            attention=settings.attention,
            nonlinear=settings.nonlinear,
            computed_in=settings.computed_in,
            dtype=settings.dtype,
            dim=dim,
            classes=_classes(self.model),
            rows=settings.rows or max(1, min(_power(_BLOCK // width), small)),
            batch=settings.batch or batch_of(self.plans, width, self.device, at_once(width, self.images.regions)),
            tolerance=TOLERANCE[getattr(torch, settings.computed_in)],
            listings=(),
            regional=bool(self.images.regions),
            versions={
                name: metadata.version(name) for name in ("unweave", "torch", "timm", "safetensors", "numpy", "pillow")
            },
        )

    def extractor(self, place: Place, manifest: Manifest, opened: dict[int, ImageSet]) -> Extractor:
        """The model as what computes blocks."""
        return Extractor(
            place,
            manifest,
            device=self.device,
            on_error=self.settings.on_error,
            model=self.model,
            plans=self.plans,
            images=opened,
        )


def _gone_on(
    place: Place, manifest: Manifest, images: ImageSet, listing: Listing, *, append: bool
) -> tuple[Manifest, dict[int, ImageSet]]:
    """The manifest that holds these images, and which listing they are."""
    for number, before in enumerate(manifest.listings):
        if before.fingerprint == listing.fingerprint:
            return manifest, {number: images}
    known: set[str] = set()
    for number in range(len(manifest.listings)):
        known.update(writer.listing(place, manifest, number)["id"].to_pylist())
    fresh = images.without(known)
    if append:
        if not len(fresh):
            return manifest, {}
        if place.local is not None:
            components: dict[str, tuple[Component, ...]] = {
                level: writer.components(place, manifest, level) for level in manifest.levels
            }
            check_room(place.local, _bytes(manifest, len(fresh), components))
        more = replace(listing, images=len(fresh), fingerprint=fresh.fingerprint)
        return writer.extend(place, manifest, fresh.table, more), {len(manifest.listings): fresh}
    gone = len(known - set(images.ids))
    changed = "" if len(fresh) or gone else ", but the fields or files of some have changed"
    if changed and all(before.white != listing.white for before in manifest.listings):
        changed = f", but `white` was {manifest.listings[0].white} and is {listing.white}"
    raise StoreError(
        f"The images are not those of the store: {len(fresh)} are new and {gone} are gone{changed}.",
        where=f"{place}, field `fingerprint`",
        cure="`--append` adds the new ones; or write to another store",
    )


def _refuse_other_files(place: Place) -> None:
    """A folder that holds something else is no place for a store; one in which a store was begun is."""
    begun = ("components-", "contributions", "leases", "listings", "logits", "representation", ".")
    other = [name for name in place.sizes("") if not name.startswith(begun)]
    if other and not writer.is_store(place):
        raise StoreError(
            f"The folder holds something else: {', '.join(other[:3])}.",
            where=str(place),
            cure="name a folder that is empty or does not exist",
        )


def _bytes(manifest: Manifest, images: int, components: Mapping[str, Sequence[Component]]) -> int:
    """What images take on disk."""
    width = _width(components, manifest.dim, manifest.dtype) + 4 * (manifest.dim + (manifest.classes or 0))
    return images * width


def _width(components: Mapping[str, Sequence[Component]], dim: int, dtype: str) -> int:
    """Bytes of an image's contributions."""
    return sum(map(len, components.values())) * dim * np.dtype(dtype).itemsize


def batch_of(plans: Plans, width: int, device: str, regions: int = 1) -> int:
    """How many images at a time: a power of two whose intermediate values fill at most a quarter of the free memory.

    Args:
        plans: What is computed.
        width: Bytes of an image's contributions, as stored.
        device: Where.
        regions: How many regions of an image at a time.
    """
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available
    each = 3 * width * regions + max(
        plan.memory_per_image if isinstance(plan, Plan) else plan.memory_per_image(regions) for plan in plans.values()
    )
    return max(1, min(_LARGEST["cuda" if device == "cuda" else "cpu"], _power(int(free / 4 / each))))


def _power(number: int) -> int:
    """The largest power of two that is not larger; 0 where there is none."""
    return 1 << (number.bit_length() - 1) if number > 0 else 0


def _classes(model: Model) -> int | None:
    if model.classifier is None:
        return None
    with torch.inference_mode():
        logits = model.classifier(model.readout(model.example(1)))
    return int(logits.shape[1]) if isinstance(logits, torch.Tensor) and logits.dim() == 2 else None


def extract(
    model: Model | Loading | str,
    images: str | os.PathLike[str] | ImageSet,
    store: str | os.PathLike[str],
    settings: Settings = Settings(),  # noqa: B008
    *,
    append: bool = False,
    part: Part = Part(),  # noqa: B008
    on_progress: OnProgress = silent,
) -> Store:
    """Every component's contribution for every image, into a store; goes on where an earlier call was interrupted.

    Args:
        model, images, store, settings, append: As for `prepare`.
        part: Only this part of the images, where several jobs fill the store.
        on_progress: Called as images are dealt with.

    Returns:
        The store, opened; without what other parts have not done yet.
    """
    return prepare(model, images, store, settings, append=append).run(part, on_progress=on_progress).store


def estimate(
    model: Model | Loading | str,
    images: str | os.PathLike[str] | ImageSet,
    store: str | os.PathLike[str],
    settings: Settings = Settings(),  # noqa: B008
) -> Estimate:
    """What an extraction would take, from a few of its images; nothing is written.

    Args:
        model, images, store, settings: As for `prepare`.
    """
    source = _Source(model, images, settings)
    place, manifest, images = Place(store), source.manifest(), source.images
    stored: set[str] = set()
    if writer.is_store(place):
        known = Manifest.load(place)
        known.agree(manifest.identity, where=str(place))
        stored, manifest = set(writer.merged(place, known)[0]["id"].to_pylist()), known
    left = images.without(stored)
    speed = source.extractor(place, manifest, {}).speed(left) if len(left) else 0.0
    return Estimate(
        store=str(place),
        images=len(images),
        stored=len(images) - len(left),
        components={level: len(components) for level, components in source.components.items()},
        dim=manifest.dim,
        batch=manifest.batch,
        rows=manifest.rows,
        bytes=_bytes(manifest, len(left), source.components),
        speed=speed,
        seconds=len(left) / speed if speed else 0.0,
    )
