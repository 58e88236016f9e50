"""Steps: how images and components of a view were chosen, said again as Python and as the words of a command line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int
from torch import Tensor

from unweave.errors import ArgumentError

Step: TypeAlias = tuple[str, tuple[Any, ...]]
"""A method of a view, and its arguments."""

_IMAGES = ("where", "split", "rows")
"""Steps that choose images."""

_RUNS = 10_000
"""Runs of images that a command line names at most."""


def as_python(steps: Iterable[Step]) -> str:
    """The calls, one after the other."""
    return "".join(_call(name, arguments) for name, arguments in steps)


def as_words(
    steps: Sequence[Step], name: str, rows: Int[np.ndarray, " image"], components: Sequence[object]
) -> list[str]:
    """The options that choose the same.

    Args:
        steps: What was chosen, one after the other.
        name: The argument that the view is: `source`, or one beside it, of which a command line says less.
        rows: The images that are left, as rows of the source.
        components: The components that are left.

    Raises:
        ArgumentError: No options say it.
    """
    selected = [arguments[0] for step, arguments in steps if step == "select"]
    if name != "source":
        said = ("level", "through", *(("where",) if name == "fitted" else ()))
        if any(step not in said for step, _ in steps):
            raise ArgumentError(f"No option chooses images or components of `{name}` in this way.")
        conditions = [condition for step, arguments in steps if step == "where" for condition in arguments]
        return [word for condition in conditions for word in (f"--{name}-where", condition)]
    words = []
    for step, arguments in steps:
        if step == "through" and arguments[0] is not None:
            words += arguments[0].as_options("space")
        elif step == "level":
            words += ["--level", arguments[0]]
            selected = []
    if len(selected) == 1 and isinstance(selected[0], str):
        components = selected
    elif len(selected) == 1 and all(isinstance(part, str) for part in selected[0]):
        components = selected[0]
    named = [word for part in (components if selected else ()) for word in ("--select", str(part))]
    return [*words, *_images(steps, rows), *named]


def _images(steps: Sequence[Step], rows: Int[np.ndarray, " image"]) -> list[str]:
    """The options that choose images: as they were chosen where that can be said, else by their rows."""
    chosen = [step for step in steps if step[0] in _IMAGES]
    last = chosen[-1][1][0] if chosen and chosen[-1][0] == "rows" else None
    first = last if isinstance(last, slice) and last == slice(None, last.stop) and (last.stop or 0) > 0 else None
    chosen = chosen if first is None else chosen[:-1]
    if any(name == "rows" for name, _ in chosen):
        return ["--rows", _runs(rows.tolist())]
    words = []
    for name, arguments in chosen:
        values = arguments if name == "where" else [",".join(map(str, arguments))]
        option = "--where" if name == "where" else "--side"
        words += [word for value in values for word in (option, str(value))]
    return words if first is None else [*words, "--limit", str(first.stop)]


def _runs(rows: Sequence[int]) -> str:
    """Rows as a command line says them: `0:3,7`, each run from its first up to the one behind its last."""
    runs: list[list[int]] = []
    for row in rows:
        if runs and row == runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([row, row + 1])
    if len(runs) > _RUNS:
        raise ArgumentError(f"{len(rows)} single images are too many to name in a command.")
    return ",".join(str(first) if behind == first + 1 else f"{first}:{behind}" for first, behind in runs)


def _call(name: str, arguments: Sequence[Any]) -> str:
    if name == "split":  # which gives two views
        *arguments, side = arguments
        return f".split({', '.join(map(_written, arguments))})[{side}]"
    return f".{name}({', '.join(map(_written, arguments))})"


def _written(value: Any) -> str:
    """An argument as Python."""
    if isinstance(value, (np.ndarray, Tensor)):
        return repr(value.tolist())
    return str(value.as_code()) if hasattr(value, "as_code") else repr(value)
