"""Curves with their intervals, several in one plot, each named at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from unweave.errors import ArgumentError
from unweave.figures import style


@dataclass(frozen=True)
class Curve:
    """One line.

    Attributes:
        name: Of the line.
        values: From step 0 on.
        low, high: The band around it; None for no band.
        faint: Whether it stands behind the others, for comparison.
        mark: A step to mark.
    """

    name: str
    values: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    faint: bool = False
    mark: int | None = None


def curves_figure(panels: Mapping[str, Sequence[Curve]], *, title: str, across: str, up: str) -> Figure:
    """The figure: a panel for each group of curves, all on one scale.

    Args:
        panels: Curves under the name of their panel.
        title: Set above it.
        across: What the steps are.
        up: What the values are.

    Raises:
        ArgumentError: There is nothing to draw, or a band has not as many values as its line.
    """
    if not panels or not all(panels.values()):
        raise ArgumentError("There are no curves to draw.")
    if any(len(band) != len(curve.values) for curves in panels.values() for curve in curves for band in _bands(curve)):
        raise ArgumentError("A band has not as many values as its line.")
    figure = style.canvas(1.0 + 5.4 * len(panels), 4.3)
    for axes, (name, curves) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True
    ):
        _draw(axes, curves)
        style.heading(axes, name)
        axes.set_xlabel(across, color=style.INK, fontsize=style.TEXT)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.axes[0].set_ylabel(up, color=style.INK, fontsize=style.TEXT)
    style.title(figure, title)
    return figure


def _bands(curve: Curve) -> list[Sequence[float]]:
    return [band for band in (curve.low, curve.high) if band is not None]


def _draw(axes: Axes, curves: Sequence[Curve]) -> None:
    strong = 0
    for curve in curves:
        steps = range(len(curve.values))
        colour = style.PALE if curve.faint else style.SERIES[strong % len(style.SERIES)]
        dash = ":" if curve.faint else style.DASHES[strong // len(style.SERIES) % len(style.DASHES)]
        strong += not curve.faint
        axes.plot(steps, curve.values, dash, color=colour, linewidth=1.4 if curve.faint else 2.0, label=curve.name)
        if curve.low is not None and curve.high is not None:
            axes.fill_between(steps, curve.low, curve.high, color=colour, alpha=0.14, linewidth=0)
        if curve.mark is not None:
            axes.plot([curve.mark], [curve.values[curve.mark]], "o", color=colour, markersize=6)
    style.ruled(axes, "y")
    axes.legend(frameon=False, fontsize=style.NOTE, labelcolor=style.INK, loc="best")
    style.plain(axes, style.NOTE)
