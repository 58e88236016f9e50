"""Which components carry which factor: for each factor one panel of layers by heads, with the other branches beside.

All panels share one scale, so that they can be compared with each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

from unweave.components import Component
from unweave.errors import ArgumentError
from unweave.figures import style

_KINDS = ("embed", "attn", "mlp", "conv", "linear", "lumped")
"""What has a column of its own beside the heads."""


def factors_figure(
    components: Sequence[Component],
    carried: Mapping[str, Sequence[float]],
    *,
    title: str,
    label: str = "share of its variance",
    told: Mapping[str, Sequence[bool]] | None = None,
) -> Figure:
    """The figure.

    Args:
        components: In the order of execution; biases and what was not selected are left out.
        carried: For each factor, a number for each component, 0 ... 1; what is below zero is drawn as zero.
        title: Set above it.
        label: What the numbers are.
        told: For each factor, which of the numbers can be told from chance; the others are greyed out.

    Raises:
        ArgumentError: There is nothing to draw, or not one number for each component.
    """
    if not carried or any(len(values) != len(components) for values in carried.values()):
        raise ArgumentError(f"{len(components)} components cannot be drawn for {len(carried)} factors.")
    heads = max((part.head + 1 for part in components if part.head is not None), default=0)
    kinds = [kind for kind in _KINDS if any(part.kind == kind for part in components)]
    cells, rows = [], list(dict.fromkeys(_row(part) for part in components if part.kind in ("head", *kinds)))
    for place, part in enumerate(components):
        if part.kind == "head" and part.head is not None:
            cells.append((place, float(part.head), rows.index(_row(part))))
        elif part.kind in kinds:
            cells.append((place, heads + 0.5 + kinds.index(part.kind), rows.index(_row(part))))
    if not cells:
        raise ArgumentError("None of the components has a place in the figure.")
    width = heads + 0.5 + len(kinds)
    across = max(1, min(len(carried), int(14 / (0.26 * width + 0.75))))
    down = -(-len(carried) // across)
    height = 0.26 if len(rows) <= 40 else 0.16
    figure = style.canvas(
        1.8 + across * (0.26 * width + 0.75),
        0.9 + down * (0.8 + height * len(rows)),
        ConstrainedLayoutEngine(wspace=0.12),
    )
    norm = Normalize(0, max(0.05, *(max(values) for values in carried.values())))
    colours = ScalarMappable(norm, style.POSITIVE)
    panels = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
    for axes in panels[len(carried) :]:
        axes.set_axis_off()
    for axes, (factor, values) in zip(panels, carried.items(), strict=False):
        grey = [told is not None and not told[factor][place] for place in range(len(components))]
        _draw(axes, [(column, row, None if grey[n] else float(values[n])) for n, column, row in cells], colours)
        axes.set(xlim=(-0.6, width - 0.4), ylim=(len(rows) - 0.4, -0.6))
        style.heading(axes, factor)
        step = 1 if heads <= 8 else 4
        ticks = {float(head): str(head) for head in range(0, heads, step)}
        axes.set_xticks(*zip(*(ticks | {heads + 0.5 + n: kind for n, kind in enumerate(kinds)}).items(), strict=True))
        axes.tick_params(axis="x", rotation=0 if len(kinds) < 2 else 60)
    for axes in panels[::across]:
        step = 1 if len(rows) <= 40 else 2
        axes.set_yticks(range(0, len(rows), step), rows[::step])
    style.scale(figure, colours, panels, label, aspect=30, shrink=0.9)
    if told is not None:
        grey_cell = Rectangle((0, 0), 1, 1, facecolor=style.EMPTY, edgecolor=style.EDGE, linewidth=0.4)
        figure.legend(
            [grey_cell],
            ["not told from chance"],
            loc="upper right",
            frameon=False,
            fontsize=style.NOTE,
            labelcolor=style.INK,
        )
    style.title(figure, title)
    return figure


def _row(part: Component) -> str:
    """Heads of one attention share a row with the other branches of their block, where that is all it has."""
    block = part.path.rsplit(".", 1)[0] if "." in part.path else part.path
    return block or part.kind


def _draw(axes: Axes, cells: Sequence[tuple[float, int, float | None]], colours: ScalarMappable) -> None:
    for column, row, value in cells:
        colour = style.EMPTY if value is None else colours.to_rgba(np.array(max(0.0, value)))
        axes.add_patch(
            Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, facecolor=colour, edgecolor=style.EDGE, linewidth=0.4)
        )
    style.plain(axes, style.SMALL)
