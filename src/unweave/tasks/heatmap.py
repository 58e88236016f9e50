"""Heatmaps: where in an image a component reads what speaks for a text or a class (Gandelsman et al., 2024, section 5;
Balasubramanian et al., 2024, section 4).

A head's contribution is a sum over the tokens that it reads, so its score along a direction is one too. Each token's
share is laid at its cell of the layer's own grid, with windows undone. What has no cell (class and register tokens,
biases, what is not chosen) is reported as numbers, so that everything adds up to the score of the whole image.

    mapper = Mapper(unweave.plan(model), "last:4,!kind:mlp")
    found = mapper(images, toward_classes(model, ["dog"]))
    found.summed()                       # [image, target, row, column], signed
    found.total                          # the logit
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from safetensors.numpy import save
from torch import Tensor
from torch.nn.functional import interpolate

from unweave.components import Component, Grid, Selection, select
from unweave.decomposition import Plan
from unweave.errors import ArgumentError, DataError
from unweave.files import replacing
from unweave.tasks.target import Target

SUFFIXES = (".npz", ".safetensors")


@dataclass(frozen=True, eq=False)
class Heatmaps:
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
        error: The relative error of the sum for each image (see `Plan.score`).
    """

    ids: tuple[str, ...]
    targets: tuple[str, ...]
    maps: Mapping[Component, Float[Tensor, "image target row column"]]
    prefix: Mapping[Component, Float[Tensor, "image target"]]
    placeless: Mapping[Component, Float[Tensor, "image target"]]
    others: Mapping[str, Float[Tensor, "image target"]]
    constants: Float[Tensor, " target"]
    error: Float[Tensor, " image"]

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

    def card(self) -> dict[str, Any]:
        """What the arrays are of, ready for JSON."""
        return {
            "ids": list(self.ids),
            "targets": list(self.targets),
            "components": [component.as_dict() for component in self.components],
            "grids": {str(component): list(own.shape[-2:]) for component, own in self.maps.items()},
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the arrays, with the card as text, into a file that ends in `.npz` or `.safetensors`.

        Raises:
            ArgumentError: The file has another ending, or cannot be written.
        """
        path = Path(path)
        if path.suffix not in SUFFIXES:
            raise ArgumentError(f"Maps cannot be written as {path.suffix!r}.", cure=f"use {' or '.join(SUFFIXES)}")
        card = json.dumps(self.card())
        with replacing(path, "file of maps") as partial:
            if path.suffix == ".npz":
                np.savez_compressed(partial, card=np.array(card), **self.arrays())  # type: ignore[arg-type]
            else:
                partial.write_bytes(save(self.arrays(), {"card": card}))
        return path


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
    ) -> Heatmaps:
        """The maps of a batch for every direction of a target.

        Memory: `image x column x direction` numbers, where columns are tokens of the chosen components.

        Args:
            images: Preprocessed.
            target: What the scores are for.
            ids: Names of the images.

        Raises:
            StoreError: The target's aligner has no map for a component.
            UnweaveError: As for `Plan.score`.
        """
        scores = self.plan.project(images, target.along(self.plan.wholes), ids)
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


def best(plan: Plan, scores: pa.Table, features: Sequence[str], count: int | None = None) -> tuple[Component, ...]:
    """The components that score highest, of those that read tokens at known places and are above chance.

    Args:
        plan: Of the model.
        scores: `Attribution.table()`, or what `unweave score` wrote.
        features: Which features; for several the mean of their scores counts, and one above chance is enough.
        count: The most components; the better half if not given.

    Raises:
        ArgumentError: A feature was not scored, or the table is none of scores.
        ArgumentError: No component is above chance, or the table is of another model.
    """
    needed = {"component", "feature", "score", "above_chance"}
    if not needed <= set(scores.column_names):
        raise DataError("This is no table of scores.", cure="name scores.parquet, which `unweave score` wrote")
    rows = scores.select(sorted(needed)).to_pylist()
    known = list(dict.fromkeys(row["feature"] for row in rows))
    missing = next((feature for feature in features if feature not in known), None)
    if missing is not None or not features:
        raise ArgumentError(f"There is no feature {missing!r} in the table.", cure=f"use one of {', '.join(known)}")
    named = {str(component): component for component in plan.at("head").components}
    placed = {part.whole for part in plan.at("token").components if part.row is not None}
    total: dict[Component, float] = {}
    above: set[Component] = set()
    for row in rows:
        if row["component"] not in named:
            raise ArgumentError(
                f"The table scores {row['component']}, which is no component of the model.",
                where=plan.name,
                cure="score a store of this model at level `head`",
            )
        component = named[row["component"]]
        if row["feature"] in features and component in placed:
            total[component] = total.get(component, 0.0) + row["score"]
            above |= {component} if row["above_chance"] else set()
    ranked = sorted(total, key=lambda component: -total[component])
    found = ranked[: len(ranked) // 2 if count is None else count]
    chosen = tuple(component for component in found if component in above)
    if not chosen:
        raise ArgumentError(
            f"No component that reads tokens is above chance for {', '.join(features):.80}.",
            cure="choose components yourself",
        )
    return chosen


def viewed(preprocess: Callable[[Image.Image], Tensor], picture: Image.Image) -> Float[np.ndarray, "height width 3"]:
    """A picture as the model sees it, cut and scaled, 0 ... 1: the preprocessing without its normalisation, which is
    told from what it makes of black and of white.
    """
    black, white = (preprocess(Image.new("RGB", picture.size, shade)) for shade in ("black", "white"))
    seen, span = preprocess(picture) - black, white - black
    found = torch.where(span.abs() > 1e-6, seen / span, 0.0)
    return found.permute(1, 2, 0).float().cpu().numpy().clip(0, 1)


def as_pixels(view: Float[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
    """Numbers 0 ... 1 as the pixels of a picture."""
    return (255 * view + 0.5).astype(np.uint8)
