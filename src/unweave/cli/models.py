"""`unweave models`: what model ids mean, and which libraries are installed."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from unweave.cli import options
from unweave.cli.console import print_json, table, working


def models(json: options.Json = False) -> None:
    """Say what model ids mean and which libraries are installed."""
    with working("Looking for libraries"):
        from unweave.models import available

        libraries = available()
    if json:
        print_json({"libraries": libraries})
        return
    rows: list[list[str | Text]] = []
    for library in libraries:
        version = library["version"]
        installed = Text(version, "green") if version else Text(f"no: {library['install']}", "yellow")
        rows.append([str(library["pattern"]), str(library["meaning"]), installed])
    console = Console(highlight=False)
    console.print(table("Model ids", {"id": "left", "what it names": "left", "installed": "left"}, rows))
    console.print(Text("\nFor example:"))
    for library in libraries:
        console.print(Text(f"  unweave explain {library['example']}"), soft_wrap=True)
    console.print(Text("\nIn Python, any torch.nn.Module: unweave.models.Model.from_module(module)"), soft_wrap=True)
