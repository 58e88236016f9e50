"""The tables of the paper, each a function that makes the rows of one model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

import unweave
from unweave.alignment import Aligner, aligned
from unweave.attribution import score
from unweave.errors import ArgumentError, DataError
from unweave.figures import MapRow, maps_figure, save_figure
from unweave.images import ImageSet, input_of, open_images
from unweave.models import Model
from unweave.models.preprocessing import viewed
from unweave.reproduction.setting import Setting, Subject
from unweave.store import Store
from unweave.tasks import Classification, Sides, ablate, choose, debias
from unweave.tasks.debiasing import Ranking
from unweave.tasks.heatmaps import Highest, as_pixels
from unweave.tasks.index import Index
from unweave.tasks.mapper import Mapper
from unweave.tasks.precision import agreement, precision
from unweave.tasks.segmentation import EVIDENCE, OURS, measured
from unweave.tasks.target import Target, toward_classes, toward_texts
from unweave.text.phrases import spoken

Row = dict[str, Any]

FACTORS = ("colour", "pattern", "location", "category")
"""Of the pocket world, which have features of their own."""

_SCENES, _DRAWN = 400, 8
"""Images for segmentation of the pocket world, and for drawing."""

_POCKET_FIT = "pocket/world/5/4000"
_POCKET_BIRDS = ("pocket/birds/0/train/2000", "pocket/birds/0/validation/1000", "pocket/birds/0/test/2000")
_BIRDS = {"land": ("a landbird",), "water": ("a waterbird",)}
_REGULARISATION = {False: 1.0, True: 0.04}
"""The probe's on birds (scikit-learn's C): its default, and what the pocket birds' difficulty was chosen with."""


@dataclass(frozen=True)
class Kind:
    """A table.

    Attributes:
        name: Of the table.
        says: What it shows.
        needs: What `--data` has to name.
        make: The rows of one model.
        ours: What rows have that the published figures are of.
    """

    name: str
    says: str
    needs: str
    make: Callable[[Setting, Subject], list[Row]]
    ours: Mapping[str, str] = field(default_factory=dict)


def waterbirds(setting: Setting, subject: Subject) -> list[Row]:
    """Worst and average group before and after ten components are ablated, ranked on held-out and on test images."""
    if setting.pocket:
        sides = Sides(*(setting.store(subject, data) for data in _POCKET_BIRDS))
        label, attribute, by = "bird", "background", "probe"
    else:
        sides = Sides.of(setting.store(subject, setting.images))
        label, attribute, by = "label", "place", "zero-shot" if subject.by == "zero-shot" else "probe"
    classification = Classification(
        by,  # type: ignore[arg-type]
        label,
        setting.aligner(subject),
        _REGULARISATION[setting.pocket],
        _BIRDS,
    )
    rows = []
    for published in (False, True):
        setting.say(f"{subject.name}: ablating, {'published' if published else 'held-out'} ranking")
        debiasing = debias(
            sides,
            attribute,
            classification=classification,
            ranking=Ranking(published=published),
            draws=setting.draws,
            seed=setting.seed,
        )
        k = min(debiasing.k, len(debiasing.curve) - 1)
        random = [groups[min(k, len(groups) - 1)] for groups in debiasing.random]
        rows.append(
            {
                "ranked on": "test images, as published" if published else "held-out images",
                "worst_before": debiasing.curve[0].worst,
                "worst_after": debiasing.curve[k].worst,
                "average_before": debiasing.curve[0].average,
                "average_after": debiasing.curve[k].average,
                "worst_random": float(np.mean([groups.worst for groups in random])),
                "worst_groups_known": debiasing.best[min(k, len(debiasing.best) - 1)].worst,
                "k_chosen": debiasing.chosen,
                "worst_k_chosen": debiasing.curve[debiasing.chosen].worst,
            }
        )
    return rows


def ablations(setting: Setting, subject: Subject) -> list[Row]:
    """Accuracy as layers are ablated from the last one back."""
    store = setting.store(subject, "pocket/evaluation" if setting.pocket else setting.images)
    space = setting.aligner(subject) if subject.by == "zero-shot" else None
    setting.say(f"{subject.name}: ablating layers")
    ablation = ablate(store, "last", classification=Classification(subject.by, space=space))
    return [
        {
            "classifier": subject.by,
            "layers ablated": step,
            "of": len(ablation.steps),
            "accuracy": accuracy.value,
            "low": accuracy.interval[0],
            "high": accuracy.interval[1],
        }
        for step, accuracy in enumerate(ablation.accuracies)
    ]


def retrieval(setting: Setting, subject: Subject) -> list[Row]:
    """Whether components with high scores rank images as the text space does; and, where factors are known, whether
    those of a factor find it better than the whole representation.
    """
    store = setting.store(subject, "pocket/evaluation" if setting.pocket else setting.images)
    view, space = aligned(store, setting.aligner(subject))
    setting.say(f"{subject.name}: scoring and ranking")
    scores = score(view, space=space, seed=setting.seed, samples=20)
    summary = agreement(view, space, scores).summary()
    row: Row = {}
    for name, quartiles in summary.items():
        row |= {f"{name.replace('_', ' ')}, {what.replace('_', ' ')}": value for what, value in quartiles.items()}
    if setting.pocket:
        row |= _precisions(setting, subject, store)
    return [row]


def _precisions(setting: Setting, subject: Subject, store: Store) -> Row:
    """Mean average precision for each factor, by components that were chosen on other scenes, and by all."""
    scores = score(setting.store(subject, _POCKET_FIT), FACTORS, space=setting.aligner(subject), seed=setting.seed)
    usual = store.view().where(style="noto")
    whole = Index.build(usual, representation=True)
    row: Row = {}
    for name in FACTORS:
        values = usual.field(name)
        try:
            places = list(choose(scores, name, by="margin").places)
        except ArgumentError:  # no component is more about this than about the others: so the table says
            places = []
        mean_precision = precision(Index.build(usual.select(places)), values, samples=20).mean if places else None
        row[f"{name}, chosen"] = mean_precision
        row[f"{name}, all"] = precision(whole, values, samples=20).mean
    return row


def segmentations(setting: Setting, subject: Subject) -> list[Row]:
    """How well maps for an image's own class find the object, at the mean of each map, beside other methods. Summed are
    the better half of the heads by their mean score for the classes, on the images that aligners are fitted to.
    """
    if setting.pocket:
        images = open_images("pocket/evaluation").where("style", "noto")[: setting.limit or _SCENES]
    else:
        images = open_images(setting.images, limit=setting.limit)
    named = "label" in images.fields
    if not named and subject.by != "model":
        return [{"method": OURS, "why not": "the images name no classes, and the model has no classifier of its own"}]
    model = setting.model(subject)
    plan, target = unweave.plan(model), _target(setting, subject, model, images)
    classes = {name: (_said(name),) for name in (_labels(images) if named else target.names)}
    setting.say(f"{subject.name}: segmenting {len(images)} images")
    fitted = setting.store(subject, setting.fit)
    scores = score(fitted, classes, space=setting.aligner(subject), samples=20, seed=setting.seed)
    try:
        heads = Highest(scores).of(plan)
    except ArgumentError:  # too few images to tell any from chance
        heads = None
    mapper = Mapper(plan, heads)
    # ImageNet-Segmentation names no classes: there the map is of the class that the model itself sees, as usual.
    segmentation = measured(model, images, target, mapper=mapper, label="label" if named else None, shown=0)
    return [
        {
            "method": quality.method,
            "heads": len(mapper.components) if quality.method in (OURS, EVIDENCE) else None,
            "images": quality.images,
            "pixel_accuracy": quality.pixel_accuracy,
            "foreground_iou": quality.foreground_iou,
            "mean_iou": quality.mean_iou,
            "map": quality.average_precision,
            "why not": quality.reason,
        }
        for quality in segmentation.qualities
    ]


def heatmaps(setting: Setting, subject: Subject) -> list[Row]:
    """Maps of all heads for each image's own class, drawn; how long they take beside a forward pass; and how much of
    the score lies in them.
    """
    data = "pocket/evaluation" if setting.pocket else setting.images
    images = open_images(data, limit=min(setting.limit or _DRAWN, _DRAWN))
    model = setting.model(subject)
    target = _target(setting, subject, model, images)
    _labels(images)
    mapper = Mapper(unweave.plan(model))
    setting.say(f"{subject.name}: mapping {len(images)} images")
    rows, seconds, plain, inside = list[MapRow](), list[float](), list[float](), list[float]()
    for number, picture in enumerate(images):
        pixels = input_of(model, picture.read(), picture.id)[None].to(model.device, model.dtype)
        wanted = target.take([target.place(str(picture.fields["label"]))])
        if number == 0:  # what is made once for each model is not timed
            mapper(pixels, wanted)
            model.readout(pixels)
        began = perf_counter()
        with torch.inference_mode():
            model.readout(pixels)
        plain.append(perf_counter() - began)
        began = perf_counter()
        maps = mapper(pixels, wanted)
        seconds.append(perf_counter() - began)
        summed = maps.summed()[0, 0]
        total, part = float(maps.total[0, 0]), float(summed.sum())
        inside.append(part)
        view = as_pixels(viewed(model.preprocess, picture.read()))
        numbers = [("score", total), ("in the maps", part)]
        rows.append(MapRow(view, f"{wanted.names[0]}\n{picture.id}", [summed.double().numpy()], numbers))
    title = f"{subject.name}: where the score for the class is read"
    figure = maps_figure(rows, [f"sum of {len(mapper.components)} heads"], title=title, label="score of a token")
    path = setting.file("heatmaps", subject, "png")
    save_figure(figure, path)
    return [
        {
            "images": len(images),
            "heads": len(mapper.components),
            "seconds": median(seconds),
            "of a forward pass": median(mapped / other for mapped, other in zip(seconds, plain, strict=True)),
            "mean score in the maps": float(np.mean(inside)),
            "figure": str(path),
        }
    ]


def _target(setting: Setting, subject: Subject, model: Model, images: ImageSet) -> Target:
    """All classes: of the model's own classifier, or what the images' labels say in words."""
    if subject.by == "model":
        return toward_classes(model)
    aligner = Aligner.load(setting.aligner(subject))
    texts = {name: (_said(name),) for name in _labels(images)}
    return toward_texts(model, setting.words, texts, None if aligner.measured.get("identity") else aligner)


def _labels(images: ImageSet) -> list[str]:
    """The classes of images.

    Raises:
        DataError: They name none.
    """
    if "label" not in images.fields:
        raise DataError("These images name no classes.", where=images.origin, cure="use images with a label")
    return sorted({str(value) for value in images.table["label"].to_pylist() if value is not None})


def _said(label: str) -> str:
    return f"a {spoken(label)}"


TABLES: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "waterbirds",
            "Accuracy of the worst group and of the average group, with ten components ablated.",
            "Waterbirds, as published: the folder with `metadata.csv`, or `waterbirds:FOLDER`",
            waterbirds,
        ),
        Kind(
            "ablation",
            "Accuracy as layers are ablated from the last one back (figure 3).",
            "ImageNet's validation images",
            ablations,
        ),
        Kind(
            "retrieval",
            "Spearman's correlation of scores with how components rank images by text.",
            "ImageNet's validation images",
            retrieval,
        ),
        Kind(
            "segmentation",
            "Zero-shot segmentation at the mean of each map; `foreground_iou` as published, `mean_iou` as for gtsegs.",
            "images with masks: `gtsegs_ijcv.mat`, or `masks:FOLDER` for Pixel-ImageNet",
            segmentations,
            {"method": OURS},
        ),
        Kind(
            "heatmaps",
            "Maps of all heads for the class of each image, drawn; and what they cost.",
            "a few images with a label, such as ImageNet's validation images",
            heatmaps,
        ),
    )
}
"""What `unweave reproduce` makes."""
