"""A segmentation as a result: how well each method's maps agree with the masks of objects."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, UInt8
from matplotlib.figure import Figure
from rich.console import RenderableType
from rich.text import Text
from sklearn.metrics import average_precision_score

from unweave.errors import ArgumentError
from unweave.figures import MapRow, maps_figure
from unweave.results import Result, rich_table


@dataclass(frozen=True)
class Quality:
    """How well a method's maps fit the masks.

    Attributes:
        method: One of `METHODS`.
        images: How many were measured.
        pixel_accuracy: Pixels on the right side of the map's mean, of all pixels of the set.
        foreground_iou: Intersection over union of the object, pooled over the set.
        mean_iou: The mean of that and of the same for the background.
        average_precision: Of the pixels, ranked by the map; the mean over images.
        reason: Why there is nothing, where the method has no meaning for the model.
    """

    method: str
    images: int = 0
    pixel_accuracy: float | None = None
    foreground_iou: float | None = None
    mean_iou: float | None = None
    average_precision: float | None = None
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class Shown:
    """One image, its mask and what each method makes of it, for a figure."""

    id: str
    label: str
    pixels: UInt8[np.ndarray, "height width 3"]
    mask: Bool[np.ndarray, "height width"]
    maps: dict[str, Float[np.ndarray, "height width"]]


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation(Result):
    """How well maps fit the masks of images.

    Attributes:
        model: The model's id.
        space: What the target is of: `classifier`, or a text space.
        qualities: One for each method.
        shown: The first images.
        skipped: Images that were left out, each with the reason.
    """

    name = "segmentation"

    model: str
    space: str
    qualities: tuple[Quality, ...]
    shown: tuple[Shown, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def table(self) -> pa.Table:
        """One row for each method."""
        names = ("images", "pixel_accuracy", "foreground_iou", "mean_iou", "average_precision")
        numbers = [(name, pa.int64() if name == "images" else pa.float64()) for name in names]
        schema = pa.schema([("model", pa.string()), ("method", pa.string()), *numbers, ("reason", pa.string())])
        rows = [
            {"model": self.model, "method": quality.method, "reason": quality.reason}
            | {name: getattr(quality, name) for name in names}
            for quality in self.qualities
        ]
        return pa.Table.from_pylist(rows, schema=schema)

    def figure(self) -> Figure:
        """The first images with their masks, and what each method makes of them.

        Raises:
            ArgumentError: No images were kept.
        """
        if not self.shown:
            raise ArgumentError("No images were kept for a figure.", cure="ask for some: `shown=5`")
        methods = list(self.shown[0].maps)
        rows = [
            MapRow(image.pixels, f"{image.label}\n{image.id}", [image.maps[name] for name in methods], mask=image.mask)
            for image in self.shown
        ]
        return maps_figure(
            rows,
            methods,
            title=f"{self.model}: maps for each image's own class",
            label="relative to the largest of the method",
            own_scales=True,
        )

    def told(self) -> list[RenderableType]:
        """The figures of each method."""
        rows = []
        for quality in self.qualities:
            numbers = (quality.pixel_accuracy, quality.foreground_iou, quality.mean_iou, quality.average_precision)
            cells = ["-" if value is None else f"{value:.3f}" for value in numbers]
            rows.append([quality.method, *cells, quality.reason or ""])
        columns = {name: "right" for name in ("pixel accuracy", "foreground IoU", "mean IoU", "average precision")}
        images = max(quality.images for quality in self.qualities)
        title = f"{self.model}: {images:,} images"
        return [rich_table(title, {"method": "left", **columns, "": "left"}, rows), Text()]


@dataclass
class Tally:
    """Counts of pixels over the images so far."""

    right: int = 0
    pixels: int = 0
    both: int = 0
    either: int = 0
    neither: int = 0
    precisions: list[float] = field(default_factory=list)

    def add(self, map_: Float[np.ndarray, "height width"], mask: Bool[np.ndarray, "height width"]) -> None:
        """One image: above the map's mean is object."""
        marked = map_ > map_.mean()
        both, either = int((marked & mask).sum()), int((marked | mask).sum())
        self.both, self.either = self.both + both, self.either + either
        self.pixels += mask.size
        self.neither += mask.size - either
        self.right += mask.size - either + both
        self.precisions.append(average_precision_score(mask.ravel(), map_.ravel()))

    def quality(self, method: str) -> Quality:
        """The figures of a method, over all images so far."""
        foreground = self.both / max(1, self.either)
        background = self.neither / max(1, self.pixels - self.both)
        return Quality(
            method,
            len(self.precisions),
            self.right / max(1, self.pixels),
            foreground,
            (foreground + background) / 2,
            float(np.mean(self.precisions)),
        )
