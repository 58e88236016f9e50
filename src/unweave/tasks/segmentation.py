"""Zero-shot segmentation: where a map for an image's own class is above its mean, measured against the object's mask,
beside other ways to make maps (Chefer et al., 2021; Balasubramanian et al., 2024, section 5).

    segmentation = unweave.segment("pocket/deit", "pocket/evaluation")
    segmentation.table()
    segmentation.figure()

Two figures go by the name mIoU, and are not the same: `foreground_iou` is the intersection over the union of the
object, pooled over the set, as published for Pixel-ImageNet; `mean_iou` is the mean of that and of the background's, as
usual on ImageNet-Segmentation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from os import PathLike, fspath

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from unweave.alignment import Space
from unweave.components import Selection
from unweave.decomposition import plan as plan_for
from unweave.errors import ArgumentError, DataError, ModelError
from unweave.images import ImageSet, Picture, input_of, open_images
from unweave.models import Model, opened
from unweave.models.preprocessing import viewed
from unweave.progress import OnProgress, silent
from unweave.results import verb
from unweave.tasks.attention import Attention
from unweave.tasks.baselines import GradCam, Method, RawAttention, Rollout, TransformerAttribution, Unfit
from unweave.tasks.heatmaps import Highest, as_pixels
from unweave.tasks.mapper import Mapper
from unweave.tasks.segments import Quality, Segmentation, Shown, Tally
from unweave.tasks.target import Target, toward, toward_classes
from unweave.text.phrases import spoken

OURS, EVIDENCE = "components", "evidence"
"""The sum of the components' maps, as published; and the sum of what speaks for the class in each."""

_BATCH = 16
"""Images at a time."""

METHODS = (OURS, EVIDENCE, "raw attention", "rollout", "transformer attribution", "gradcam")


@verb
def segment(
    model: Model | str,
    images: ImageSet | str | PathLike[str],
    *,
    label: str | None = "label",
    space: Space = None,
    select: Selection | Highest = None,
    methods: Sequence[str] | None = None,
    shown: int = 5,
    on_progress: OnProgress = silent,
) -> Segmentation:
    """Threshold each image's map for its own class at the mean, and compare it with the object's mask, beside other
    ways to make maps.

    Args:
        model: A model, or its id.
        images: An image set with masks, or what `unweave.open_images` takes.
        label: The field that names each image's class; None for the class that the model itself predicts.
        space: What brings components into a text space (see `unweave.alignment.Space`), where classes are words; the
            model's own classifier if not given.
        select: The components whose maps are summed; all heads if not given.
        methods: Some of `METHODS`; all if not given, but for one whose library is not installed, which the table says.
        shown: How many of the first images are kept for a figure.
        on_progress: Called after each batch.

    Raises:
        DataError: The images have no masks or no such field, a mask has another size than its image, or no image is
            left.
        ArgumentError: An image's class is none of the target's, there is no such method, or words cannot predict.
        ModelError: GradCAM was asked for by name, and its library is missing.
    """
    loaded = opened(model)
    pictured = images if isinstance(images, ImageSet) else open_images(fspath(images))
    if label is None and space is not None:
        raise ArgumentError("Only a classifier predicts.", cure="name the field of the classes, or leave out the space")
    texts: tuple[str, ...] = ()
    if space is not None and label is not None:
        _fielded(pictured, label)
        texts = tuple(sorted({str(value) for value in pictured.table[label].to_pylist()}))
    target = toward(loaded, tuple(map(spoken, texts)), (), space) if texts else toward_classes(loaded)
    target = replace(target, aliases={**target.aliases, **{text: place for place, text in enumerate(texts)}})
    planned = plan_for(loaded)
    mapper = Mapper(planned, select.of(planned) if isinstance(select, Highest) else select)
    segmentation = measured(
        loaded, pictured, target, mapper=mapper, label=label, methods=methods, shown=shown, on_progress=on_progress
    )
    card = {
        "model": loaded.id,
        "weights_hash": loaded.weights_hash,
        "data": pictured.origin,
        "label": label,
        "space": target.space,
        "components": [str(component) for component in mapper.components],
    }
    return replace(segmentation, card=card)


def _fielded(images: ImageSet, label: str) -> None:
    if label not in images.fields:
        raise DataError(
            f"Nothing is known of the {label} of these images.",
            where=images.origin,
            cure=f"name the field of their classes: {', '.join(images.fields) or 'there is none; use the predicted'}",
        )


def measured(
    model: Model,
    images: ImageSet,
    target: Target,
    *,
    mapper: Mapper,
    label: str | None = "label",
    methods: Sequence[str] | None = None,
    shown: int = 5,
    on_progress: OnProgress = silent,
) -> Segmentation:
    """Measure methods on the same images, for the same target, in one run.

    Baselines need one direction in the model's own space. Where an aligner gives each component its own, they get that
    of the linear map which comes nearest to the aligned representation of these images (ridge regression; neither
    labels nor masks are used).

    Args:
        model: The model.
        images: The images, with masks.
        target: All classes.
        mapper: The components whose maps are summed.
        label, methods, shown, on_progress: As for `segment`.

    Raises:
        DataError, ArgumentError, ModelError: As for `segment`.
    """
    passed_over = Unfit if methods is not None else ModelError
    methods = METHODS if methods is None else methods
    unknown = next((name for name in methods if name not in METHODS), None)
    if unknown is not None or not methods:
        raise ArgumentError(f"There is no method {unknown!r}.", cure=f"use some of {', '.join(METHODS)}")
    if images.read_mask is None:
        raise DataError("These images have no masks.", where=images.origin, cure="use a set with masks (`masks:PATH`)")
    if label is not None:
        _fielded(images, label)
    if label is None:
        classes = _predicted(model, mapper, images, target)
    else:
        classes = [_class(target, picture, label) for picture in images]
    makers, reasons = _makers(model, mapper, methods, passed_over)
    directions = _directions(model, mapper, images, target) if makers else None
    skipped: list[tuple[str, str]] = []
    tallies = {name: Tally() for name in methods if name not in reasons}
    kept: list[Shown] = []
    done = 0
    for pictures in _parts(images, classes, _BATCH):
        read = [(picture, code, _read(model, picture, skipped)) for picture, code in pictures]
        ready = [(picture, code, *own) for picture, code, own in read if own is not None]
        if ready:
            made = _made(model, mapper, target, makers, directions, ready)
            for name, maps in ((name, made[name]) for name in tallies):
                for map_, (_, _, _, mask) in zip(maps, ready, strict=True):
                    tallies[name].add(map_, mask)
            for row, (picture, code, _, mask) in enumerate(ready[: max(0, shown - len(kept))]):
                pixels = as_pixels(viewed(model.preprocess, picture.read()))
                own = {name: made[name][row] for name in tallies}
                kept.append(Shown(picture.id, target.names[code], pixels, mask, own))
        done += len(pictures)
        on_progress("measuring maps", done, len(images))
    if not any(tally.precisions for tally in tallies.values()) and tallies:
        raise DataError(f"None of the {len(images)} images could be used ({skipped[0][1]}).", where=skipped[0][0])
    found = [
        tallies[name].quality(name) if name in tallies else Quality(name, reason=reasons[name]) for name in methods
    ]
    return Segmentation(model.id, target.space, tuple(found), tuple(kept), tuple(skipped))


_Ready = tuple[Picture, int, Tensor, np.ndarray]


def _class(target: Target, picture: Picture, label: str) -> int:
    value = picture.fields[label]
    try:
        return target.place(str(value))
    except ArgumentError as error:
        raise DataError(error.what, where=f"{picture.id}, field `{label}`", cure=error.cure) from None


def _parts(images: ImageSet, classes: Sequence[int], size: int) -> Iterator[list[tuple[Picture, int]]]:
    coming = iter(zip(images, classes, strict=True))
    while part := list(islice(coming, size)):
        yield part


def _read(model: Model, picture: Picture, skipped: list[tuple[str, str]]) -> tuple[Tensor, np.ndarray] | None:
    """A picture's input and its mask, seen as the model sees the picture."""
    try:
        image, mask = picture.read(), None
        mask = picture.mask()
    except DataError as error:
        skipped.append((picture.id, error.what))
        return None
    if mask.shape != image.size[::-1]:
        raise DataError(
            f"The mask has {mask.shape[1]} x {mask.shape[0]} pixels, the image {image.width} x {image.height}.",
            where=picture.id,
            cure="give a mask of the image's own size",
        )
    try:
        tensor = input_of(model, image, picture.id)
    except DataError as error:
        skipped.append((picture.id, error.what))
        return None
    seen = viewed(model.preprocess, Image.fromarray(mask).convert("RGB")).mean(-1) > 0.5
    if not seen.any():
        skipped.append((picture.id, "its mask is empty"))
        return None
    return tensor, seen


def _makers(
    model: Model, mapper: Mapper, methods: Sequence[str], passed_over: type[ModelError]
) -> tuple[dict[str, Method], dict[str, str]]:
    """The baselines, and why some cannot be made or have no meaning for the model."""
    if set(methods) <= {OURS, EVIDENCE}:
        return {}, {}
    attention = Attention(model.readout, model.example())
    known: dict[str, Callable[[], Method]] = {
        "raw attention": lambda: RawAttention(attention),
        "rollout": lambda: Rollout(attention),
        "transformer attribution": lambda: TransformerAttribution(attention),
        "gradcam": lambda: GradCam(attention, model.readout),
    }
    found: dict[str, Method] = {}
    reasons: dict[str, str] = {}
    for name in methods:
        if name not in (OURS, EVIDENCE):
            try:
                found[name] = known[name]()
            except passed_over as error:
                reasons[name] = f"{error.what} ({error.cure})" if error.cure else error.what
    return found, reasons


def _directions(model: Model, mapper: Mapper, images: ImageSet, target: Target) -> Float[Tensor, "target dim"]:
    """One direction of the model's own space for each class."""
    if target.aligner is None:
        return target.directions
    found = [(scores, z) for _, scores, z in _totals(model, mapper, images, target)]
    if not found:
        raise DataError("None of the images could be used.", where=images.origin)
    scores, representations = zip(*found, strict=True)
    return nearest(torch.cat(representations), torch.cat(scores))


def _predicted(model: Model, mapper: Mapper, images: ImageSet, target: Target) -> list[int]:
    """The class that scores highest in each image; the first for those that cannot be read, which are left out."""
    codes = dict.fromkeys(images.ids, 0)
    for ids, scores, _ in _totals(model, mapper, images, target):
        codes |= dict(zip(ids, scores.argmax(1).tolist(), strict=True))
    return list(codes.values())


def _totals(
    model: Model, mapper: Mapper, images: ImageSet, target: Target
) -> Iterator[tuple[list[str], Float[Tensor, "image target"], Float[Tensor, "image dim"]]]:
    """Ids, whole scores and representations of the images that can be used, batch by batch."""
    plan = mapper.plan.at("head")
    for part in _parts(images, [0] * len(images), _BATCH):
        read = [(picture.id, own[0]) for picture, _ in part if (own := _read(model, picture, [])) is not None]
        if read:
            inputs = torch.stack([own for _, own in read]).to(model.device, model.dtype)
            found = plan.project(inputs, target.along(plan.wholes))
            total = found.values.sum(1).cpu() + target.constants
            yield [name for name, _ in read], total, found.representation.float().cpu()


def nearest(
    representations: Float[Tensor, "image dim"], scores: Float[Tensor, "image target"], ridge: float = 1e-2
) -> Float[Tensor, "target dim"]:
    """The directions along which representations come nearest to scores (ridge regression with a constant)."""
    z = representations.double() - representations.double().mean(0)
    wanted = scores.double() - scores.double().mean(0)
    gram = z.T @ z
    size = torch.eye(len(gram), dtype=torch.float64) * gram.diagonal().mean() * ridge
    return torch.linalg.solve(gram + size, z.T @ wanted).T.float()


def _made(
    model: Model,
    mapper: Mapper,
    target: Target,
    makers: dict[str, Method],
    directions: Tensor | None,
    ready: Sequence[_Ready],
) -> dict[str, Float[np.ndarray, "image height width"]]:
    """Every method's maps of a batch, in the pixels that the model sees."""
    inputs = torch.stack([own for _, _, own, _ in ready]).to(model.device, model.dtype)
    size = (int(inputs.shape[2]), int(inputs.shape[3]))
    codes = [code for _, code, _, _ in ready]
    present = sorted(set(codes))
    found = mapper(inputs, target.take(present))
    own = torch.arange(len(codes)), torch.tensor([present.index(code) for code in codes])
    maps = {name: found.enlarged(*size, evidence=name == EVIDENCE)[own].double().numpy() for name in (OURS, EVIDENCE)}
    for name, maker in makers.items():
        assert directions is not None
        made = maker(inputs, directions[codes].to(inputs)).detach().float().cpu()
        large = interpolate(made[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
        maps[name] = large.double().numpy()
    return maps
