"""What was asked for above, and below it what each choice of components finds: one row of pictures for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from unweave.errors import ArgumentError
from unweave.figures import style

_CELL, _LABEL, _TOP = 1.02, 1.75, 0.62
"""Inches: a picture with its number, what stands beside it, and the title."""


@dataclass(frozen=True, eq=False)
class RetrievedRow:
    """One row of the figure.

    Attributes:
        label: What the images should have in common.
        note: By what they were found.
        images: Squares of equal size, the nearest first.
        similarity: One for each image.
    """

    label: str
    note: str
    images: UInt8[np.ndarray, "image side side 3"]
    similarity: Sequence[float]


def retrieval_figure(
    rows: Sequence[RetrievedRow],
    *,
    title: str,
    text: str | None = None,
    probe: UInt8[np.ndarray, "side side 3"] | None = None,
    caption: str = "",
) -> Figure:
    """The figure.

    Args:
        rows: From top to bottom.
        title: Set above all.
        text: What was asked for in words, or
        probe: the image that was asked for.
        caption: Beside the probe.

    Raises:
        ArgumentError: There is nothing to draw, or not one similarity for each image.
    """
    most = max((len(row.images) for row in rows), default=0)
    if not most or any(len(row.images) != len(row.similarity) for row in rows):
        raise ArgumentError("Nothing was found, so there is nothing to draw.", cure="search in more images")
    above = 0.45 if probe is None else _CELL
    width, height = _LABEL + _CELL * max(most, 4), _TOP + above + 0.12 + _CELL * len(rows)
    figure = style.canvas(width, height, None)
    bold: dict[str, Any] = {"fontsize": style.TITLE, "fontweight": "bold", "color": style.INK}
    figure.text(0.12 / width, 1 - 0.2 / height, title, va="top", **bold)

    def picture(image: np.ndarray, column: int, top: float) -> None:
        left, side = _LABEL + column * _CELL, _CELL - 0.22
        axes = figure.add_axes((left / width, 1 - (top + side) / height, side / width, side / height))
        axes.imshow(image)
        axes.set_axis_off()

    def words(text: str, left: float, top: float, **how: Any) -> None:
        usual: dict[str, Any] = {"color": style.INK, "va": "center", "fontsize": style.NAME}
        figure.text(left / width, 1 - top / height, text, **(usual | how))

    if probe is None:
        words("text", 0.12, _TOP + 0.2, color=style.FAINT)
        words(f"\u201c{text}\u201d", _LABEL, _TOP + 0.2, fontsize=style.TITLE)
    else:
        words("probe", 0.12, _TOP + 0.4, color=style.FAINT)
        picture(probe, 0, _TOP)
        words(caption, _LABEL + _CELL, _TOP + 0.4, color=style.FAINT, fontsize=style.NOTE)
    for number, row in enumerate(rows):
        top = _TOP + above + 0.12 + number * _CELL
        words(row.label, 0.12, top + 0.3, fontweight="bold")
        words(row.note, 0.12, top + 0.52, color=style.FAINT, fontsize=style.NOTE)
        for column, (image, near) in enumerate(zip(row.images, row.similarity, strict=True)):
            picture(image, column, top)
            shown = f"{near:.2f}".replace("-", "\N{MINUS SIGN}")
            words(shown, _LABEL + column * _CELL + (_CELL - 0.22) / 2, top + 0.89, ha="center", fontsize=style.TICK)
    line = 1 - (_TOP + above) / height
    figure.add_artist(Line2D((0.12 / width, 1 - 0.12 / width), (line, line), color=style.EDGE, linewidth=0.8))
    return figure
