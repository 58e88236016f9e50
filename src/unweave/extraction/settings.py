"""What to extract, how, and where to: everything that one run needs to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unweave.components import LEVELS, Level
from unweave.errors import ArgumentError
from unweave.notation import whole

Launcher = Literal["here", "processes", "ray"]


@dataclass(frozen=True)
class Part:
    """One of several shares of the work.

    Attributes:
        number: Which, from 1.
        of: How many there are.
    """

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Part:
        """`2/8`, the second of eight.

        Raises:
            ArgumentError: It is not of this form.
        """
        number, _, of = text.partition("/")
        first, count = whole(number, 1), whole(of, 1)
        if first is None or count is None or first > count:
            raise ArgumentError(f"There is no part {text!r}.", cure="write K/N with K from 1 to N, such as 2/8")
        return cls(first, count)

    def blocks(self, count: int) -> range:
        """Its blocks, of so many."""
        return range(self.number - 1, count, self.of)

    @property
    def lease(self) -> str:
        """The name of its lease."""
        return f"{self.number}-of-{self.of}"


@dataclass(frozen=True)
class Settings:
    """How to extract.

    Attributes:
        levels: At which levels; each becomes an array of its own, and costs a forward pass.
        select: The components to compute, at every level; None for all.
        attention, nonlinear: As in `unweave.plan`.
        dtype: What contributions are stored in.
        computed_in: What the model computes in.
        batch: Images at a time; None to find it.
        rows: Of a block, the unit of work that is kept or done again; None to find it.
        on_error: At a broken image: leave it out and say so, or stop.
        device: `auto`, `cpu` or `cuda`.
        wait: Seconds to wait where somebody else writes the same store.
        launcher: `here` in this process, `processes` in several of this machine, `ray` on a Ray cluster.
        workers: How many processes or actors; by default two, or one for each GPU.
    """

    levels: tuple[Level, ...] = ("head",)
    select: tuple[str, ...] | None = None
    attention: Literal["through", "stop"] = "through"
    nonlinear: Literal["stop", "freeze"] = "stop"
    dtype: Literal["float16", "float32"] = "float16"
    computed_in: Literal["float32", "float64", "bfloat16"] = "float32"
    batch: int | None = None
    rows: int | None = None
    on_error: Literal["skip", "raise"] = "skip"
    device: str = "auto"
    wait: float = 0.0
    launcher: Launcher = "here"
    workers: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ArgumentError: A level is unknown or comes twice, or a number is not positive.
        """
        if not self.levels or len(set(self.levels)) < len(self.levels) or not set(self.levels) <= set(LEVELS):
            raise ArgumentError(
                f"These are no levels: {', '.join(self.levels) or 'none'}.", cure=f"use some of {', '.join(LEVELS)}"
            )
        for name in ("batch", "rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                what = {"batch": "a batch", "rows": "a block"}[name]
                raise ArgumentError(f"There are no images in {what} of {value}.", cure="use 1 or more")

    @property
    def walk(self) -> dict[str, str]:
        """The keywords of `plan` that change which components there are."""
        return {"attention": self.attention, "nonlinear": self.nonlinear}
