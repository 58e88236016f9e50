"""Where in the image a score comes from: a signed map over each image, all maps on one scale centred at zero."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

from unweave.errors import UnweaveError

_INK = "#2b2b2b"


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
        UnweaveError: There are no images, or not one map and caption for each.
    """
    if not len(images) or not len(images) == len(maps) == len(captions):
        raise UnweaveError(f"{len(images)} images with {len(maps)} maps and {len(captions)} captions cannot be drawn.")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(2.9 * columns + 0.8, 1.72 * rows + 0.6), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    largest = float(np.abs(maps).max()) or 1.0
    colours = ScalarMappable(Normalize(-largest, largest), "RdBu_r")
    grid = figure.subplots(rows, 2 * columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for place, (image, scores, caption) in enumerate(zip(images, maps, captions, strict=True)):
        plain, over = grid[place // columns, 2 * (place % columns) : 2 * (place % columns) + 2]
        plain.imshow(image)
        plain.set_title(caption, fontsize=8.5, color=_INK, loc="left")
        size = (image.shape[1], image.shape[0])
        smooth = np.asarray(Image.fromarray(scores.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
        faded = colours.to_rgba(smooth)
        faded[..., 3] = np.clip(np.abs(smooth) / largest, 0, 1) ** 0.5 * 0.85
        over.imshow(np.asarray(Image.fromarray(image).convert("L")), cmap="gray", vmin=-60, vmax=255)
        over.imshow(faded)
    bar = figure.colorbar(colours, ax=grid, location="right", aspect=30, shrink=0.8, pad=0.01)
    bar.set_label(label, color=_INK, fontsize=9)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=0)
    figure.suptitle(title, fontsize=13, fontweight="bold", color=_INK, x=0.01, ha="left")
    return figure
