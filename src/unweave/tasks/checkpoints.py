"""A debiased classifier as a checkpoint: the ablation of `debias`, written into the model's own weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import RenderableType
from rich.text import Text
from torch import Tensor

from unweave.errors import AlignmentError, ArgumentError, ModelError
from unweave.extraction import whole_pictures
from unweave.images import batches
from unweave.models import Model
from unweave.progress import OnProgress, silent
from unweave.results import Shown
from unweave.surgery.edit import Edit, mean_ablated
from unweave.tasks.classifier import Classification, model_of
from unweave.tasks.debiasing import Debiasing, Sides
from unweave.tasks.groups import Groups, balanced, grouped, groups_of
from unweave.view import View

_TRIED = (1, 2, 3, 5, 8, 13, 20)
"""Numbers of components that a checkpoint is tried with."""

_AVERAGED = 512
"""Images that means are over."""

_BATCH = 16
"""Images at a time."""


@dataclass(frozen=True, eq=False, repr=False)
class Checkpoint(Shown):
    """A debiased classifier as a checkpoint.

    Attributes:
        path: The checkpoint.
        k: How many components it ablates: the first so many of the ranking.
        edit: What was changed in the weights, and which components could not be.
        groups: How well the edited model's own representations are told, on the test images. This is the total effect:
            later layers answer to what was ablated, which the curves of `Debiasing` hold.
        apart: How far representations of the checkpoint are from those of the ablated graph, relative, at most.
    """

    path: Path
    k: int
    edit: Edit
    groups: Groups
    apart: float

    def about(self) -> dict[str, Any]:
        """What is known of it, ready for JSON."""
        return {
            "path": str(self.path),
            "k": self.k,
            "ablated": [str(component) for component in self.edit.expressed],
            "worst": self.groups.worst,
            "average": self.groups.average,
            "groups": {name: accuracy.value for name, accuracy in self.groups.accuracies.items()},
            "apart": self.apart,
            "refused": [{"component": str(part.component), "why": str(part.reason)} for part in self.edit.refused],
        }

    def told(self) -> list[RenderableType]:
        """What the checkpoint is worth, in a sentence or two."""
        text = (
            f"The checkpoint, without the first {self.k}, tells the worst group at {self.groups.worst:.3f} and the "
            f"average at {self.groups.average:.3f}: its later layers answer to what is gone. It is the ablated model "
            f"to {self.apart:.0e}."
        )
        cuts = (Text(f"not in the weights: {cut.component}: {cut.reason}") for cut in self.edit.refused)
        return [Text(text), *cuts]


def checkpoint(
    debiasing: Debiasing,
    sides: Sides,
    path: str | PathLike[str],
    *,
    classification: Classification | None = None,
    k: int | None = None,
    model: Model | None = None,
    averaged: int = _AVERAGED,
    on_progress: OnProgress = silent,
) -> Checkpoint:
    """Write an ablation into the weights, save them, and tell the groups by what the saved checkpoint computes.

    As later layers answer to what is gone, fewer components than `debiasing.k` may be best, or none. Unless it is
    given, their number is chosen on held-out images by the rule of `debias`, which knows no groups, among those that
    tell no fewer of these images right than the model as it is; each candidate costs a forward pass over them.

    Args:
        debiasing: What was ranked and ablated.
        sides: The images that it was measured on.
        path: A name that ends in `.safetensors`.
        classification: How classes are told; as in `debias` if not given.
        k: How many components, the first so many; chosen among a few numbers up to `debiasing.k` if not given.
        model: The model, where the contributions do not know how it is loaded.
        averaged: How many of the fitted images means are over, drawn at equal distances.
        on_progress: Called as images go through the models.

    Raises:
        AlignmentError: The classifier reads aligned contributions, which the checkpoint alone does not give.
        ArgumentError: Nothing was ablated.
        ModelError: No number of components is worth it, or the model has other weights now.
        UnweaveError: The checkpoint cannot be written.
    """
    fitted, held_out, test = sides.views
    classifier = (classification or debiasing.classification).fitted(fitted)
    label, attribute = str(debiasing.card["label"]), str(debiasing.card["attribute"])
    if classifier.aligner is not None and not classifier.aligner.measured.get("identity"):
        raise AlignmentError(
            "A classifier in another model's text space cannot read a checkpoint by itself.",
            where=debiasing.model,
            cure="use a probe or the model's own classifier; or extract the edited checkpoint, and align it",
        )
    counts = [k] if k is not None else sorted({count for count in (*_TRIED, debiasing.k) if 0 < count <= debiasing.k})
    if not counts or not 1 <= counts[-1] <= len(debiasing.order):
        raise ArgumentError(
            "No components were ablated, so there is nothing to write.",
            where=debiasing.model,
            cure=f"use a k from 1 to {len(debiasing.order)}",
        )
    loaded, origin = model_of(fitted, model), fitted.origin
    few = fitted.rows(np.linspace(0, len(fitted) - 1, min(averaged, len(fitted))).astype(int))
    total = len(counts) * (len(few) + (0 if k is not None else len(held_out))) + len(test)
    done = 0

    def passed(images: int) -> None:
        nonlocal done
        done += images
        on_progress("writing the ablation into the weights", done, total)

    def edited(count: int) -> Edit:
        return mean_ablated(
            loaded,
            [debiasing.components[place] for place in debiasing.order[:count]],
            _inputs(loaded, few, passed),
            source=str(fitted.source),
            attention=origin.attention if origin else "through",
            nonlinear=origin.nonlinear if origin else "stop",
        )

    def right(edit: Edit, view: View) -> np.ndarray:
        readout = edit.apply().readout
        with torch.inference_mode():
            sums = torch.cat([readout(images).float().cpu() for images in _inputs(loaded, view, passed)])
        return classifier.predicted(sums) == groups_of(view, classifier, label, attribute)[2]

    edits = {count: edited(count) for count in counts}
    best: int | None = counts[0]
    if k is None:
        before = classifier.predicted(held_out.representation) == classifier.codes(held_out, label)
        best = _carried({count: right(edit, held_out) for count, edit in edits.items()}, before)
    if best is None:
        raise ModelError(
            f"In the weights the ablation costs more than it brings: with {', '.join(map(str, edits))} components, "
            "held-out images are told worse than by the model as it is.",
            where=debiasing.model,
            cure="keep the ablation of contributions; or say how many components to write all the same",
        )
    edit = edits[best]
    names, groups, _ = groups_of(test, classifier, label, attribute)
    images = next(_inputs(loaded, test, lambda count: None))
    with torch.inference_mode():
        ours, ablated = edit.apply().readout(images), edit.total(images)
    apart = float(((ours - ablated).norm(dim=-1) / ablated.norm(dim=-1)).max())
    return Checkpoint(edit.save(Path(path)), best, edit, grouped(right(edit, test), names, groups), apart)


def _carried(tried: Mapping[int, np.ndarray], before: np.ndarray) -> int | None:
    """Of the edits that tell no fewer images right than the model as it is, the best by the rule of `debias`.

    Args:
        tried: Which held-out images are told right by the edit of so many components.
        before: Which are by the model as it is.
    """
    kept = [count for count, right in tried.items() if right.mean() >= before.mean()]
    return max(kept, key=lambda count: balanced(before, tried[count]), default=None)


def _inputs(model: Model, view: View, on_images: Callable[[int], None]) -> Iterator[Tensor]:
    """The images of a view, as the model's input."""
    for ids, images in batches(model, whole_pictures(view), _BATCH, "raise"):
        yield images.to(model.device, model.dtype)
        on_images(len(ids))
