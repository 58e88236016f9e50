"""Heatmaps: where in an image a component reads what speaks for a text or a class (Gandelsman et al., 2024, section 5;
Balasubramanian et al., 2024, section 4).

A head's contribution is a sum over the tokens that it reads, so its score along a direction is one too. Each token's
share is laid at its cell of the layer's own grid, with windows undone. What has no cell (class and register tokens,
biases, what is not chosen) is reported as numbers, so that everything adds up to the score of the whole image.

    heatmaps = unweave.heatmap(model, "photos/", texts=["a dog"], space="aligner", select="last:4,!kind:mlp")
    heatmaps.summed()                    # [image, target, row, column], signed
    heatmaps.total                       # the score
    heatmaps.figure()
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from unweave.alignment import Space
from unweave.attribution.scores import Scores
from unweave.components import Component, Selection
from unweave.decomposition import Plan
from unweave.decomposition import plan as plan_for
from unweave.errors import ArgumentError, DataError
from unweave.extraction.inputs import reader, rows_of
from unweave.images import Batches, ImageSet, open_images
from unweave.images.batches import Source
from unweave.models import Model, opened
from unweave.models.preprocessing import viewed
from unweave.progress import OnProgress, silent
from unweave.results import verb
from unweave.tasks.mapper import Mapper
from unweave.tasks.maps import ROWS, Heatmaps, joined
from unweave.tasks.target import toward


@dataclass(frozen=True, eq=False)
class Highest:
    """The components that score highest, of those that read tokens at known places and are above chance.

    Attributes:
        scores: What `unweave.score` returned, or the folder that it was saved to.
        features: The features that count; for several the mean of their scores, and one above chance is enough. All
            that were scored if none is named.
        count: The most components; the better half if not given.
    """

    scores: Scores | str | os.PathLike[str]
    features: Sequence[str] = ()
    count: int | None = None

    def of(self, plan: Plan) -> tuple[Component, ...]:
        """The components of a model's plan.

        Raises:
            ArgumentError: A feature was not scored, or no component is above chance.
            DataError: The scores are of another model.
        """
        scores = self.scores if isinstance(self.scores, Scores) else Scores.load(self.scores)
        columns = [scores.column(name) for name in self.features or scores.features]
        placed = {part.whole for part in plan.at("token").components if part.row is not None}
        strange = next((part for part in scores.components if part not in set(plan.at("head").components)), None)
        if strange is not None:
            raise DataError(
                f"The scores are of {strange}, which is no component of the model.",
                where=plan.name,
                cure="score contributions of this model at level `head`",
            )
        total, above = scores.values[:, columns].mean(1), scores.above()[:, columns].any(1)
        order = torch.argsort(total, descending=True, stable=True).tolist()
        ranked = [place for place in order if scores.components[place] in placed]
        kept = ranked[: len(ranked) // 2 if self.count is None else self.count]
        chosen = tuple(scores.components[place] for place in kept if above[place])
        if not chosen:
            raise ArgumentError(
                f"No component that reads tokens is above chance for {', '.join(self.features):.80}.",
                cure="choose components yourself",
            )
        return chosen


@verb
def heatmap(
    model: Model | str,
    images: ImageSet | Sequence[Source] | str | os.PathLike[str] | Float[Tensor, "image channel height width"],
    *,
    texts: Sequence[str] | str = (),
    classes: Sequence[str] | str = (),
    against: Sequence[str] | str = (),
    space: Space = None,
    select: Selection | Highest = None,
    on_progress: OnProgress = silent,
) -> Heatmaps:
    """Where the chosen components read what speaks for texts or classes; everything adds up to the score.

    Args:
        model: A model, or its id.
        images: Pictures, as an image set, files, or what `unweave.open_images` takes; or a batch that is preprocessed.
            Of regions of them (`ImageSet.at`) maps show where the score of the region is read.
        texts: The texts that maps are made for; or
        classes: the classes of the model's own classifier.
        against: Texts (or classes) whose mean is taken off: maps show what speaks for one rather than for these.
        space: What brings components into the text space of the texts (see `unweave.alignment.Space`).
        select: The components that are mapped; all heads if not given.
        on_progress: Called after each image.

    Raises:
        ArgumentError: Neither texts nor classes are given, or both; the selection matches nothing that reads tokens at
            known places.
        DataError: None of the images can be read.
        AlignmentError: The aligner is of another model.
    """
    if bool(texts) == bool(classes):
        raise ArgumentError("Maps are of texts or of classes.", cure="give one of `texts` and `classes`")
    loaded = opened(model)
    target = toward(loaded, texts, classes, space)
    if against:
        target = target.against(toward(loaded, against if texts else (), against if classes else (), space))
    pictured = open_images(os.fspath(images)) if isinstance(images, (str, os.PathLike)) else images
    regional = plan_for(loaded, regions=True) if isinstance(pictured, ImageSet) and pictured.regions else None
    planned = plan_for(loaded) if regional is None else regional.of(1)
    mapper = Mapper(planned, select.of(planned) if isinstance(select, Highest) else select)
    card = {"model": loaded.id, "weights_hash": loaded.weights_hash, "space": target.space}
    if isinstance(pictured, Tensor):
        return replace(mapper(pictured, target), card=card)
    parts, pixels = [], []
    loader = Batches(list(rows_of(pictured, 1)), reader(loaded, regional or planned), lambda ids, read: read, 1)
    for _, (read,) in loader:
        weights = None if read.weights is None else read.weights[None].to(loaded.device, loaded.dtype)
        parts.append(mapper(read.image[None].to(loaded.device, loaded.dtype), target, read.ids, weights))
        on_progress("mapping images", len(parts) + len(loader.skipped), len(pictured))
    if not parts:
        name, reason = loader.skipped[0]
        cure = loader.failure.cure if loader.failure else None
        raise DataError(f"None of the images could be read ({reason}).", where=name, cure=cure)
    there = {picture.id: picture for picture in pictured[:]}
    pixels = [as_pixels(viewed(loaded.preprocess, there[part.ids[0]].read())) for part in parts[:ROWS]]
    skipped = [{"id": name, "reason": reason} for name, reason in loader.skipped]
    return replace(joined(parts), pixels=np.stack(pixels), card=card | {"skipped": skipped})


def as_pixels(view: Float[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
    """Numbers 0 ... 1 as the pixels of a picture."""
    return (255 * view + 0.5).astype(np.uint8)
