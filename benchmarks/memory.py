"""The memory of an extraction, as it goes on: resident bytes of the process after every some images.

python benchmarks/memory.py [--images 5000] [--model pocket/deit]
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.console import Console
from rich.table import Table

from unweave.extraction import Settings, prepare
from unweave.images import open_images


def main(
    images: Annotated[int, typer.Option()] = 5000,
    model: Annotated[str, typer.Option()] = "pocket/deit",
    data: Annotated[str | None, typer.Option(help="Drawn scenes if not given.")] = None,
) -> None:
    folder, process = Path(tempfile.mkdtemp(prefix="unweave-bench-")), psutil.Process()
    table, shares = Table("images", "resident, MB"), set[int]()
    try:
        found = open_images(data or f"pocket/world/9/{images}", limit=images)
        extraction = prepare(model, found, folder / "store", Settings(device="cpu"))
        table.add_row("0", f"{process.memory_info().rss / 1e6:.0f}")

        def on_progress(what: str, done: int, total: int) -> None:
            if 10 * done // total not in shares:
                shares.add(10 * done // total)
                table.add_row(str(done), f"{process.memory_info().rss / 1e6:.0f}")

        extraction.run(on_progress=on_progress)
    finally:
        shutil.rmtree(folder)
    known = extraction.manifest
    Console(width=120).print(f"{model}: blocks of {known.rows} images, {known.batch} at a time", table)


if __name__ == "__main__":
    typer.run(main)
