"""The command line: one verb per file, each the same as a function in Python.

Results go to standard output, and with `--json` nothing else does; progress, warnings and errors go to standard error.
Libraries that take long to import are imported inside the verbs, so that help appears at once.
"""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import unweave
from unweave.cli.ablate import ablate
from unweave.cli.align import align
from unweave.cli.console import print_error, print_warning
from unweave.cli.debias import debias
from unweave.cli.decompose import decompose
from unweave.cli.demo import demo
from unweave.cli.explain import explain
from unweave.cli.extract import extract
from unweave.cli.given import unfolded
from unweave.cli.heatmap import heatmap
from unweave.cli.label import label
from unweave.cli.models import models
from unweave.cli.reproduce import reproduce
from unweave.cli.results import interrupted, written
from unweave.cli.score import score
from unweave.cli.search import search
from unweave.cli.segment import segment
from unweave.cli.store import store
from unweave.errors import DataWarning, UnweaveError

__all__ = ["app", "main"]


class _Verbs(TyperGroup):
    """Ends every verb that meets an `UnweaveError` with its message and status 2, and an interrupted one with 130."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        written.clear()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always", DataWarning)
                warnings.showwarning = _warned(warnings.showwarning)
                return super().invoke(ctx)
        except UnweaveError as error:
            print_error(error)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            print_error(interrupted())
            raise typer.Exit(130) from None


def _warned(usual: Callable[..., None]) -> Callable[..., None]:
    """What shows warnings: those about images as the verbs' own."""

    def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        if issubclass(category, DataWarning):
            print_warning(str(message))
        else:
            usual(message, category, *rest, **named)

    return show


app = typer.Typer(
    cls=_Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
_FIRST: tuple[Callable[..., None], ...] = (demo, explain, decompose, extract)
_THEN: tuple[Callable[..., None], ...] = (
    align,
    score,
    label,
    ablate,
    search,
    debias,
    heatmap,
    segment,
    reproduce,
    models,
)
for verb in _FIRST:
    app.command()(unfolded(verb))
app.add_typer(store, name="store")
for verb in _THEN:
    app.command()(unfolded(verb))


def _version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"unweave {unweave.__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Any vision model's image representation as an exact sum of named components."""


def main() -> None:
    """Run the command line (the `unweave` command)."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a character shows a question mark rather than ending the run.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    # A job that is stopped by its scheduler cleans up like one that is stopped at the keyboard.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app(prog_name="unweave")
