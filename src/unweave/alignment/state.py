"""Where a solver stands: kept on disk from time to time, so that a run which was interrupted goes on as it was."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unweave.errors import AlignmentError
from unweave.files import replacing
from unweave.notation import parse_json


@dataclass(frozen=True)
class Point:
    """Where a solver stood.

    Attributes:
        step: Which round, sweep or epoch was done.
        seconds: Since it began.
        train, held_out: The first term of the objective.
        penalty: The second, with its weight.
    """

    step: str
    seconds: float
    train: float
    held_out: float
    penalty: float

    @property
    def total(self) -> float:
        """The objective on held-out images."""
        return self.held_out + self.penalty


OnPoint = Callable[[Point], None]


@dataclass(frozen=True)
class Keep:
    """Where states are kept.

    Attributes:
        path: A file; None to keep nothing.
        key: Says what is solved; a state of anything else is passed over.
    """

    path: Path | None = None
    key: str = ""

    def load(self) -> State | None:
        """The state that is kept, if it is of this problem and undamaged."""
        if self.path is None:
            return None
        with contextlib.suppress(OSError, SafetensorError, KeyError, TypeError, ValueError):
            with safe_open(self.path, "pt") as file:
                known = parse_json((file.metadata() or {})["state"])
                if known["key"] != self.key:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            path = [Point(**one) for one in known["path"]]
            return State(tensors, path, known["idle"], known["done"], path[-1].seconds)
        return None

    def save(self, state: State) -> None:
        """Keep a state in the place of the one before.

        Raises:
            AlignmentError: It cannot be written.
        """
        if self.path is None:
            return
        known = {"key": self.key, "path": [asdict(one) for one in state.path], "idle": state.idle, "done": state.done}
        tensors = {name: value.detach().contiguous() for name, value in state.tensors.items()}
        with replacing(self.path, "state of the alignment", error=AlignmentError) as partial:
            save_file(tensors, partial, {"state": json.dumps(known)})

    def forget(self) -> None:
        """Remove what is kept."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


ROUNDING = 1e-6
"""The share of an objective that single precision may gain or lose by rounding alone: no reason to go on."""


@dataclass(eq=False)
class State:
    """Where a solver stands after a step.

    Attributes:
        tensors: `maps` and `bias`, `best maps` and `best bias`, and whatever else the solver needs to go on.
        path: Where it stood after each step.
        idle: For how many steps nothing was gained on held-out images.
        done: How many steps of the solver's schedule are done.
        before: Seconds that earlier runs took.
    """

    tensors: dict[str, Tensor]
    path: list[Point] = field(default_factory=list)
    idle: int = 0
    done: int = 0
    before: float = 0.0
    began: float = field(default_factory=time.perf_counter)

    def reached(self, step: str, train: float, held_out: float, penalty: float, seconds: float | None = None) -> Point:
        """Note where the solver stands, since when if not now, and whether it is the best place so far."""
        seconds = self.before + time.perf_counter() - self.began if seconds is None else seconds
        point = Point(step, round(seconds, 3), train, held_out, penalty)
        better = all(point.total < other.total for other in self.path)
        if better:
            for name in ("maps", "bias"):
                self.tensors[f"best {name}"] = self.tensors[name].detach().clone()
        gained = all(point.total < other.total - ROUNDING * abs(other.total) for other in self.path)
        self.path.append(point)
        self.idle = 0 if gained else self.idle + 1
        self.done += 1
        return point

    @property
    def best(self) -> tuple[Tensor, Tensor]:
        """Maps and bias of the best place."""
        return self.tensors["best maps"], self.tensors["best bias"]


def fresh(maps: Tensor, bias: Tensor | None = None) -> State:
    """A state from which nothing has been done."""
    bias = torch.zeros(maps.shape[-1]) if bias is None else bias
    return State({"maps": maps, "bias": bias, "best maps": maps, "best bias": bias})
