"""Where in the image a score comes from: a signed map over each image, all maps on one scale centred at zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

from unweave.errors import ArgumentError
from unweave.figures import style


def heatmap_figure(
    images: UInt8[np.ndarray, "image height width 3"],
    maps: Float[np.ndarray, "map row column"],
    captions: Sequence[str],
    *,
    title: str,
    label: str = "score",
    columns: int = 4,
) -> Figure:
    """Each image beside itself with its map laid over it: red speaks for, blue against, nothing says nothing.

    Args:
        images: RGB, 0 ... 255.
        maps: Scores on the model's token grid; enlarged to the image smoothly.
        captions: One for each image.
        title: Set above all.
        label: What the maps show, beside the colours.
        columns: Images in a row.

    Raises:
        ArgumentError: There are no images, or not one map and caption for each.
    """
    if not len(images) or not len(images) == len(maps) == len(captions):
        raise ArgumentError(f"{len(images)} images with {len(maps)} maps and {len(captions)} captions cannot be drawn.")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = style.canvas(2.9 * columns + 0.8, 1.72 * rows + 0.6)
    largest = float(np.abs(maps).max()) or 1.0
    colours = ScalarMappable(Normalize(-largest, largest), style.SIGNED)
    grid = figure.subplots(rows, 2 * columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for place, (image, scores, caption) in enumerate(zip(images, maps, captions, strict=True)):
        plain, over = grid[place // columns, 2 * (place % columns) : 2 * (place % columns) + 2]
        plain.imshow(image)
        style.heading(plain, caption, style.NOTE)
        _laid_over(over, image, scores, colours, largest)
    style.scale(figure, colours, grid, label, aspect=30, shrink=0.8)
    style.title(figure, title)
    return figure


@dataclass(frozen=True, eq=False)
class MapRow:
    """An image and its maps.

    Attributes:
        image: RGB, 0 ... 255.
        caption: What it is.
        maps: One for each column of the figure, on a grid of any size; None where there is none.
        notes: What is not in the maps, each a name and a number; set below the image.
        mask: Where the object is; its edge is drawn over everything.
    """

    image: UInt8[np.ndarray, "height width 3"]
    caption: str
    maps: Sequence[Float[np.ndarray, "row column"] | None]
    notes: Sequence[tuple[str, float]] = ()
    mask: Bool[np.ndarray, "height width"] | None = None


def maps_figure(
    rows: Sequence[MapRow], headings: Sequence[str], *, title: str, label: str, own_scales: bool = False
) -> Figure:
    """A row for each image: the image, and several maps over it.

    Args:
        rows: From top to bottom.
        headings: One for each column of maps.
        title: Set above all.
        label: What the maps show, beside the colours.
        own_scales: Whether each column has a scale of its own, for maps of different units; else all share one.

    Raises:
        ArgumentError: There is nothing to draw, or a row has not one map for each heading.
    """
    if not rows or not headings or any(len(row.maps) != len(headings) for row in rows):
        raise ArgumentError(f"{len(rows)} images with maps of {len(headings)} kinds cannot be drawn.")
    count = len(headings) + 1
    notes = max(len(row.notes) for row in rows)
    height = 1.9 + 0.12 * notes
    figure = style.canvas(1.62 * count + 0.9, height * len(rows) + 0.75)
    largest = [
        [np.abs(map_).max() for map_ in column if map_ is not None]
        for column in zip(*(row.maps for row in rows), strict=True)
    ]
    peaks = [float(max(column, default=0.0)) or 1.0 for column in largest]
    shared = max(peaks)
    grid = figure.subplots(len(rows), count, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    scale = 1.0 if own_scales else shared
    colours = ScalarMappable(Normalize(-scale, scale), style.SIGNED)
    for number, (row, cells) in enumerate(zip(rows, grid, strict=True)):
        cells[0].imshow(row.image)
        caption = "\n".join(_short(line, 26) for line in row.caption.splitlines())
        style.heading(cells[0], caption, style.SMALL)
        said = "\n".join(f"{name}  {value:+.2f}" for name, value in row.notes)
        cells[0].text(0, -0.03, said, transform=cells[0].transAxes, fontsize=style.TINY, color=style.FAINT, va="top")
        for place, (axes, map_) in enumerate(zip(cells[1:], row.maps, strict=True)):
            if number == 0:
                style.heading(axes, _short(headings[place], 24), style.TICK)
            if map_ is not None:
                _laid_over(axes, row.image, map_ / (peaks[place] if own_scales else 1.0), colours, scale)
        for axes in cells if row.mask is not None else ():
            axes.contour(np.asarray(row.mask, float), [0.5], colors=style.OUTLINE, linewidths=0.9)
    part = min(0.8, 2 / len(rows))
    style.scale(figure, colours, grid, label, size=style.NOTE, tick=style.SMALL, aspect=22, shrink=part)
    style.title(figure, title, style.LESSER)
    return figure


def _laid_over(
    axes: Axes,
    image: UInt8[np.ndarray, "height width 3"],
    scores: Float[np.ndarray, "row column"],
    colours: ScalarMappable,
    largest: float,
) -> None:
    """A map over the image in grey, stronger colours where it says more."""
    size = (image.shape[1], image.shape[0])
    smooth = np.asarray(Image.fromarray(scores.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
    faded = colours.to_rgba(smooth)
    faded[..., 3] = np.clip(np.abs(smooth) / largest, 0, 1) ** 0.5 * 0.85
    axes.imshow(np.asarray(Image.fromarray(image).convert("L")), cmap=style.PICTURE, vmin=-60, vmax=255)
    axes.imshow(faded)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"...{text[3 - most :]}"
