"""What a plan asks to be computed, as plain records."""

from __future__ import annotations

from dataclasses import dataclass

from unweave.decomposition.contraction import Value
from unweave.decomposition.pieces import Reading


@dataclass(frozen=True)
class Job:
    """Columns of the result and the readings that add up to them.

    Attributes:
        readings: The summands.
        columns: The columns of the result that they are added to.
        chosen: Which of the readings' columns those are; None for all.
    """

    readings: tuple[Reading, ...]
    columns: tuple[int, ...]
    chosen: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Emission:
    """Where a value goes in the result.

    Attributes:
        value: The contraction's result.
        order: Its axes in the order (batch, kept, out); -1 for one along which it is the same everywhere.
        sizes: The length of each of these; -1 for the batch.
        columns: The result's columns.
        chosen: Which of the value's columns those are; None for all.
        scale: A factor.
        count: How many columns the value has.
    """

    value: Value
    order: tuple[int, ...]
    sizes: tuple[int, ...]
    columns: tuple[int, ...]
    chosen: tuple[int, ...] | None
    scale: float
    count: int
