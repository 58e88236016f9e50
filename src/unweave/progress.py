"""Progress of long work: what is being done, how much of it is done, and how much there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

OnProgress: TypeAlias = Callable[[str, int, int], None]
"""Called as work goes on with what is being done, how many pieces of it are done, and how many there are."""


def silent(what: str, done: int, total: int) -> None:
    """Say nothing."""
