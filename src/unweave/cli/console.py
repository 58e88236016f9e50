"""How verbs speak: numbers in words, results on standard output, everything else on standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from unweave.cli.results import results
from unweave.errors import UnweaveError
from unweave.notation import to_json
from unweave.progress import OnProgress

if TYPE_CHECKING:
    from unweave.results import Result, Shown


def print_error(error: UnweaveError | str) -> None:
    """A red message on standard error, with where it happened and what to do below it."""
    first, *rest = str(error).splitlines()
    text = Text.assemble(("error: ", "bold red"), (first, "red"))
    for line in rest:
        text.append(f"\n{line}")
    Console(stderr=True, highlight=False).print(text, soft_wrap=True)


def print_warning(message: str) -> None:
    """A yellow message on standard error."""
    text = Text.assemble(("warning: ", "bold yellow"), message)
    Console(stderr=True, highlight=False).print(text, soft_wrap=True)


def print_note(*messages: str) -> None:
    """Quiet messages on standard error."""
    for message in messages:
        Console(stderr=True, highlight=False).print(Text(message, "dim"), soft_wrap=True)


def print_json(value: object) -> None:
    """The result for machines; a number that is none is `null`."""
    sys.stdout.write(to_json(value, indent=2) + "\n")


@contextlib.contextmanager
def working(message: str) -> Iterator[None]:
    """Shows a spinner on standard error, and sends there whatever libraries print meanwhile."""
    console = Console(stderr=True)
    with console.status(Text(message)), contextlib.redirect_stdout(sys.stderr):
        yield


class _Speed(ProgressColumn):
    """How many pieces are done in a second."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f}/s")


@contextlib.contextmanager
def reporting() -> Iterator[OnProgress]:
    """A bar on standard error for what a verb says of its progress, with the remaining time."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    tasks: dict[str, TaskID] = {}

    def on_progress(what: str, done: int, total: int) -> None:
        if what not in tasks:
            for task in tasks.values():
                bar.update(task, visible=False)
            tasks[what] = bar.add_task(what, total=total)
        bar.update(tasks[what], completed=done, total=total, visible=True)

    with bar, contextlib.redirect_stdout(sys.stderr):
        yield on_progress


@contextlib.contextmanager
def resumable(kept: str = "What is done is kept", on: Callable[[], str] = lambda: "from there") -> Iterator[None]:
    """Says where a verb is interrupted that the same command goes on, and ends it with status 130.

    Args:
        kept: What there is.
        on: With what it goes on, asked when it is interrupted.
    """
    try:
        yield
    except KeyboardInterrupt:
        print_error(f"Interrupted. {kept}; the same command goes on {on()}.")
        raise typer.Exit(130) from None


def show(shown: Shown, *, json: bool) -> None:
    """Print what shows itself, or what it is as JSON."""
    if json:
        print_json(shown.about())
    else:
        Console(highlight=False).print(shown, soft_wrap=True)


def save(result: Result, output: Path, *, no_figure: bool, json: bool) -> None:
    """Save a result, and print it: a table and the files, or JSON."""
    with working("Writing"), results(output) as (fresh, files):
        files |= result.save(fresh, figure=not no_figure)
    if json:
        print_json({**result.about(), "files": files, "rows": result.table().to_pylist()})
        return
    console = Console(highlight=False)
    console.width = max(console.width, result.width)
    console.print(result)
    print_files(files)


def print_files(files: Mapping[str, object]) -> None:
    """What was written, and where."""
    console, width = Console(highlight=False), max(map(len, files), default=0)
    for what, path in files.items():
        console.print(Text.assemble((f"{what:>{width + 2}}  ", "dim"), str(path)), soft_wrap=True)
