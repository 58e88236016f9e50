"""From images to contributions: in memory, or written to a pair of files as they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unweave.components import Level, Selection
from unweave.contributions import Contributions
from unweave.decomposition import Plan, RegionPlan
from unweave.decomposition import plan as plan_for
from unweave.errors import ArgumentError, DataError
from unweave.extraction.extractor import at_once
from unweave.extraction.inputs import Input, Rows, reader, rows_of, run
from unweave.extraction.job import batch_of
from unweave.images import Batches, ImageSet, open_images
from unweave.images.batches import Source
from unweave.models import Model, opened
from unweave.progress import OnProgress, silent
from unweave.saving import ContributionsWriter
from unweave.source import Listed, Origin

Images: TypeAlias = "ImageSet | Sequence[Source] | str | PathLike[str] | Float[Tensor, 'image ...']"
"""Pictures, as an image set, files, or what `unweave.open_images` takes; or a batch that is preprocessed already."""


Loader: TypeAlias = Batches[Rows, Input, Sequence[Input]]


def decompose(
    model: Model | nn.Module | str,
    images: Images,
    *,
    plan: Plan | RegionPlan | None = None,
    level: Level = "head",
    select: Selection = None,
    output: str | PathLike[str] | None = None,
    on_error: Literal["skip", "raise"] = "raise",
    on_progress: OnProgress = silent,
) -> Contributions:
    """Every component's contribution to the representation of each image.

    Memory: all contributions (`image x component x dim` numbers); with an `output` those of a few images, as they are
    written when they come, and read from the file when they are used. For many images `unweave.extract` is the way:
    it can be interrupted.

    Args:
        model: A model, its id, or any module that maps images to their representation.
        images: The images (see `Images`); of regions of them (`ImageSet.at`) each row explains one region.
        plan: A plan of the model, with options of its own, of regions where the images are; made here if not given.
        level: How finely the model is split (see `unweave.plan`), where there is no plan.
        select: The components that are computed, where there is no plan; the others are returned as one `rest`.
        output: A folder, or a file ending in `.safetensors`, that the contributions are written to.
        on_error: At an image that cannot be read: stop, or leave it out and say so in the origin (`skip`).
        on_progress: Called after each batch.

    Raises:
        ArgumentError: What is given is no model or no images.
        DataError: None of the images can be read.
        DeviceError: The memory does not hold a batch.
        UnweaveError: The output cannot be written; or as for `unweave.plan` and `Plan.run`.
    """
    known = model if isinstance(model, nn.Module) else opened(model)
    if isinstance(images, Tensor):
        whole = plan or plan_for(known, images, level=level, select=select)
        if isinstance(whole, RegionPlan):
            raise ArgumentError(
                "The plan is of regions, and a batch of tensors names none.",
                cure="plan.run(images, [unweave.regions.token(3, 4)])",
            )
        contributions = whole.run(images)
        if isinstance(known, Model):
            contributions = replace(contributions, origin=_origin(known, whole, level, select))
        if output is not None:
            contributions.save(output)
        return contributions
    if not isinstance(known, Model):
        raise ArgumentError(
            f"How pictures become the input of a {type(known).__name__} is not known.",
            cure="give `unweave.Model.from_module(module)`, which says it; or a batch that is preprocessed",
        )
    pictures = open_images(str(images)) if isinstance(images, (str, PathLike)) else images
    if not isinstance(pictures, Sequence):
        raise ArgumentError(
            f"A {type(images).__name__} is no batch of images.",
            cure="give a tensor [image, channel, height, width], or what `unweave.open_images` returns or takes",
        )
    regions = pictures.regions if isinstance(pictures, ImageSet) else ()
    made = partial(plan_for, known, level=level, select=select)
    planned: Plan | RegionPlan = plan or (made(regions=True) if regions else made())
    if isinstance(planned, RegionPlan) != bool(regions):
        raise ArgumentError(
            "The plan is of whole images, and these are regions."
            if regions
            else "The plan is of regions, and these are whole images.",
            cure="`unweave.plan(model, regions=True)` goes with `images.at('token 3,4')`",
        )
    width = len(planned.components) * planned.dim * 4
    most = at_once(width, regions)
    size = batch_of({planned.level: planned}, width, known.device.type, most)
    loader = Batches(list(rows_of(pictures, most)), reader(known, planned), lambda ids, read: read, size, on_error)
    origin = _origin(known, planned, level, select)
    if isinstance(pictures, ImageSet) and pictures.origin:
        reading = pictures.reading
        listed = Listed(
            pictures.origin, pictures.split, pictures.fingerprint, reading.white, reading.max_pixels, regions
        )
        origin = replace(origin, images=(listed,))
    parts = _runs(planned, known, loader, most, on_progress)
    return (
        _joined(parts, loader, pictures, origin)
        if output is None
        else _written(parts, planned, known, loader, pictures, origin, output)
    )


def _runs(
    plan: Plan | RegionPlan, model: Model, loader: Loader, most: int, on_progress: OnProgress
) -> Iterator[Contributions]:
    done = 0
    for ids, inputs in loader:
        yield run(plan, inputs, model, most)
        done += len(ids)
        on_progress("decomposing images", done + len(loader.skipped), loader.total)


def _joined(
    parts: Iterator[Contributions], loader: Loader, pictures: ImageSet | Sequence[Source], origin: Origin
) -> Contributions:
    """All batches in memory, with what is known of their images."""
    made = list(parts)
    if not made:
        raise _unread(loader)
    ids = tuple(name for part in made for name in part.ids)
    return replace(
        made[0],
        values=torch.cat([part.values.cpu() for part in made]),
        ids=ids,
        representation=torch.cat([part.representation.cpu() for part in made]),
        error=torch.cat([part.error.cpu() for part in made]),
        origin=replace(origin, skipped=tuple(loader.skipped), notes=_notes(pictures)),
        fields=_fields(pictures, ids),
    )


def _written(
    parts: Iterator[Contributions],
    plan: Plan | RegionPlan,
    model: Model,
    loader: Loader,
    pictures: ImageSet | Sequence[Source],
    origin: Origin,
    output: str | PathLike[str],
) -> Contributions:
    """All batches on disk."""
    # A plan adds up in float32 at least, whatever the model computes in.
    dtype = torch.promote_types(model.dtype, torch.float32)
    with ContributionsWriter(output, plan.components, images=len(pictures), dim=plan.dim, dtype=dtype) as writer:
        for part in parts:
            writer.append(part)
        if not writer.written:
            raise _unread(loader)
        writer.finish(replace(origin, skipped=tuple(loader.skipped), notes=_notes(pictures)))
    contributions = Contributions.load(output)
    return replace(contributions, fields=_fields(pictures, contributions.ids))


def _fields(pictures: ImageSet | Sequence[Source], ids: tuple[str, ...]) -> dict[str, list[object]]:
    """What is known of the images that were read."""
    if not isinstance(pictures, ImageSet):
        return {}
    rows = {name: row for row, name in enumerate(pictures.ids)}
    return {name: [pictures.table[name][rows[key]].as_py() for key in ids] for name in pictures.fields}


def _notes(pictures: ImageSet | Sequence[Source]) -> tuple[str, ...]:
    """What was said while they were read."""
    reading = getattr(pictures if isinstance(pictures, ImageSet) else pictures[0], "reading", None)
    return tuple(reading.notes.said.values()) if reading is not None else ()


def _unread(loader: Loader) -> DataError:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in loader.skipped[:3])
    return DataError(
        f"None of the {loader.total} images could be read ({reasons}).",
        where=loader.skipped[0][0] if loader.skipped else None,
        cure=(loader.failure.cure if loader.failure else None) or "name images that can be read",
    )


def _origin(model: Model, plan: Plan | RegionPlan, level: Level, select: Selection) -> Origin:
    """Where contributions of a plan come from."""
    chosen = select if isinstance(select, str) else None
    if isinstance(select, (list, tuple)):
        chosen = ", ".join(map(str, select))
    dtype = str(model.dtype).removeprefix("torch.")
    return Origin(model.id, model.weights_hash, model.preprocessing, plan.level, chosen, dtype, loading=model.loading)
