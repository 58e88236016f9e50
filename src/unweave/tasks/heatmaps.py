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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from rich.console import RenderableType
from rich.text import Text
from torch import Tensor
from torch.nn.functional import interpolate

from unweave.alignment import Space
from unweave.attribution.scores import Scores
from unweave.components import Component, Grid, Selection, select
from unweave.decomposition import Plan
from unweave.decomposition import plan as plan_for
from unweave.errors import ArgumentError, DataError
from unweave.extraction.inputs import reader, rows_of
from unweave.figures import MapRow, maps_figure
from unweave.images import Batches, ImageSet, open_images
from unweave.images.batches import Source
from unweave.models import Model, opened
from unweave.models.preprocessing import viewed
from unweave.progress import OnProgress, silent
from unweave.results import Result, rich_table, verb
from unweave.tasks.target import Target, toward

_ROWS, _COLUMNS, _TOLD = 12, 4, 40
"""Images and components that are drawn, and rows that are shown in a terminal."""


@dataclass(frozen=True, eq=False, repr=False)
class Heatmaps(Result):
    """Scores of the chosen components, by where they read.

    Attributes:
        ids: The images.
        targets: What the scores are for.
        maps: For each chosen component that reads tokens at known places, its scores on its layer's own grid. Signed,
            and in the units of the score: nothing is normalised.
        prefix: For each chosen component, what it reads from tokens that are no part of the grid.
        placeless: For each chosen component, what cannot be told apart by token.
        others: For each kind of component, what those say that were not chosen.
        constants: What is added for every image.
        error: The relative error of the sum for each image (see `Plan.project`).
        pixels: The images as the model sees them, for a figure; none if they were not given as pictures.
    """

    name = "heatmap"

    ids: tuple[str, ...]
    targets: tuple[str, ...]
    maps: Mapping[Component, Float[Tensor, "image target row column"]]
    prefix: Mapping[Component, Float[Tensor, "image target"]]
    placeless: Mapping[Component, Float[Tensor, "image target"]]
    others: Mapping[str, Float[Tensor, "image target"]]
    constants: Float[Tensor, " target"]
    error: Float[Tensor, " image"]
    pixels: UInt8[np.ndarray, "image height width 3"] | None = None

    @property
    def components(self) -> tuple[Component, ...]:
        """The chosen ones, in order."""
        return tuple(self.prefix)

    @property
    def grid(self) -> tuple[int, int]:
        """The finest grid of any chosen layer: rows and columns."""
        shapes = [own.shape[-2:] for own in self.maps.values()]
        return max(int(shape[0]) for shape in shapes), max(int(shape[1]) for shape in shapes)

    def on_grid(self, component: Component) -> Float[Tensor, "image target row column"]:
        """A component's map on the finest grid: a token of a coarser one covers several cells evenly."""
        return spread(self.maps[component], *self.grid)

    def summed(self) -> Float[Tensor, "image target row column"]:
        """The sum of all maps, on the finest grid."""
        return torch.stack([self.on_grid(component) for component in self.maps]).sum(0)

    def enlarged(
        self, height: int, width: int, *, evidence: bool = False
    ) -> Float[Tensor, "image target height width"]:
        """The sum of all maps in the image's pixels: each layer's is enlarged smoothly from its own grid.

        Bilinear, and to the size of a pixel's share, so that a map adds up to the same but for a little at the edges.

        Args:
            height, width: Of the image.
            evidence: Only what speaks for the target: tokens of a component that speak against it count as nothing, and
                take nothing from what other components say. Such a map does not add up to the score.
        """
        total: dict[tuple[int, int], Tensor] = {}
        for signed in self.maps.values():
            own = signed.clamp_min(0) if evidence else signed
            shape = (int(own.shape[-2]), int(own.shape[-1]))
            total[shape] = total[shape] + own if shape in total else own
        shares = [own * (shape[0] * shape[1] / (height * width)) for shape, own in total.items()]
        size = (height, width)
        return torch.stack([interpolate(own, size=size, mode="bilinear", align_corners=False) for own in shares]).sum(0)

    @cached_property
    def beside(self) -> dict[str, Float[Tensor, "image target"]]:
        """Everything that is in no map, by name."""
        chosen = {"prefix tokens": self.prefix, "no token": self.placeless}
        found = {name: torch.stack([*own.values()]).sum(0) for name, own in chosen.items()}
        constant = self.constants.expand(len(self.ids), -1)
        return {**found, **{f"other {kind}": own for kind, own in self.others.items()}, "constant": constant}

    @property
    def total(self) -> Float[Tensor, "image target"]:
        """The whole score of each image: all maps, and what is beside them."""
        return self.summed().sum((-2, -1)) + torch.stack([*self.beside.values()]).sum(0)

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it under names: `sum`, `total`, `map/COMPONENT`, `prefix/COMPONENT`, `placeless/COMPONENT`,
        `beside/NAME`.
        """
        named = {"sum": self.summed(), "total": self.total}
        for what, own in (("map", self.maps), ("prefix", self.prefix), ("placeless", self.placeless)):
            named |= {f"{what}/{component}": value for component, value in own.items()}
        named |= {f"beside/{name}": value for name, value in self.beside.items()}
        return {name: np.ascontiguousarray(value.cpu().numpy()) for name, value in named.items()}

    def about(self) -> dict[str, Any]:
        """The card, the images, the targets and the components that were mapped."""
        mapped = [str(component) for component in self.components]
        return {**self.card, "ids": list(self.ids), "targets": list(self.targets), "components": mapped}

    def table(self) -> pa.Table:
        """One row for each image and target: the score, what lies in the maps, and what beside them."""
        summed, total, beside = self.summed().sum((-2, -1)), self.total, self.beside
        rows = [
            {
                "id": name,
                "target": target,
                "score": float(total[row, column]),
                "in the maps": float(summed[row, column]),
                **{what: float(values[row, column]) for what, values in beside.items()},
                "error": float(self.error[row]),
            }
            for row, name in enumerate(self.ids)
            for column, target in enumerate(self.targets)
        ]
        return pa.Table.from_pylist(rows)

    def figure(self) -> Figure:
        """A row for each of the first images and targets: the sum, and the components that say most.

        Raises:
            ArgumentError: The images were not given as pictures.
        """
        if self.pixels is None:
            raise ArgumentError(
                "The images were given as tensors, so there is nothing to draw on.",
                cure="give `unweave.heatmap` pictures: a folder, or what `unweave.open_images` returns",
            )
        strength = {component: float(maps.abs().sum()) for component, maps in self.maps.items()}
        ranked = sorted(strength, key=lambda component: -strength[component])
        some = ranked[:_COLUMNS] if len(strength) > 1 else []
        summed, beside, total = self.summed(), self.beside, self.total
        laid = {component: self.on_grid(component) for component in some}
        rows = [
            MapRow(
                self.pixels[row],
                f"{target}\n{name}",
                [summed[row, place].double().numpy(), *(maps[row, place].double().numpy() for maps in laid.values())],
                [
                    ("score", float(total[row, place])),
                    ("in the maps", float(summed[row, place].sum())),
                    *((what, float(values[row, place])) for what, values in beside.items() if bool(values.any())),
                ],
            )
            for row, name in enumerate(self.ids[:_ROWS])
            for place, target in enumerate(self.targets)
        ]
        heading = f"sum of {len(self.maps)} components" if len(self.maps) > 1 else str(next(iter(self.maps)))
        title = f"{self.card['model']}: where the score is read"
        if len(self.ids) > _ROWS:
            title += f" (the first {_ROWS} of {len(self.ids)} images)"
        return maps_figure(rows, [heading, *map(str, some)], title=title, label="score of a token")

    def told(self) -> list[RenderableType]:
        """The score of the first images, in the maps and beside them."""
        rows = self.table().slice(0, _TOLD).to_pylist()
        beside = [name for name in self.beside if any(row[name] for row in rows)]
        columns = {
            "image": "left",
            "target": "left",
            "score": "right",
            "maps": "right",
            **dict.fromkeys(beside, "right"),
        }
        cells = [
            [row["id"], row["target"], *(f"{row[name]:+.3f}" for name in ("score", "in the maps", *beside))]
            for row in rows
        ]
        title = "The score of each image: what lies in the maps, and what beside them"
        note = f"{len(self.maps)} components with maps; largest error of the sum {float(self.error.max()):.0e}."
        return [rich_table(title, columns, cells), Text(f"\n{note}")]


def joined(parts: Sequence[Heatmaps]) -> Heatmaps:
    """The maps of several batches that one mapper made for one target."""

    def together(name: str) -> dict[Any, Tensor]:
        return {key: torch.cat([getattr(part, name)[key] for part in parts]) for key in getattr(parts[0], name)}

    return Heatmaps(
        tuple(name for part in parts for name in part.ids),
        parts[0].targets,
        together("maps"),
        together("prefix"),
        together("placeless"),
        together("others"),
        parts[0].constants,
        torch.cat([part.error for part in parts]),
    )


@dataclass(frozen=True, eq=False)
class _Layout:
    """Where the columns of one component lie.

    Attributes:
        grid: Of its layer; None where it is not known.
        placed: Columns of tokens that have a cell.
        cells: Their cells.
        prefix: Columns of tokens that have none.
        placeless: The column that is not split by token.
    """

    grid: Grid | None
    placed: list[int] = field(default_factory=list)
    cells: list[int] = field(default_factory=list)
    prefix: list[int] = field(default_factory=list)
    placeless: list[int] = field(default_factory=list)


class Mapper:
    """Maps of some of a plan's components; made once, used for any images and targets.

    A call costs a forward pass and little more; components that are not chosen are not split by token.

    Args:
        plan: Of the model, at level `head`.
        chosen: Which components are mapped; all heads if not given.

    Raises:
        ArgumentError: The selection matches nothing, or nothing that reads tokens at known places.
    """

    def __init__(self, plan: Plan, chosen: Selection = None) -> None:
        whole = plan if plan.level == "head" else plan.at("head")
        picked = "kind:head" if chosen is None else chosen
        self.components = tuple(whole.components[place] for place in select(whole.components, picked))
        self.plan = whole.split(self.components)
        self._layouts = {component: _Layout(self.plan.grids.get(component.path)) for component in self.components}
        self._others: dict[str, list[int]] = {}
        for column, part in enumerate(self.plan.components):
            own = self._layouts.get(part.whole)
            if own is None:
                self._others.setdefault(part.kind, []).append(column)
            elif part.token is None:
                own.placeless.append(column)
            elif own.grid is not None and part.row is not None and part.column is not None:
                own.placed.append(column)
                own.cells.append(part.row * own.grid.width + part.column)
            else:
                own.prefix.append(column)
        if not any(own.placed for own in self._layouts.values()):
            some = ", ".join(map(str, self.components[:3]))
            text = f"None of the {len(self.components)} chosen components reads tokens at known places ({some})."
            place = next(iter(self.plan.unplaced.values()), None)
            if place is None:
                raise ArgumentError(text, where=plan.name, cure="choose heads, such as `kind:head` or `last:4`")
            raise ArgumentError(
                f"{text} Where they lie in the image is lost at {place}.",
                where=plan.name,
                cure="write that step with operations that move tokens or convolve them, or report the operation",
            )

    def __call__(
        self,
        images: Float[Tensor, "image channel height width"],
        target: Target,
        ids: Sequence[str] | None = None,
        regions: Float[Tensor, "image 1 token"] | None = None,
    ) -> Heatmaps:
        """The maps of a batch for every direction of a target.

        Memory: `image x column x direction` numbers, where columns are tokens of the chosen components.

        Args:
            images: Preprocessed.
            target: What the scores are for.
            ids: Names of the images.
            regions: Weights of tokens, where the plan is of regions (`RegionPlan.of(1)`).

        Raises:
            StoreError: The target's aligner has no map for a component.
            UnweaveError: As for `Plan.project`.
        """
        scores = self.plan.project(images, target.along(self.plan.wholes), ids, regions=regions)
        values = scores.values.transpose(1, 2).cpu()

        def summed(columns: Sequence[int]) -> Tensor:
            return values[..., list(columns)].sum(-1)

        maps = {}
        for component, own in self._layouts.items():
            if own.grid is not None and own.placed:
                flat = values.new_zeros(*values.shape[:2], own.grid.height * own.grid.width)
                flat.index_add_(-1, torch.tensor(own.cells), values[..., own.placed])
                maps[component] = flat.unflatten(-1, (own.grid.height, own.grid.width))
        return Heatmaps(
            tuple(scores.ids),
            target.names,
            maps,
            {component: summed(own.prefix) for component, own in self._layouts.items()},
            {component: summed(own.placeless) for component, own in self._layouts.items()},
            {kind: summed(columns) for kind, columns in self._others.items()},
            target.constants.to(values.dtype),
            scores.error.cpu(),
        )


def spread(maps: Float[Tensor, "*lead row column"], height: int, width: int) -> Float[Tensor, "*lead height width"]:
    """Maps on another grid: every cell gives to the new ones by how much of its area they cover, so sums stay."""
    rows, columns = (_covered(old, new).to(maps) for old, new in zip(maps.shape[-2:], (height, width), strict=True))
    return rows @ maps @ columns.T


def _covered(old: int, new: int) -> Float[Tensor, "new old"]:
    """How much of each old interval each new one covers, where both divide the same length evenly."""
    starts, ends = torch.arange(old, dtype=torch.float64) / old, torch.arange(1, old + 1, dtype=torch.float64) / old
    low, high = torch.arange(new, dtype=torch.float64) / new, torch.arange(1, new + 1, dtype=torch.float64) / new
    overlap = torch.minimum(high[:, None], ends) - torch.maximum(low[:, None], starts)
    return overlap.clamp_min(0) * old


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
    pixels = [as_pixels(viewed(loaded.preprocess, there[part.ids[0]].read())) for part in parts[:_ROWS]]
    skipped = [{"id": name, "reason": reason} for name, reason in loader.skipped]
    return replace(joined(parts), pixels=np.stack(pixels), card=card | {"skipped": skipped})


def as_pixels(view: Float[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
    """Numbers 0 ... 1 as the pixels of a picture."""
    return (255 * view + 0.5).astype(np.uint8)
