"""Heatmaps as a result: each component's map, and everything that is in none, which add up to the score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

from unweave.components import Component
from unweave.errors import ArgumentError
from unweave.figures import MapRow, maps_figure
from unweave.results import Result, rich_table

ROWS, _COLUMNS, _TOLD = 12, 4, 40
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
            for row, name in enumerate(self.ids[:ROWS])
            for place, target in enumerate(self.targets)
        ]
        heading = f"sum of {len(self.maps)} components" if len(self.maps) > 1 else str(next(iter(self.maps)))
        title = f"{self.card['model']}: where the score is read"
        if len(self.ids) > ROWS:
            title += f" (the first {ROWS} of {len(self.ids)} images)"
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
