"""Zero-shot segmentation: where a map for an image's own class is above its mean, measured against the object's mask,
beside other ways to make maps (Chefer et al., 2021; Balasubramanian et al., 2024, section 5).

    target = toward_classes(model)
    found = segment(model, open_images("pocket/evaluation", limit=300), target)
    found.table()

Two figures go by the name mIoU, and are not the same: `foreground_iou` is the intersection over the union of the
object, pooled over the set, as published for Pixel-ImageNet; `mean_iou` is the mean of that and of the background's, as
usual on ImageNet-Segmentation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from unweave.decomposition import plan as plan_for
from unweave.errors import ArgumentError, DataError, ModelError
from unweave.images import ImageSet, Picture
from unweave.models import Model
from unweave.tasks.attention import Attention
from unweave.tasks.baselines import GradCam, Method, RawAttention, Rollout, TransformerAttribution, Unfit
from unweave.tasks.heatmap import Mapper, as_pixels, viewed
from unweave.tasks.target import Target

OURS, EVIDENCE = "components", "evidence"
"""The sum of the components' maps, as published; and the sum of what speaks for the class in each."""

METHODS = (OURS, EVIDENCE, "raw attention", "rollout", "transformer attribution", "gradcam")


@dataclass(frozen=True)
class Quality:
    """How well a method's maps fit the masks.

    Attributes:
        method: One of `METHODS`.
        images: How many were measured.
        pixel_accuracy: Pixels on the right side of the map's mean, of all pixels of the set.
        foreground_iou: Intersection over union of the object, pooled over the set.
        mean_iou: The mean of that and of the same for the background.
        average_precision: Of the pixels, ranked by the map; the mean over images.
        reason: Why there is nothing, where the method has no meaning for the model.
    """

    method: str
    images: int = 0
    pixel_accuracy: float | None = None
    foreground_iou: float | None = None
    mean_iou: float | None = None
    average_precision: float | None = None
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class Shown:
    """One image, its mask and what each method makes of it, for a figure."""

    id: str
    label: str
    pixels: UInt8[np.ndarray, "height width 3"]
    mask: Bool[np.ndarray, "height width"]
    maps: dict[str, Float[np.ndarray, "height width"]]


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What was measured.

    Attributes:
        model: Its id.
        space: What the target is of: `classifier`, or a text space.
        qualities: One for each method.
        shown: The first images.
        skipped: Images that were left out, each with the reason.
    """

    model: str
    space: str
    qualities: tuple[Quality, ...]
    shown: tuple[Shown, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def table(self) -> pa.Table:
        """One row for each method."""
        names = ("images", "pixel_accuracy", "foreground_iou", "mean_iou", "average_precision")
        numbers = [(name, pa.int64() if name == "images" else pa.float64()) for name in names]
        schema = pa.schema([("model", pa.string()), ("method", pa.string()), *numbers, ("reason", pa.string())])
        rows = [
            {"model": self.model, "method": own.method, "reason": own.reason}
            | {name: getattr(own, name) for name in names}
            for own in self.qualities
        ]
        return pa.Table.from_pylist(rows, schema=schema)


@dataclass
class _Tally:
    """Counts of pixels over the images so far."""

    right: int = 0
    pixels: int = 0
    both: int = 0
    either: int = 0
    neither: int = 0
    precisions: list[float] = field(default_factory=list)

    def add(self, map_: Float[np.ndarray, "height width"], mask: Bool[np.ndarray, "height width"]) -> None:
        """One image: above the map's mean is object."""
        found = map_ > map_.mean()
        both, either = int((found & mask).sum()), int((found | mask).sum())
        self.both, self.either = self.both + both, self.either + either
        self.pixels += mask.size
        self.neither += mask.size - either
        self.right += mask.size - either + both
        self.precisions.append(average_precision(map_, mask))

    def quality(self, method: str) -> Quality:
        foreground = self.both / max(1, self.either)
        background = self.neither / max(1, self.pixels - self.both)
        return Quality(
            method,
            len(self.precisions),
            self.right / max(1, self.pixels),
            foreground,
            (foreground + background) / 2,
            float(np.mean(self.precisions)),
        )


def average_precision(map_: Float[np.ndarray, "height width"], mask: Bool[np.ndarray, "height width"]) -> float:
    """The area under precision over recall of pixels ranked by a map; pixels of one value come together.

    Returns:
        0 ... 1; not a number where the mask is empty.
    """
    values, truth = map_.ravel(), mask.ravel()
    if not truth.any():
        return float("nan")
    order = np.argsort(-values, kind="stable")
    ranked, hits = values[order], truth[order].cumsum()
    last = np.append(np.flatnonzero(np.diff(ranked)), ranked.size - 1)
    gained = np.diff(np.concatenate([[0], hits[last]]))
    return float((gained * hits[last] / (last + 1)).sum() / truth.sum())


def segment(
    model: Model,
    images: ImageSet,
    target: Target,
    *,
    mapper: Mapper | None = None,
    label: str | None = "label",
    methods: Sequence[str] | None = None,
    batch: int = 16,
    shown: int = 4,
    on_image: Callable[[int], None] = lambda count: None,
) -> Segmentation:
    """Measure methods on the same images, for the same target, in one run.

    Baselines need one direction in the model's own space. Where an aligner gives each component its own, they get that
    of the linear map which comes nearest to the aligned representation of these images (ridge regression; neither
    labels nor masks are used).

    Args:
        model: The model.
        images: With masks.
        target: All classes.
        mapper: Which components are summed; all heads if not given.
        label: The field that names each image's class; None for the class that the model itself says.
        methods: Some of `METHODS`; all if not given, but for one whose library is not installed, which the table says.
        batch: Images at a time.
        shown: How many of the first images to keep for a figure.
        on_image: Called with the number of images that are done.

    Raises:
        DataError: The images have no masks or no such field, a mask has another size than its image, or no image is
            left.
        ArgumentError: An image's class is none of the target's, or there is no such method.
        ModelError: GradCAM was asked for by name, and its library is missing.
    """
    passed_over = Unfit if methods is not None else ModelError
    methods = METHODS if methods is None else methods
    unknown = next((name for name in methods if name not in METHODS), None)
    if unknown is not None or not methods:
        raise ArgumentError(f"There is no method {unknown!r}.", cure=f"use some of {', '.join(METHODS)}")
    if images.read_mask is None:
        raise DataError("These images have no masks.", where=images.origin, cure="use a set with masks (`masks:PATH`)")
    if label is not None and label not in images.fields:
        raise DataError(
            f"Nothing is known of the {label} of these images.",
            where=images.origin,
            cure=f"name the field of their classes: {', '.join(images.fields) or 'there is none; use the predicted'}",
        )
    mapper = mapper or Mapper(plan_for(model))
    if label is None:
        classes = _predicted(model, mapper, images, target, batch)
    else:
        classes = [_class(target, picture, label) for picture in images]
    makers, reasons = _makers(model, mapper, methods, passed_over)
    directions = _directions(model, mapper, images, target, batch) if makers else None
    skipped: list[tuple[str, str]] = []
    tallies = {name: _Tally() for name in methods if name not in reasons}
    kept: list[Shown] = []
    done = 0
    for pictures in _parts(images, classes, batch):
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
        on_image(done)
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
    seen = viewed(model.preprocess, Image.fromarray(mask).convert("RGB")).mean(-1) > 0.5
    if not seen.any():
        skipped.append((picture.id, "its mask is empty"))
        return None
    return model.preprocess(image), seen


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


def _directions(
    model: Model, mapper: Mapper, images: ImageSet, target: Target, batch: int
) -> Float[Tensor, "target dim"]:
    """One direction of the model's own space for each class."""
    if target.aligner is None:
        return target.directions
    found = [(scores, z) for _, scores, z in _totals(model, mapper, images, target, batch)]
    if not found:
        raise DataError("None of the images could be used.", where=images.origin)
    scores, representations = zip(*found, strict=True)
    return nearest(torch.cat(representations), torch.cat(scores))


def _predicted(model: Model, mapper: Mapper, images: ImageSet, target: Target, batch: int) -> list[int]:
    """The class that scores highest in each image; the first for those that cannot be read, which are left out."""
    codes = dict.fromkeys(images.ids, 0)
    for ids, scores, _ in _totals(model, mapper, images, target, batch):
        codes |= dict(zip(ids, scores.argmax(1).tolist(), strict=True))
    return list(codes.values())


def _totals(
    model: Model, mapper: Mapper, images: ImageSet, target: Target, batch: int
) -> Iterator[tuple[list[str], Float[Tensor, "image target"], Float[Tensor, "image dim"]]]:
    """Ids, whole scores and representations of the images that can be used, batch by batch."""
    plan = mapper.plan.at("head")
    for part in _parts(images, [0] * len(images), batch):
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
