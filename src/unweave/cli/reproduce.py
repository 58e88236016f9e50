"""`unweave reproduce`: the tables of the paper, ours beside the published figures."""

from __future__ import annotations

import unweave
from unweave.cli import options, settings
from unweave.cli.console import resumable, save


def reproduce(
    which: options.Table,
    output: options.Output,
    table: settings.Table,
    no_figure: options.NoFigure = False,
    json: options.Json = False,
) -> None:
    """Make a table of the paper: ours beside the published figures. What is done is kept; the same command goes on."""
    setting, subjects = table
    with resumable():
        reproduction = unweave.reproduce(which, setting, subjects)
    save(reproduction, output / which, no_figure=no_figure, json=json)
