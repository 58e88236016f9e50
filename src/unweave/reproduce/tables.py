"""The tables of the paper, each a function that makes the rows of one model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from unweave.attribute import attribute
from unweave.reproduce.setting import Setting, Subject
from unweave.store import Store
from unweave.tasks import debias as debiasing
from unweave.tasks.ablation import ablation, layers
from unweave.tasks.index import Index
from unweave.tasks.retrieval import agreement, choose, precision
from unweave.tasks.study import study

Row = dict[str, Any]

FACTORS = ("colour", "pattern", "location", "category")
"""Of the pocket world, which have features of their own."""

_POCKET_FIT = "pocket/world/5/4000"
_POCKET_BIRDS = ("pocket/birds/0/train/2000", "pocket/birds/0/validation/1000", "pocket/birds/0/test/2000")
_BIRDS = {"land": ("a landbird",), "water": ("a waterbird",)}
_SOFTNESS = {False: 1.0, True: 0.04}
"""Of the probe on birds (scikit-learn's C): its default, and what the pocket birds' difficulty was chosen with."""


@dataclass(frozen=True)
class Kind:
    """A table.

    Attributes:
        name: Of the table.
        says: What it shows.
        needs: What `--data` has to name.
        make: The rows of one model.
    """

    name: str
    says: str
    needs: str
    make: Callable[[Setting, Subject], list[Row]]


def waterbirds(setting: Setting, subject: Subject) -> list[Row]:
    """Worst and average group before and after ten components are ablated, ranked on held-out and on test images."""
    stores: list[str | None]
    if setting.pocket:
        stores = [setting.store(subject, data).place.url for data in _POCKET_BIRDS]
        label, attribute_, head = "bird", "background", "probe"
    else:
        stores = [setting.store(subject, setting.images).place.url, None, None]
        label, attribute_, head = "label", "place", "zero-shot" if subject.head == "zero-shot" else "probe"
    aligner = setting.aligner(subject)
    rows = []
    for published in (False, True):
        setting.say(f"{subject.name}: ablating, {'published' if published else 'held-out'} ranking")
        found = debiasing.experiment(
            str(stores[0]),
            *stores[1:],
            head=head,  # type: ignore[arg-type]
            words=_BIRDS,
            label=label,
            softness=_SOFTNESS[setting.pocket],
            aligner=aligner,
            published=published,
            seed=setting.seed,
        ).run(attribute_, draws=setting.draws, seed=setting.seed)
        k = min(found.k, len(found.curve) - 1)
        random = [own[min(k, len(own) - 1)] for own in found.random]
        rows.append(
            {
                "ranked on": "test images, as published" if published else "held-out images",
                "worst_before": found.curve[0].worst,
                "worst_after": found.curve[k].worst,
                "average_before": found.curve[0].average,
                "average_after": found.curve[k].average,
                "worst_random": float(np.mean([own.worst for own in random])),
                "worst_groups_known": found.best[min(k, len(found.best) - 1)].worst,
                "k_chosen": found.chosen,
                "worst_k_chosen": found.curve[found.chosen].worst,
            }
        )
    return rows


def ablations(setting: Setting, subject: Subject) -> list[Row]:
    """Accuracy as layers are ablated from the last one back."""
    store = setting.store(subject, "pocket/evaluation" if setting.pocket else setting.images)
    aligner = setting.aligner(subject) if subject.head == "zero-shot" else None
    own = study(store, subject.head, "label", aligner=aligner)
    setting.say(f"{subject.name}: ablating layers")
    steps = layers(own.components, last=True)
    found = ablation(own.store, own.head, "label", steps, rows=own.measured, mean_rows=own.fitted)
    return [
        {
            "head": subject.head,
            "layers ablated": step,
            "of": len(steps),
            "accuracy": accuracy.value,
            "low": accuracy.interval[0],
            "high": accuracy.interval[1],
        }
        for step, accuracy in enumerate(found.accuracies)
    ]


def retrieval(setting: Setting, subject: Subject) -> list[Row]:
    """Whether components with high scores rank images as the text space does; and, where factors are known, whether
    those of a factor find it better than the whole representation.
    """
    from unweave.align import open_aligned

    store = setting.store(subject, "pocket/evaluation" if setting.pocket else setting.images)
    seen, space = open_aligned(store, setting.aligner(subject))
    setting.say(f"{subject.name}: scoring and ranking")
    found = attribute(seen, space, space.features(), seed=setting.seed, samples=20)
    summary = agreement(seen, space, found).summary()
    row: Row = {}
    for name, own in summary.items():
        row |= {f"{name.replace('_', ' ')}, {what.replace('_', ' ')}": value for what, value in own.items()}
    if setting.pocket:
        row |= _precisions(setting, subject, store)
    return [row]


def _precisions(setting: Setting, subject: Subject, store: Store) -> Row:
    """Mean average precision for each factor, by components that were chosen on other scenes, and by all."""
    from unweave.align import open_aligned

    learned, space = open_aligned(setting.store(subject, _POCKET_FIT), setting.aligner(subject))
    scores = attribute(learned, space, {name: space.features()[name] for name in FACTORS}, seed=setting.seed)
    style = store.field("style")
    usual = np.flatnonzero([own == style[0] for own in style])
    whole = Index.build(store, None, rows=usual)
    row: Row = {}
    for name in FACTORS:
        values = [store.field(name)[place] for place in usual]
        own = choose(scores, name, by="margin")
        row[f"{name}, chosen"] = precision(Index.build(store, own.places, rows=usual), values, samples=20).mean
        row[f"{name}, all"] = precision(whole, values, samples=20).mean
    return row


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
    )
}
"""What `unweave reproduce` makes."""
