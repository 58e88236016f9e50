"""How verbs speak: numbers in words, results on standard output, everything else on standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from unweave.errors import UnweaveError
from unweave.notation import to_json


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


def print_note(message: str) -> None:
    """A quiet message on standard error."""
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


def table(title: str, columns: Mapping[str, str], rows: Iterable[Sequence[str | Text]]) -> Table:
    """A plain table.

    Args:
        title: Set above it.
        columns: Each column's heading, and `left` or `right` for how its cells stand.
        rows: The cells, one for each column.
    """
    drawn = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for heading, side in columns.items():
        drawn.add_column(heading, justify="right" if side == "right" else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    return drawn


def in_bytes(count: int) -> str:
    """A number of bytes as people say it: `3.2 MB`."""
    if count < 1000:
        return f"{count} B"
    power = min(4, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.1f} {' kMGT'[power]}B"


def in_percent(share: float) -> str:
    """A share of the whole as people say it: `12.3 %`."""
    return f"{100 * share:.2f} %"


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error with the remaining time; the function moves it on by so many."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(what, *columns, console=Console(stderr=True), transient=True)
    with bar, contextlib.redirect_stdout(sys.stderr):
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)


def counted(advance: Callable[[int], None]) -> Callable[[int], None]:
    """The same for callbacks that say how many are done in all."""
    done = 0

    def on_count(count: int) -> None:
        nonlocal done
        advance(count - done)
        done = count

    return on_count


def print_files(files: Mapping[str, object]) -> None:
    """What was written, and where."""
    console, width = Console(highlight=False), max(map(len, files), default=0)
    for what, path in files.items():
        console.print(Text.assemble((f"{what:>{width + 2}}  ", "dim"), str(path)), soft_wrap=True)
