"""What components stand for: the phrases that name each, and the images in which it writes most along the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from unweave.errors import ArgumentError
from unweave.figures import style


@dataclass(frozen=True, eq=False)
class NamedComponent:
    """One row of the figure.

    Attributes:
        component: Its name in the model.
        phrases: What names it, each with the share of its variance along the phrase alone.
        usual: That share for the median phrase of the vocabulary.
        most, least: Images in which it writes most along the first phrase, and least; squares of equal size, as many
            in every row.
    """

    component: str
    phrases: Sequence[tuple[str, float]]
    usual: float
    most: UInt8[np.ndarray, "most side side 3"]
    least: UInt8[np.ndarray, "least side side 3"]


def names_figure(rows: Sequence[NamedComponent], *, title: str) -> Figure:
    """The figure: a row for each component, its phrases with a bar for each, and its images.

    Args:
        rows: From top to bottom.
        title: Set above all.

    Raises:
        ArgumentError: There is nothing to draw.
    """
    if not rows:
        raise ArgumentError("No component has a name, so there is nothing to draw.", cure="use more images")
    most, least = len(rows[0].most), len(rows[0].least)
    height = 1.12
    figure = style.canvas(4.4 + 0.98 * (most + least), 1.1 + height * len(rows))
    grid = figure.add_gridspec(len(rows), 2 + most + least, width_ratios=[4.0, *[1] * most, 0.18, *[1] * least])
    largest = max((share for row in rows for _, share in row.phrases), default=1.0) or 1.0
    for number, row in enumerate(rows):
        axes = figure.add_subplot(grid[number, 0])
        axes.set(xlim=(0, 1.6 * largest), ylim=(len(row.phrases) - 0.4, -1.35))
        axes.text(0, -0.95, row.component, fontsize=style.TEXT, fontweight="bold", color=style.INK, va="center")
        for place, (phrase, share) in enumerate(row.phrases):
            axes.barh(place, share, 0.74, color=style.SERIES[0], alpha=0.28, linewidth=0)
            axes.text(0.01 * largest, place, phrase, fontsize=style.PHRASE, color=style.INK, va="center")
            share_type: dict[str, Any] = {"fontsize": style.TICK, "color": style.FAINT}
            axes.text(1.58 * largest, place, f"{100 * share:.0f} %", va="center", ha="right", **share_type)
        axes.axvline(row.usual, ymax=len(row.phrases) / (len(row.phrases) + 0.95), color=style.FAINT, linewidth=0.8)
        axes.set_axis_off()
        for column, image in enumerate([*row.most, None, *row.least], 1):
            if image is None:
                continue
            cell = figure.add_subplot(grid[number, column])
            cell.imshow(image)
            cell.set_axis_off()
            if number == 0 and column in (1, len(row.most) + 2):
                style.heading(cell, "most" if column == 1 else "least", style.NOTE, style.FAINT)
    style.title(figure, f"{title}\n\n")
    below = 1 - 0.44 / figure.get_figheight()
    says = "bars: share of the component's variance along the phrase; the line: along a usual phrase of the vocabulary"
    figure.text(0.01, below, says, fontsize=style.NOTE, color=style.FAINT, va="top")
    return figure
