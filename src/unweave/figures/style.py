"""The house style: paper, inks, colours and type. Whatever is drawn takes them from here, and sets none of its own."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

PAPER, INK, FAINT, PALE = "white", "#2b2b2b", "#6f6f6a", "#8a8a86"
"""What is drawn on; what is read; what is said beside it; what stands behind."""

RULE, EDGE, EMPTY, OUTLINE = "#e4e4e0", "#d4d4cf", "#e6e4e0", "#111111"
"""Lines of a grid, edges of cells, cells without a number, the edge of an object."""

SERIES = ("#3d6fb0", "#e08a3c", "#4f9d76", "#8a74bd", "#b2475a", "#6b6b66", "#2aa1b3", "#c9a227")
"""Told apart by colour-blind readers, and by their darkness in print, together with the dashes."""

DASHES = ("-", "--", "-.", ":")

KINDS = {
    "head": "#3d6fb0",
    "attn": "#8db4dd",
    "mlp": "#e08a3c",
    "conv": "#4f9d76",
    "linear": "#8a74bd",
    "embed": "#c9a227",
    "bias": "#8c8c8c",
    "lumped": "#b2475a",
    "rest": "#c8c8c4",
}
"""The colour of each kind of component."""

SIGNED, POSITIVE, PICTURE = "RdBu_r", "YlGnBu", "gray"
"""Colour maps: for and against, how much, and images that something is laid over."""

LARGE, TITLE, LESSER, HEADING, NAME = 15.0, 13.0, 12.0, 11.0, 10.0
"""Sizes of type in points: of titles, from the only one of a page to those of many panels; and of what is named."""

TEXT, LABEL, NOTE, PHRASE, TICK, SMALL, CROWDED, TINY = 9.5, 9.0, 8.5, 8.2, 8.0, 7.5, 7.0, 6.5
"""... of sentences, axes, notes, phrases and numbers, the more of them the smaller."""

PAGE = """:root {
  --ink: #23262b; --faint: #6b7078; --line: #e3e4e8; --paper: #ffffff; --ground: #f6f6f4; --mark: #3d6fb0;
  --type: 16px/1.6 system-ui, "Segoe UI", sans-serif;
}"""
"""The same for a report that a browser shows, which has its own paper."""


def canvas(width: float, height: float, layout: Any = "constrained") -> Figure:
    """An empty figure of so many inches, which no window and no global state of matplotlib knows of."""
    figure = Figure(figsize=(width, height), dpi=150, layout=layout, facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def title(figure: Figure, text: str, size: float = TITLE) -> None:
    """The title of a figure, above all of it on the left."""
    figure.suptitle(text, fontsize=size, fontweight="bold", color=INK, x=0.01, ha="left")


def heading(axes: Axes, text: str, size: float = HEADING, colour: str = INK) -> None:
    """What a panel shows, above it on the left."""
    axes.set_title(text, fontsize=size, color=colour, loc="left")


def plain(axes: Axes, size: float) -> None:
    """A panel without a frame, its ticks without marks and in type of this size."""
    axes.tick_params(length=0, labelcolor=INK, labelsize=size)
    for spine in axes.spines.values():
        spine.set_visible(False)


def ruled(axes: Axes, axis: Any) -> None:
    """A panel with fine lines behind what is drawn, across one of its axes."""
    axes.grid(axis=axis, color=RULE, linewidth=0.7)
    axes.set_axisbelow(True)


def scale(
    figure: Figure,
    colours: ScalarMappable,
    axes: Any,
    label: str,
    *,
    size: float = LABEL,
    tick: float = TICK,
    marks: bool = False,
    **place: Any,
) -> None:
    """What colours mean, beside panels.

    Args:
        figure: The figure.
        colours: What is explained.
        axes: The panels that they are in.
        label: What the numbers are.
        size, tick: Of the label's type, and the numbers'.
        marks: Whether the numbers have marks.
        place: Where it stands, as for `Figure.colorbar`; on the right if not said.
    """
    stands: dict[str, Any] = {"location": "right", "pad": 0.01} | place
    bar = figure.colorbar(colours, ax=axes, **stands)
    bar.set_label(label, color=INK, fontsize=size)
    bar.outline.set_visible(False)
    if marks:
        bar.ax.tick_params(labelsize=tick, color=PALE, labelcolor=INK)
    else:
        bar.ax.tick_params(labelsize=tick, length=0)
