"""Debiasing: find the components that carry what misleads a classifier, and make them say the same of every image.

    ranking = ranked(attribution, spurious="background", core="bird")
    found = debias(sides, head, ranking, "label", "background")
    found.curve[10].worst, found.curve[0].worst

Components are ranked by their score for a spurious feature less that for the core one, on held-out images, and the
first k are replaced by their mean. Nothing is trained. Groups are used to measure, and for the upper
bound; not to rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

import unweave
from unweave.align import open_aligned
from unweave.attribute import Attribution
from unweave.attribute import attribute as attribute_to
from unweave.components import Component
from unweave.errors import AlignmentError, ArgumentError, DataError, ModelError
from unweave.extraction import pictures
from unweave.images import batches
from unweave.models import Model
from unweave.store import Rows, Store, open_store
from unweave.surgery.edit import Edit, mean_ablated
from unweave.tasks.ablation import Accuracy, Sums, means
from unweave.tasks.head import Head, HeadKind, head_of
from unweave.text import features as read_features
from unweave.text.phrases import chosen

K = 10
"""Components to ablate, as published."""

_TRIED = (1, 2, 3, 5, 8, 13, 20)
"""Numbers of components that a checkpoint is tried with."""


@dataclass(frozen=True)
class Groups:
    """How well the images of each group are told.

    Attributes:
        accuracies: By the name of the group.
    """

    accuracies: Mapping[str, Accuracy]

    @property
    def worst(self) -> float:
        """Of the group that is told worst."""
        return min(own.value for own in self.accuracies.values())

    @property
    def worst_group(self) -> str:
        """Which that is."""
        return min(self.accuracies, key=lambda name: self.accuracies[name].value)

    @property
    def average(self) -> float:
        """The mean over groups, whatever their sizes."""
        return sum(own.value for own in self.accuracies.values()) / len(self.accuracies)


@dataclass(frozen=True, eq=False)
class Side:
    """Images, and what is known of them.

    Attributes:
        store: Their contributions.
        rows: Which images; None for all.
    """

    store: Store
    rows: Rows = None

    @property
    def numbers(self) -> np.ndarray:
        """The rows, as numbers."""
        return self.store.rows(self.rows)


@dataclass(frozen=True, eq=False)
class Debiased:
    """What ablating components does to a classifier.

    Attributes:
        model: The model's id.
        head: Which classifier.
        components: Of the model.
        order: Their places, in the order in which they are ablated.
        curve: Groups on the test images with none ablated, the first, the first two, ...
        chosen: How many to ablate, chosen without groups (see `debias`).
        k: How many are reported.
        random: For each draw, the curve with components drawn at random.
        best: The curve with components chosen by the groups of held-out images, one by one: an upper bound.
        best_order: Which those are.
        protocol: `held-out`, or `published`, which ranks on the test images.
    """

    model: str
    head: str
    components: tuple[Component, ...]
    order: tuple[int, ...]
    curve: tuple[Groups, ...]
    chosen: int
    k: int
    random: tuple[tuple[Groups, ...], ...]
    best: tuple[Groups, ...]
    best_order: tuple[int, ...]
    protocol: str

    @property
    def ablated(self) -> tuple[Component, ...]:
        """The first `k` components."""
        return tuple(self.components[place] for place in self.order[: self.k])

    def table(self) -> pa.Table:
        """One row for each way to choose components and each number of them: the worst, the average and all groups."""
        rows = []
        ways = [("ranked", self.curve), *(("random", own) for own in self.random), ("groups known", self.best)]
        for number, (way, curve) in enumerate(ways):
            for k, groups in enumerate(curve):
                worst = groups.accuracies[groups.worst_group]
                row: dict[str, object] = {
                    "model": self.model,
                    "components": way,
                    "draw": number - 1 if way == "random" else None,
                    "k": k,
                    "worst": groups.worst,
                    "worst_low": worst.interval[0],
                    "worst_high": worst.interval[1],
                    "worst_group": groups.worst_group,
                    "average": groups.average,
                }
                row |= {f"group {name}": own.value for name, own in groups.accuracies.items()}
                rows.append(row)
        return pa.Table.from_pylist(rows)


def candidates(components: Sequence[Component]) -> list[int]:
    """What may be ablated: everything but biases, which hardly vary, and what was not resolved."""
    return [place for place, own in enumerate(components) if own.kind not in ("bias", "rest", "lumped")]


def ranked(found: Attribution, spurious: str, core: str) -> tuple[int, ...]:
    """The components from the one that is most about the spurious feature, and least about the core one.

    Raises:
        ArgumentError: One of the features was not scored.
    """
    difference = found.scores[:, found.column(spurious)] - found.scores[:, found.column(core)]
    places = candidates(found.components)
    return tuple(sorted(places, key=lambda place: (-float(difference[place]), place)))


def groups_of(
    store: Store, head: Head, field: str, attribute: str, rows: Rows = None
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The group of each image: its class, and the value of what misleads.

    Args:
        store: Of the images.
        head: Whose classes they are.
        field: What names the class.
        attribute: What misleads, such as `background`.
        rows: Which images.

    Returns:
        The names of the groups, the group of each image, and its class.

    Raises:
        DataError: There are no such fields, an image lacks one of them, or a group has no images.
    """
    numbers = store.rows(rows)
    codes = head.codes(store, field, numbers)
    known = store.field(attribute)
    values = [known[row] for row in numbers]
    lacking = next(
        (row for row, code, value in zip(numbers, codes, values, strict=True) if code < 0 or value is None), None
    )
    if lacking is not None:
        raise DataError(
            f"The image has no {field} or no {attribute}, so it is in no group.",
            where=f"{store.place}: {store.ids[int(lacking)]}",
            cure="choose images that have both",
        )
    others = sorted({str(value) for value in values})
    names = [f"{head.classes[code]}, {other}" for code in sorted(set(codes.tolist())) for other in others]
    own = np.array(
        [names.index(f"{head.classes[code]}, {value}") for code, value in zip(codes, values, strict=True)], np.int64
    )
    counts = np.bincount(own, minlength=len(names)) if len(own) else np.zeros(0, np.int64)
    if len(names) < 2 or not counts.all():
        empty = next((name for name, count in zip(names, counts, strict=True) if not count), None)
        what = f"The group {empty!r} has no images." if empty else f"There are {len(names)} groups."
        raise DataError(what, where=str(store.place), cure="choose images of every class with every value")
    return names, own, codes


def debias(
    fitted: Side,
    held_out: Side,
    test: Side,
    head: Head,
    order: Sequence[int],
    field: str,
    attribute: str,
    *,
    k: int | None = K,
    most: int = 2 * K,
    draws: int = 20,
    seed: int = 0,
    protocol: str = "held-out",
    on_step: Callable[[int], None] = lambda done: None,
) -> Debiased:
    """Ablate components in order, and tell every group of the test images after each.

    Ablated contributions are replaced by their mean over the images that the head was fitted to. How many to ablate can
    be chosen without knowing groups, on held-out images: the number for which those that the head tells right as it is
    and those that it tells wrong (under a bias, the ones out of place) are told best on average, both counting alike.

    Args:
        fitted: The images that the head was fitted to.
        held_out: Images to choose by.
        test: Images to report on.
        head: What tells the classes.
        order: Components to ablate, the first first (see `ranked`).
        field: What names the class of an image.
        attribute: What misleads.
        k: How many to report; None for the number chosen without groups.
        most: How far to go.
        draws: How often components are drawn at random, as a control.
        seed: Of these.
        protocol: Where the order comes from.
        on_step: Called with how many steps of all curves are done.

    Raises:
        StoreError: A group has no images, more components are asked for than there are, or classes are unknown.
    """
    level = str(head.aligner.identity["level"]) if head.aligner is not None else test.store.manifest.levels[0]
    components = test.store.components(level)
    if k is not None and not 0 <= k <= len(order):
        raise ArgumentError(
            f"{k} components cannot be ablated: there are {len(order)}.",
            where=str(test.store.place),
            cure="ask for fewer",
        )
    if any(side.store.components(level) != components for side in (fitted, held_out)):
        raise DataError("The stores have different components.", where=str(test.store.place), cure="extract all alike")
    most = min(max(most, k or 0), len(order))
    replaced = means(fitted.store, fitted.rows, level=level)
    measured = _Told(test, head, replaced, field, attribute, level)
    guided = _Told(held_out, head, replaced, field, attribute, level)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        on_step(done)

    curve = measured.curve(order[:most], step)
    right = [guided.right(sums) for sums in guided.sums(order[:most], step)]
    number = int(np.argmax([_balanced(right[0], own) for own in right]))
    rng = np.random.default_rng(seed)
    places = candidates(components)
    size = min(most, len(places))
    random = tuple(measured.curve(rng.choice(places, size, replace=False).tolist(), step) for _ in range(draws))
    best = _greedy(guided, places, size, step)
    return Debiased(
        test.store.manifest.model,
        head.name,
        components,
        tuple(order),
        curve,
        number,
        number if k is None else k,
        random,
        measured.curve(best, lambda: None),
        tuple(best),
        protocol,
    )


class _Told:
    """Images of one side, whose groups are told with some components ablated."""

    def __init__(
        self, side: Side, head: Head, replaced: Float[Tensor, "component width"], field: str, attribute: str, level: str
    ) -> None:
        self.names, self.groups, self.codes = groups_of(side.store, head, field, attribute, side.rows)
        self.head, self._sums = head, Sums(head, side.store, side.numbers, replaced, level)

    def sums(self, order: Sequence[int], on_step: Callable[[], None]) -> Iterator[Tensor]:
        """The sums with none ablated, the first, the first two, ..."""
        total = self._sums.whole()
        yield total
        on_step()
        for component in order:
            total = total - self._sums.change(component)
            yield total
            on_step()

    def change(self, component: int) -> Float[Tensor, "image dim"]:
        """What the sums lose with a component."""
        return self._sums.change(component)

    def right(self, sums: Float[Tensor, "image dim"]) -> np.ndarray:
        """Which images are told right."""
        return self.head.predicted(sums) == self.codes

    def told(self, sums: Float[Tensor, "image dim"]) -> Groups:
        """How well each group is told."""
        return _grouped(self.right(sums), self.names, self.groups)

    def curve(self, order: Sequence[int], on_step: Callable[[], None]) -> tuple[Groups, ...]:
        """How well each group is told with none ablated, the first, the first two, ..."""
        return tuple(self.told(sums) for sums in self.sums(order, on_step))


def _grouped(right: np.ndarray, names: Sequence[str], groups: np.ndarray) -> Groups:
    counts = [(name, groups == place) for place, name in enumerate(names)]
    return Groups({name: Accuracy(int(right[own].sum()), int(own.sum())) for name, own in counts})


def _balanced(before: np.ndarray, after: np.ndarray) -> float:
    """How often images are right that were right, and that were not, both counting alike."""
    parts = [after[own].mean() for own in (before, ~before) if own.any()]
    return float(np.mean(parts))


def _greedy(guided: _Told, places: Sequence[int], count: int, on_step: Callable[[], None]) -> list[int]:
    """Components by the groups of held-out images: each time the one without which the worst group is told best."""
    total, left, found = next(guided.sums([], lambda: None)), list(places), list[int]()
    for _ in range(count):
        tried = [guided.told(total - guided.change(place)) for place in left]
        best = max(range(len(left)), key=lambda place: (tried[place].worst, tried[place].average))
        total = total - guided.change(left[best])
        found.append(left.pop(best))
        on_step()
    return found


@dataclass(frozen=True, eq=False)
class Experiment:
    """All that one run of `debias` needs.

    Attributes:
        fitted, held_out, test: The images.
        head: What tells the classes.
        order: Components, ranked.
        label: The field that names the class.
        protocol: Where the order comes from.
        card: What it was made of, ready for JSON.
    """

    fitted: Side
    held_out: Side
    test: Side
    head: Head
    order: tuple[int, ...]
    label: str
    protocol: str
    card: Mapping[str, object]

    def steps(self, draws: int, most: int = 2 * K) -> int:
        """How many steps `run` reports."""
        most = min(most, len(self.order))
        return (most + 1) * (2 + draws) + most

    def run(self, attribute: str, **options: Any) -> Debiased:
        """`debias` on these images.

        Args:
            attribute: The field that has what misleads.
            options: Further keywords of `debias`.
        """
        sides = (self.fitted, self.held_out, self.test)
        return debias(*sides, self.head, self.order, self.label, attribute, protocol=self.protocol, **options)


def experiment(
    store: str | Path,
    held_out: str | Path | None = None,
    test: str | Path | None = None,
    *,
    splits: Sequence[str] = ("train", "val", "test"),
    head: HeadKind = "probe",
    label: str = "label",
    softness: float = 0.1,
    features: str | Path | None = None,
    spurious: str = "background",
    core: str = "bird",
    words: Mapping[str, Sequence[str]] | None = None,
    aligner: str | Path | None = None,
    space: str | None = None,
    published: bool = False,
    seed: int = 0,
    device: str = "cpu",
) -> Experiment:
    """Open stores, fit the head, and rank components.

    Args:
        store: All images, with a field `split`; or the images to fit to.
        held_out, test: The other images, where they are in stores of their own.
        splits: The values of `split` of the three sides, where one store has them all.
        head: A linear probe that is fitted to the first side; the model's own classifier; or the words of a text space.
        label: The field that names the class.
        softness: Of the probe.
        features: A TOML file with both features; those for birds and their backgrounds if not given.
        spurious, core: The names of the features.
        words: What each class is called in words (`zero-shot`); the values of the label if not given.
        aligner, space: What takes components to a text space (see `unweave.align.open_aligned`).
        published: Rank on the test images.
        seed: Of the scores' intervals.
        device: Where the text space computes.

    Raises:
        StoreError, ArgumentError: A side has no images, or a feature is not there.
    """
    stores = [open_store(own) for own in (store, held_out or store, test or store)]
    if (held_out is None) != (test is None) or len(splits) != len(stores):
        raise DataError(
            "There have to be images to fit to, to choose by and to report on.",
            where=str(store),
            cure="name one store with three splits, or three stores",
        )
    rows = [None if held_out else own.chosen([f"split={split}"]) for own, split in zip(stores, splits, strict=True)]
    sides = [Side(own, numbers) for own, numbers in zip(stores, rows, strict=True)]
    for side in sides:
        if not len(side.numbers):
            raise DataError("A side has no images.", where=str(side.store.place), cure="see the values of `split`")
    source = sides[2] if published else sides[1]
    seen, text = open_aligned(source.store, aligner, space, rows=source.rows, device=device)
    known = read_features(features) if features else text.features("birds")
    scores = attribute_to(seen, text, chosen(known, [spurious, core]), samples=20, seed=seed)
    found = head_of(head, stores[0], label, rows[0], words=(seen, text), called=words, softness=softness)
    own = seen.aligner.identity
    card = {
        "stores": [str(each.place) for each in stores],
        **{name: own[name] for name in ("model", "weights_hash", "level", "space", "space_hash")},
        "spurious": {spurious: list(known[spurious])},
        "core": {core: list(known[core])},
        "label": label,
    }
    protocol = "published" if published else "held-out"
    return Experiment(sides[0], sides[1], sides[2], found, ranked(scores, spurious, core), label, protocol, card)


@dataclass(frozen=True, eq=False)
class Written:
    """A debiased classifier as a checkpoint.

    Attributes:
        path: The checkpoint.
        k: How many components it ablates: the first so many.
        edit: What was changed in the weights, and which components could not be.
        groups: How well the edited model's own representations are told, on the test images. This is the total effect:
            later layers answer to what was ablated, which the curves of `Debiased` hold.
        apart: How far representations of the checkpoint are from those of the ablated graph, relative, at most.
    """

    path: Path
    k: int
    edit: Edit
    groups: Groups
    apart: float


def written(
    found: Debiased,
    plan: Experiment,
    attribute: str,
    path: str | Path,
    *,
    k: int | None = None,
    model: Model | None = None,
    averaged: int = 512,
    batch: int = 16,
    on_images: Callable[[int], None] = lambda count: None,
) -> Written:
    """Write an ablation into the weights, save them, and tell the groups by what the saved checkpoint computes.

    As later layers answer to what is gone, fewer components than `found.k` may be best, or none. Unless it is given,
    their number is chosen on held-out images by the rule of `debias`, which knows no groups, among those that tell no
    fewer of these images right than the model as it is; each candidate costs a forward pass over them.

    Args:
        found: What was ranked and ablated.
        plan: The experiment that it comes from, with the images.
        attribute: As for `debias`.
        path: A name that ends in `.safetensors`.
        k: How many components, the first so many; chosen among `_TRIED` up to `found.k` if not given.
        model: The model, where the store cannot load it.
        averaged: How many of the fitted images means are over, drawn at equal distances.
        batch: Images at a time.
        on_images: Called with the number of images that just went through a model; see `passes`.

    Raises:
        StoreError: The head reads aligned contributions, which the checkpoint alone does not give; nothing was ablated;
            no number of components is worth it; or an image is gone.
        UnweaveError: The checkpoint cannot be written.
    """
    if plan.head.aligner is not None and not plan.head.aligner.measured.get("identity"):
        raise AlignmentError(
            "A head in another model's text space cannot read a checkpoint by itself.",
            where=found.model,
            cure="use a probe or the model's own classifier; or extract the edited checkpoint, and align it",
        )
    counts = _tried(found.k) if k is None else [k]
    if not counts or not 1 <= counts[-1] <= len(found.order):
        raise ArgumentError("No components were ablated, so there is nothing to write.", where=found.model)
    manifest = plan.fitted.store.manifest
    loaded = model or unweave.load_model(manifest.model, **manifest.loading)
    plan.fitted.store.agree(weights_hash=loaded.weights_hash)
    places = np.linspace(0, len(plan.fitted.numbers) - 1, min(averaged, len(plan.fitted.numbers))).astype(int)
    few = Side(plan.fitted.store, plan.fitted.numbers[places])

    def edited(count: int) -> Edit:
        return mean_ablated(
            loaded,
            [found.components[place] for place in found.order[:count]],
            _inputs(loaded, few, batch, on_images),
            source=str(plan.fitted.store.place),
            attention=manifest.attention,
            nonlinear=manifest.nonlinear,
        )

    def told(edit: Edit, side: Side) -> np.ndarray:
        readout = edit.apply().readout
        with torch.inference_mode():
            sums = torch.cat([readout(images).float().cpu() for images in _inputs(loaded, side, batch, on_images)])
        return plan.head.predicted(sums) == groups_of(side.store, plan.head, plan.label, attribute, side.rows)[2]

    edits = {count: edited(count) for count in counts}
    best: int | None = counts[0]
    if k is None:
        codes = plan.head.codes(plan.held_out.store, plan.label, plan.held_out.numbers)
        before = plan.head.predicted(plan.held_out.store.representation(plan.held_out.rows)) == codes
        best = _carried({count: told(edit, plan.held_out) for count, edit in edits.items()}, before)
    if best is None:
        raise ModelError(
            f"In the weights the ablation costs more than it brings: with {', '.join(map(str, edits))} components, "
            "held-out images are told worse than by the model as it is.",
            where=found.model,
            cure="keep the ablation of contributions; or say how many components to write all the same",
        )
    edit = edits[best]
    names, groups, _ = groups_of(plan.test.store, plan.head, plan.label, attribute, plan.test.rows)
    images = next(_inputs(loaded, plan.test, batch, lambda count: None))
    with torch.inference_mode():
        own, other = edit.apply().readout(images), edit.total(images)
    apart = float(((own - other).norm(dim=-1) / other.norm(dim=-1)).max())
    return Written(edit.save(path), best, edit, _grouped(told(edit, plan.test), names, groups), apart)


def _carried(tried: Mapping[int, np.ndarray], before: np.ndarray) -> int | None:
    """Of the edits that tell no fewer images right than the model as it is, the best by the rule of `debias`.

    Args:
        tried: Which held-out images are told right by the edit of so many components.
        before: Which are by the model as it is.
    """
    kept = [count for count, right in tried.items() if right.mean() >= before.mean()]
    return max(kept, key=lambda count: _balanced(before, tried[count]), default=None)


def _tried(most: int) -> list[int]:
    return sorted({count for count in (*_TRIED, most) if 0 < count <= most})


def passes(found: Debiased, plan: Experiment, k: int | None = None, averaged: int = 512) -> int:
    """How many images go through models in `written`."""
    each, tried = min(averaged, len(plan.fitted.numbers)), len(_tried(found.k)) if k is None else 1
    return tried * each + (tried * len(plan.held_out.numbers) if k is None else 0) + len(plan.test.numbers)


def _inputs(model: Model, side: Side, batch: int, on_images: Callable[[int], None]) -> Iterator[Tensor]:
    """The images of a side, as the model's input."""
    names = [side.store.ids[row] for row in side.numbers]
    for ids, images in batches(model, pictures(side.store, names), batch, "raise"):
        yield images
        on_images(len(ids))
