"""Where a representation comes from, at a glance: layers by heads, and beside them all that each layer writes.

On the left, one cell for each attention head, a row for each attention branch in the order of execution; a model
whose layers have different numbers of heads has rows of different lengths. On the right, one bar for each layer,
stacked by kind, to the left of zero where components write against the representation. Cells and bars are shares of
the representation in percent; the bars together are all of it, and the figure says what they add up to.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch, Rectangle

from unweave.components import KINDS, Component
from unweave.errors import ArgumentError
from unweave.figures import style
from unweave.files import replacing

_NAMES = {
    "head": "heads",
    "attn": "attention",
    "mlp": "MLPs",
    "conv": "convolutions",
    "embed": "embedding",
    "bias": "biases",
}
_MARKED = 5
"""How many of the largest cells carry their number."""


@dataclass
class _Group:
    """A layer, or a component outside the layers: one bar, and a row of cells for each of its attention branches."""

    paths: list[str] = field(default_factory=list)
    rows: dict[str, dict[int, float]] = field(default_factory=dict)
    kinds: dict[str, float] = field(default_factory=dict)

    @property
    def height(self) -> int:
        return max(1, len(self.rows))

    def labels(self) -> list[str]:
        if len(self.rows) > 1:
            names = [path.split(".") for path in self.rows]
            while all(len(name) > 1 and name[-1] == names[0][-1] for name in names):
                names = [name[:-1] for name in names]
            return [".".join(name) for name in names]
        parts = [path.split(".") for path in self.paths]
        common = [column[0] for column in zip(*parts, strict=False) if len(set(column)) == 1]
        return [".".join(common) or self.paths[0] or next(iter(self.kinds))]


def share_figure(
    components: Sequence[Component], share: Sequence[float], *, title: str, images: int | None = None
) -> Figure:
    """The figure of all components' shares.

    Args:
        components: In the order of execution; tokens and neurons are summed into their head or branch.
        share: Each one's share of the representation, where 1 is all of it (`Contributions.share`).
        title: The model.
        images: Over how many images the shares were averaged.

    Raises:
        ArgumentError: There is nothing to draw, or not one share for each component.
    """
    if not components or len(components) != len(share):
        raise ArgumentError(f"{len(components)} components with {len(share)} shares cannot be drawn.")
    groups = _grouped(components, [100 * value for value in share])
    rows = sum(group.height for group in groups)
    columns = max((head + 1 for group in groups for cells in group.rows.values() for head in cells), default=0)
    row_height = 0.34 if rows <= 18 else 0.26 if rows <= 36 else 0.19 if rows <= 72 else 0.12
    width = min(8.4, max(3.6, 0.42 * columns)) if columns else 0
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08, wspace=0.02)
    figure = style.canvas(width + 6.4, rows * row_height + 2.5, layout)
    if columns:
        cells, bars = figure.subplots(1, 2, sharey=True, gridspec_kw={"width_ratios": [width, 3.6]})
        _draw_cells(figure, cells, groups, rows, columns)
    else:
        cells = bars = figure.subplots(1, 1)
    _draw_bars(bars, groups)
    _label_rows(cells, groups, row_height)
    summary = textwrap.wrap(_sum(groups, images), round(13 * figure.get_figwidth()))
    # The layout makes room for a title of so many lines; the summary is set into it in smaller type.
    style.title(figure, title + "\n" * len(summary), style.LARGE)
    below = 1 - 0.42 / figure.get_figheight()
    figure.text(0.01, below, "\n".join(summary), fontsize=style.TEXT, color=style.INK, va="top", linespacing=1.4)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure, which appears under its name only when it is whole.

    Raises:
        UnweaveError: The place cannot be written.
    """
    path = Path(path)
    with replacing(path, "figure") as partial:
        figure.savefig(partial)
    return path


def _grouped(components: Sequence[Component], percent: Sequence[float]) -> list[_Group]:
    groups: dict[int | str, _Group] = {}
    for component, value in zip(components, percent, strict=True):
        key = component.layer if component.layer is not None else component.path or component.kind
        group = groups.setdefault(key, _Group())
        if component.path not in group.paths:
            group.paths.append(component.path)
        group.kinds[component.kind] = group.kinds.get(component.kind, 0.0) + value
        if component.kind == "head" and component.head is not None:
            cells = group.rows.setdefault(component.path, {})
            cells[component.head] = cells.get(component.head, 0.0) + value
    return list(groups.values())


def _draw_cells(figure: Figure, axes: Axes, groups: list[_Group], rows: int, columns: int) -> None:
    placed, row = [], 0
    for group in groups:
        for offset, branch in enumerate(group.rows.values()):
            placed += [(head, row + offset, value) for head, value in branch.items()]
        row += group.height
    placed.sort(key=lambda cell: abs(cell[2]))
    largest = abs(placed[-1][2]) or 1.0
    half = 0.47
    mesh = PatchCollection(
        [Rectangle((x - half, y - half), 2 * half, 2 * half) for x, y, _ in placed],
        cmap=style.SIGNED,
        norm=TwoSlopeNorm(0, -largest, largest),
        edgecolor=style.EDGE,
        linewidth=0.4,
    )
    mesh.set_array(np.array([value for _, _, value in placed]))
    axes.add_collection(mesh)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    for x, y, value in placed[-_MARKED:] if rows <= 36 else ():
        colour = style.PAPER if abs(value) > 0.6 * largest else style.INK
        axes.text(x, y, _number(value), ha="center", va="center", fontsize=style.TINY, color=colour)
    step = 1 if columns <= 16 else 4
    axes.set_xticks(range(0, columns, step))
    axes.set_xlabel("head", color=style.INK)
    style.heading(axes, "attention heads")
    label = "share of the representation (%)"
    style.scale(figure, mesh, axes, label, marks=True, location="bottom", aspect=40, shrink=0.7, pad=0.02)
    style.plain(axes, style.TICK)


def _draw_bars(axes: Axes, groups: list[_Group]) -> None:
    top = 0
    for group in groups:
        middle, thick = top + (group.height - 1) / 2, group.height - 0.28
        ends = {True: 0.0, False: 0.0}
        for kind in KINDS:
            value = group.kinds.get(kind, 0.0)
            axes.barh(middle, value, thick, left=ends[value >= 0], color=style.KINDS[kind], linewidth=0)
            ends[value >= 0] += value
        top += group.height
    axes.axvline(0, color=style.INK, linewidth=0.8)
    axes.set_ylim(top - 0.5, -0.5)
    axes.margins(x=0.06)
    style.ruled(axes, "x")
    axes.set_xlabel("share of the representation (%)", color=style.INK, fontsize=style.LABEL)
    style.heading(axes, "all that each layer writes")
    present = [kind for kind in KINDS if any(kind in group.kinds for group in groups)]
    patches = [Patch(color=style.KINDS[kind], label=_NAMES.get(kind, kind)) for kind in present]
    axes.legend(handles=patches, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=style.LABEL)
    style.plain(axes, style.TICK)


def _label_rows(axes: Axes, groups: list[_Group], row_height: float) -> None:
    labels = [label for group in groups for label in group.labels()]
    step = max(1, round(0.13 / row_height))
    axes.set_yticks(range(0, len(labels), step), labels[::step])
    axes.tick_params(axis="y", labelsize=style.NOTE if row_height > 0.25 else style.CROWDED)


def _sum(groups: list[_Group], images: int | None) -> str:
    totals = {kind: sum(group.kinds.get(kind, 0.0) for group in groups) for kind in KINDS}
    present = [kind for kind in KINDS if any(kind in group.kinds for group in groups)]
    parts = " + ".join(f"{_NAMES.get(kind, kind)} {_number(totals[kind])} %" for kind in present)
    mean = f"mean of {images:,} images: " if images else ""
    return f"{mean}{parts} = {_number(sum(totals.values()))} % of the representation"


def _number(value: float) -> str:
    return f"{value:.1f}".replace("-", "\N{MINUS SIGN}")
