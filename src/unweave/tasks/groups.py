"""Groups: images of one class that have the same value of what misleads, and how well each is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unweave.errors import DataError
from unweave.tasks.ablation import Accuracy
from unweave.tasks.classifier import Classifier
from unweave.view import View


@dataclass(frozen=True)
class Groups:
    """How well the images of each group are told.

    Attributes:
        accuracies: The accuracy of each group, by its name.
    """

    accuracies: Mapping[str, Accuracy]

    @property
    def worst(self) -> float:
        """The accuracy of the group that is told worst."""
        return min(accuracy.value for accuracy in self.accuracies.values())

    @property
    def worst_group(self) -> str:
        """The group that is told worst."""
        return min(self.accuracies, key=lambda name: self.accuracies[name].value)

    @property
    def average(self) -> float:
        """The mean over groups, whatever their sizes."""
        return sum(accuracy.value for accuracy in self.accuracies.values()) / len(self.accuracies)


def groups_of(
    view: View, classifier: Classifier, label: str, attribute: str
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The group of each image: its class, and the value of what misleads.

    Args:
        view: The images.
        classifier: The classifier whose classes they are of.
        label: The field that names the class.
        attribute: The field that has what misleads, such as `background`.

    Returns:
        The names of the groups, the group of each image, and its class.

    Raises:
        DataError: There are no such fields, an image lacks one of them, or a group has no images.
    """
    codes, values = classifier.codes(view, label), view.field(attribute)
    lacking = next(
        (row for row, (code, value) in enumerate(zip(codes, values, strict=True)) if code < 0 or value is None), None
    )
    if lacking is not None:
        raise DataError(
            f"The image has no {label} or no {attribute}, so it is in no group.",
            where=f"{view.source}: {view.ids[lacking]}",
            cure="choose images that have both",
        )
    others = sorted({str(value) for value in values})
    names = [f"{classifier.classes[code]}, {other}" for code in sorted(set(codes.tolist())) for other in others]
    groups = np.array(
        [names.index(f"{classifier.classes[code]}, {value}") for code, value in zip(codes, values, strict=True)],
        np.int64,
    )
    counts = np.bincount(groups, minlength=len(names)) if len(groups) else np.zeros(0, np.int64)
    if len(names) < 2 or not counts.all():
        empty = next((name for name, count in zip(names, counts, strict=True) if not count), None)
        what = f"The group {empty!r} has no images." if empty else f"There are {len(names)} groups."
        raise DataError(what, where=str(view.source), cure="choose images of every class with every value")
    return names, groups, codes


def grouped(right: np.ndarray, names: Sequence[str], groups: np.ndarray) -> Groups:
    """How well each group is told, from which images are told right."""
    members = [(name, groups == place) for place, name in enumerate(names)]
    return Groups({name: Accuracy(int(right[rows].sum()), int(rows.sum())) for name, rows in members})


def balanced(before: np.ndarray, after: np.ndarray) -> float:
    """How often images are told right that were right before, and that were not, both counting alike."""
    parts = [after[rows].mean() for rows in (before, ~before) if rows.any()]
    return float(np.mean(parts))
