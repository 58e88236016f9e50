"""Accounts of an extraction: what it would take, and what it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from unweave.results import Shown, in_bytes, left_out, rich_table
from unweave.store import Store


@dataclass(frozen=True, repr=False)
class Estimate(Shown):
    """What an extraction would take, from a few of its images.

    Attributes:
        store: Where it would be.
        images: How many there are.
        stored: How many of these the store has already.
        components: How many, by level.
        dim: The width of the representation.
        batch, rows: Images at a time, and in a block.
        bytes: On disk.
        speed: Images a second.
        seconds: How long it would take.
    """

    store: str
    images: int
    stored: int
    components: Mapping[str, int]
    dim: int
    batch: int
    rows: int
    bytes: int
    speed: float
    seconds: float

    def about(self) -> dict[str, Any]:
        """The same, ready for JSON."""
        return asdict(self)

    def told(self) -> list[RenderableType]:
        """The same as a table."""
        hours, rest = divmod(round(self.seconds), 3600)
        rows = [
            ["images", f"{self.images:,}"],
            ["of these already stored", f"{self.stored:,}"],
            *([f"components ({level})", f"{count:,}"] for level, count in self.components.items()),
            ["numbers in each", f"{self.dim:,}"],
            ["on disk", f"{in_bytes(self.bytes)} ({self.bytes:,} bytes)"],
            ["images at a time", str(self.batch)],
            ["images in a block", str(self.rows)],
            ["images a second", f"{self.speed:.1f}"],
            ["expected time", f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"],
        ]
        return [rich_table("Nothing was written", {"what": "left", "how much": "right"}, rows)]


@dataclass(frozen=True, repr=False)
class Extracted(Shown):
    """What an extraction did.

    Attributes:
        store: The store, as it is now.
        images: How many were dealt with.
        seconds: How long that took.
    """

    store: Store
    images: int
    seconds: float

    def about(self) -> dict[str, Any]:
        """What the store holds, and what was done, ready for JSON."""
        return self.store.about() | {"extracted": self.images, "seconds": round(self.seconds, 3)}

    def told(self) -> list[RenderableType]:
        """The images that were left out, how many were not, and what the store holds."""
        skipped, speed = self.store.skipped, self.images / max(self.seconds, 1e-9)
        return [
            *([left_out(skipped)] if skipped else []),
            Text(f"{self.images:,} images in {self.seconds:.1f} s ({speed:.1f} images/s)."),
            Text(self.store.content),
        ]
