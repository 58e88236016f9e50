"""What a plan returns for one batch: every component's contribution, beside what they add up to.

They are kept on disk as a pair of files, tensors beside a readable card (see `unweave.saving`):

    contributions.save("out")                    # out/contributions.safetensors and out/contributions.json
    contributions = Contributions.load("out")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from rich.console import RenderableType
from rich.text import Text
from torch import Tensor

from unweave import saving
from unweave.components import Component, Selection, select
from unweave.errors import ArgumentError, DataError, ModelError, StoreError
from unweave.figures import share_figure
from unweave.results import Shown, left_out, rich_table
from unweave.source import Origin
from unweave.view import View

_AT_ONCE = 256
"""Images whose shares are computed at a time."""


@dataclass(frozen=True, eq=False, repr=False)
class Contributions(Shown):
    """The representation of a batch of images as a sum over components (method: RepDecompose, z = sum_i c_i).

    Attributes:
        values: What each component adds to the representation, `[image, component, dim]`.
        components: One `Component` for each column of `values`, in execution order.
        ids: One name per image, in row order.
        representation: What the model itself computed, `[image, dim]`.
        error: The relative error of the sum for each image, `|sum_i c_i - z| / |z|`, `[image]`.
        tolerance: The largest error that was allowed.
        origin: The model and settings they come from, where known.
        fields: What is known of the images, such as `label`: a value for each image, by name.
        logits: What the model's classifier made of each image, `[image, class]`, where that is known.
    """

    values: Float[Tensor, "image component dim"]
    components: tuple[Component, ...]
    ids: tuple[str, ...]
    representation: Float[Tensor, "image dim"]
    error: Float[Tensor, " image"]
    tolerance: float = field(default=1e-5)
    origin: Origin | None = None
    fields: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    logits: Float[Tensor, "image class"] | None = None

    def as_code(self) -> str:
        """A name to fill in: nothing but `load` makes them again without their images."""
        return "contributions"

    def as_options(self, name: str) -> list[str]:
        """Refuses: a command line reads stores."""
        raise ArgumentError("Contributions in memory are in no store.", cure="extract them")

    @classmethod
    def of(cls, view: View) -> Contributions:
        """The contributions of a view, all of them in memory, in the numbers that they are kept in.

        Raises:
            ArgumentError: The view is in a text space.
        """
        if view.aligner is not None:
            raise ArgumentError(
                "Aligned contributions are those of no model.", where=str(view.source), cure="`view.through(None)`"
            )
        source, rows = view.source, view.numbers
        return cls(
            source.values(view.columns, rows),
            view.components,
            view.ids,
            source.representation(rows),
            source.error(rows),
            source.tolerance,
            view.origin,
            {name: view.field(name) for name in view.fields},
        )

    def view(self) -> View:
        """These contributions as a view, which every task reads."""
        return View.of(_Batch(self))

    def __getitem__(self, selection: Selection) -> Contributions:
        """The same batch with only the chosen components (they no longer add up to the representation).

        Raises:
            ArgumentError: The selection matches nothing, or is a number.
        """
        if isinstance(selection, (int, slice)):
            raise ArgumentError(
                "Components are chosen by their names, not by numbers.",
                cure=f"contributions[contributions.components[{_shown(selection)}]] for components by their place, "
                f"contributions.values[{_shown(selection)}] for images",
            )
        keep = select(self.components, selection)
        return replace(self, values=self.values[:, keep], components=tuple(self.components[index] for index in keep))

    def share(self) -> Float[Tensor, " component"]:
        """Each component's share of the representation, averaged over images: `<c_i, z> / |z|^2`.

        The shares sum to one. A share may be negative: such a component writes against the representation.
        """
        # Half precision has too few digits to add up thousands of products.
        precise = torch.promote_types(self.values.dtype, torch.float32)
        z = self.representation.to(self.values.device, precise)
        squared = z.square().sum(-1).clamp_min(1e-30)
        parts = zip(self.values.split(_AT_ONCE), z.split(_AT_ONCE), strict=True)
        products = torch.cat([torch.einsum("ncd,nd->nc", values.to(precise), part) for values, part in parts])
        return (products / squared[:, None]).mean(0)

    def table(self) -> pa.Table:
        """One row for each component: its share of the representation, and the mean length of its contribution."""
        share, length = self.share().tolist(), self.values.float().norm(dim=-1).mean(0).tolist()
        rows = [
            {
                "component": str(part),
                "kind": part.kind,
                "layer": part.layer,
                "head": part.head,
                "share": value,
                "length": norm,
            }
            for part, value, norm in zip(self.components, share, length, strict=True)
        ]
        return pa.Table.from_pylist(rows)

    def figure(self) -> Figure:
        """The share of every component: layers by heads, and the other branches beside."""
        model = self.origin.model if self.origin is not None else "contributions"
        return share_figure(self.components, self.share().tolist(), title=model, images=len(self.ids))

    def told(self) -> list[RenderableType]:
        """The components with the largest shares, and how exactly all of them add up."""
        error = f"{float(self.error.max()):.1e}" if self.error.numel() else "0"
        note = f"The components add up to the representation within {error} (relative, largest of all images)."
        skipped = self.origin.skipped if self.origin is not None else ()
        return [
            shares_table(self.components, self.share().tolist()),
            Text(f"\n{len(self.ids):,} images. {note}"),
            *([left_out(skipped, len(skipped))] if skipped else []),
        ]

    def about(self) -> dict[str, Any]:
        """How many images there are, how exactly the components add up, and the share of each, ready for JSON."""
        rows = self.table().to_pylist()
        skipped = self.origin.skipped if self.origin is not None else ()
        return {
            "images": len(self.ids),
            "skipped": [{"id": name, "reason": reason} for name, reason in skipped],
            "largest_error": float(self.error.max()),
            "total_share": sum(row["share"] for row in rows),
            "lumped_share": sum(row["share"] for row in rows if row["kind"] == "lumped"),
            "rows": rows,
        }

    def save(self, path: str | PathLike[str]) -> Path:
        """Write them as tensors and a card (see `unweave.saving`), replacing what is there.

        Args:
            path: A folder, or a file name ending in `.safetensors`.

        Returns:
            The tensors' file; the card lies beside it, ending in `.json`.

        Raises:
            UnweaveError: The place cannot be written, or lacks the room.
        """
        images, _, dim = self.values.shape
        with saving.ContributionsWriter(
            path, self.components, images=images, dim=dim, dtype=self.values.dtype
        ) as writer:
            writer.append(self)
            return writer.finish(self.origin)

    @staticmethod
    def files(path: str | PathLike[str]) -> dict[str, str]:
        """The files that a path stands for: the tensors and their card."""
        tensors, card = saving.files_at(path)
        return {"tensors": str(tensors), "card": str(card)}

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Contributions:
        """Read what `save` or a `ContributionsWriter` wrote; values stay on disk until they are used.

        Args:
            path: The folder, the tensors' file or the card.

        Raises:
            UnweaveError: A file is missing, damaged, of an unknown version, or does not belong to the other.
        """
        saved = saving.load(path)
        return cls(**{name: getattr(saved, name) for name in saved.__dataclass_fields__})

    def __repr__(self) -> str:
        """One line: shape, memory, type, error and mean length of a contribution."""
        images, components, dim = self.values.shape
        size = self.values.numel() * self.values.element_size() / 2**20
        worst = float(self.error.max()) if self.error.numel() else 0.0
        return (
            f"Contributions[{images} images, {components} components, {dim} dim] {size:.1f} MiB "
            f"{str(self.values.dtype).removeprefix('torch.')} error<={worst:.1e} "
            f"norm={float(self.values.norm(dim=-1).mean()):.3g}"
        )


def shares_table(components: Sequence[Component], share: Sequence[float], most: int = 15) -> RenderableType:
    """The components with the largest shares, for a terminal.

    Args:
        components: The components.
        share: The share of the representation that each has.
        most: How many are shown; the others are summed.
    """
    ranked = sorted(range(len(share)), key=lambda place: -abs(share[place]))[:most]
    largest = max((abs(share[place]) for place in ranked), default=0.0) or 1.0
    rows: list[list[str | Text]] = []
    for place in ranked:
        bar = "\N{FULL BLOCK}" * max(1, round(16 * abs(share[place]) / largest))
        style = "red" if share[place] >= 0 else "blue"
        rows.append([str(components[place]), components[place].kind, f"{100 * share[place]:.2f} %", Text(bar, style)])
    if len(ranked) < len(share):
        rest = sum(share) - sum(share[place] for place in ranked)
        rows.append([f"{len(share) - len(ranked):,} others", "", f"{100 * rest:.2f} %", ""])
    rows.append([f"all {len(share):,}", "", f"{100 * sum(share):.2f} %", ""])
    columns = {"component": "left", "kind": "left", "share": "right", "": "left"}
    return rich_table("Largest shares of the representation", columns, rows)


def _shown(place: int | slice) -> str:
    if isinstance(place, int):
        return str(place)
    parts = [place.start, place.stop] if place.step is None else [place.start, place.stop, place.step]
    return ":".join("" if part is None else str(part) for part in parts)


@dataclass(frozen=True, eq=False)
class _Batch:
    """A batch in memory, as a view reads it."""

    contributions: Contributions

    def __str__(self) -> str:
        return "a batch in memory"

    @property
    def components(self) -> tuple[Component, ...]:
        return self.contributions.components

    @property
    def ids(self) -> Sequence[str]:
        return self.contributions.ids

    @property
    def dim(self) -> int:
        return int(self.contributions.values.shape[2])

    @property
    def dtype(self) -> torch.dtype:
        return self.contributions.values.dtype

    @property
    def origin(self) -> Origin | None:
        return self.contributions.origin

    @property
    def tolerance(self) -> float:
        return self.contributions.tolerance

    @property
    def fields(self) -> Mapping[str, str]:
        return {
            name: type(values[0]).__name__ if len(values) else "" for name, values in self.contributions.fields.items()
        }

    def field(self, name: str) -> Sequence[Any]:
        fields = self.contributions.fields
        if name not in fields:
            raise DataError(
                f"The images have no field {name!r}.",
                where=str(self),
                cure=f"use one of {', '.join(fields)}" if fields else "give it: `replace(contributions, fields={...})`",
            )
        return fields[name]

    def as_code(self) -> str:
        return f"{self.contributions.as_code()}.view()"

    def as_options(self, name: str) -> list[str]:
        return self.contributions.as_options(name)

    def level(self, name: str) -> _Batch:
        if self.origin is None or self.origin.level != name:
            raise StoreError("A batch in memory has one level.", where=str(self), cure=f"plan with `level={name!r}`")
        return self

    def values(self, columns: Sequence[int], rows: np.ndarray) -> Tensor:
        return self.contributions.values[torch.from_numpy(rows)][:, list(columns)]

    def representation(self, rows: np.ndarray) -> Tensor:
        return self.contributions.representation[torch.from_numpy(rows)].float()

    def error(self, rows: np.ndarray) -> Tensor:
        return self.contributions.error[torch.from_numpy(rows)]

    def logits(self, rows: np.ndarray) -> Tensor:
        if self.contributions.logits is None:
            raise ModelError(
                "The logits of these images are not known.", where=str(self), cure="read them from a store"
            )
        return self.contributions.logits[torch.from_numpy(rows)]


@dataclass(frozen=True, eq=False)
class Projections:
    """Inner products of every component's contribution with given directions, without the vectors.

    Attributes:
        values: `<c_i, u_k>`, `[image, component, direction]`.
        components: One `Component` for each column.
        ids: One name per image.
        representation: `[image, dim]`.
        error: `|sum_i <c_i, u> - <z, u>| / (|z| |u|)`, the largest over directions, `[image]`.
        tolerance: The largest error that was allowed.
    """

    values: Float[Tensor, "image component direction"]
    components: tuple[Component, ...]
    ids: Sequence[str]
    representation: Float[Tensor, "image dim"]
    error: Float[Tensor, " image"]
    tolerance: float = field(default=1e-5)
