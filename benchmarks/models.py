"""How far every model is resolved: one row each, measured in a process of its own, with limits of time and memory.

    python -m benchmarks.models [--only 'timm/*'] [--minutes 60]      measures what has no row yet
    python -m benchmarks.models --publish                             writes docs/models.md and the table in the package

Random weights, two random images, float32, head level. A row is written as soon as it is known, and is not measured
again: a run that was interrupted goes on. What a model stops at is its row as well. One process is forked for each
model, so that libraries are imported once.
"""

from __future__ import annotations

import fnmatch
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))  # where its neighbours are, whichever way it is run

from building import loadings, tower
from catalogue import catalogue

import unweave
from unweave.decomposition.branches import FREEZE
from unweave.errors import UnweaveError
from unweave.models import opened

BOUNDS = {"float32": 1e-5, "float64": 1e-10}
"""The largest error of a sum."""

SECONDS, GIGABYTES, PATIENCE = 300, 8, 10
"""What one model may take of a processor and of memory, and how many times as long by the clock."""

ROWS = Path(__file__).parents[1] / ".models.jsonl"

_FORK = multiprocessing.get_context("fork")


class Rows:
    """The rows known so far, one a line of a file; a line is added in one go, and one that was torn is cut off."""

    def __init__(self, file: Path = ROWS) -> None:
        self.file = file
        written = file.read_bytes() if file.exists() else b""
        whole = written[: written.rfind(b"\n") + 1]
        if whole != written:
            os.truncate(file, len(whole))
        self.known: dict[str, dict[str, Any]] = {row["id"]: row for row in map(json.loads, whole.splitlines())}

    def of(self, id: str, *, seconds: float = SECONDS, gigabytes: float = GIGABYTES) -> dict[str, Any]:
        """The row of a model, measured if it is not known."""
        if id not in self.known:
            self._add(self._shared(id) or measured(id, seconds=seconds, gigabytes=gigabytes))
        return self.known[id]

    def _shared(self, id: str) -> dict[str, Any] | None:
        """The row of a model with the same image tower."""
        wanted = tower(id)
        for other, row in self.known.items() if wanted else ():
            if tower(other) == wanted and "same" not in row:
                return {**row, "id": id, "same": other}
        return None

    def _add(self, row: dict[str, Any]) -> None:
        line = (json.dumps(row) + "\n").encode()
        place = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(place, line)
        finally:
            os.close(place)
        self.known[row["id"]] = row


def measured(id: str, *, seconds: float = SECONDS, gigabytes: float = GIGABYTES) -> dict[str, Any]:
    """A row, measured in a process of its own.

    Args:
        id: See `building.loadings`.
        seconds: What it may take of a processor; the row then says how far it came.
        gigabytes: What it may hold in memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _watched(id, Path(folder), seconds, gigabytes)


def _watched(id: str, folder: Path, seconds: float, gigabytes: float) -> dict[str, Any]:
    ours, theirs = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_report, args=(id, folder, theirs), daemon=True)
    start = time.monotonic()
    process.start()
    theirs.close()
    row: dict[str, Any] = {"id": id, "date": date.today().isoformat()}
    doing, failure = "loading", ""
    watched = psutil.Process(process.pid)
    try:
        while not failure:
            try:
                if ours.poll(0.1):
                    kind, value = ours.recv()
                    if kind == "doing":
                        doing = value
                    elif kind == "row":
                        row |= value
                    else:
                        break
                    continue
                held, times = watched.memory_info().rss, watched.cpu_times()
            except (EOFError, psutil.Error):
                failure = f"the process died while {doing}"
                break
            if held > gigabytes * 1e9:
                failure = f"it does not build in {gigabytes:g} GB" if doing == "loading" else ""
                failure = failure or f"{doing} takes more than {gigabytes:g} GB"
            elif max(times.user + times.system, (time.monotonic() - start) / PATIENCE) >= seconds:
                failure = f"{doing} is not done after {seconds:g} seconds"
    finally:
        process.kill()
        process.join()
        ours.close()
    if failure:
        left = "failure" if "error" not in row else "frozen" if "regions" in row else "regions"
        row |= {left: {"failure": failure} if left == "frozen" else failure}
        row |= {"named": True} if left == "failure" else {}
    if failure.startswith("the process died"):
        row |= {"named": False}
    return row | {"took": round(time.monotonic() - start, 1)}


def _report(id: str, folder: Path, parent: Connection) -> None:
    """Measures a model and tells the parent process: what it is doing, and parts of the row as they are known."""
    warnings.simplefilter("ignore")
    os.environ["HF_HUB_OFFLINE"] = "1"
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    row: dict[str, Any] = {}
    for loading, told in _ways(id, folder, row):
        tried = {"cut": told} if told else {}
        try:
            parent.send(("doing", "loading"))
            model = opened(loading)
            tried |= _decomposed(model, "float32", parent)
            if not tried["error"] <= BOUNDS["float32"]:
                wide = opened(loading, dtype="float64")
                tried |= {"float32": tried["error"]} | _decomposed(wide, "float64", parent)
        except Exception as error:
            reason = str(error).replace(str(folder), "FOLDER").strip() or type(error).__name__
            tried |= {"failure": reason if isinstance(error, UnweaveError) else f"{type(error).__name__}: {reason}"}
            tried |= {"named": isinstance(error, UnweaveError)}
            if not tried["named"]:
                tried |= {"trace": "".join(traceback.format_exception(error)[-4:])[-1500:]}
            row = tried
            continue
        row = tried
        parent.send(("row", row))
        parent.send(("doing", "reading regions"))
        row |= {"regions": _regional(model).replace(str(folder), "FOLDER")}
        if any(lump.endswith(FREEZE) for lump in row["lumps"]):
            parent.send(("row", row))
            parent.send(("doing", "freezing"))
            row |= {"frozen": _frozen(model)}
        break
    parent.send(("row", row))
    parent.send(("done", None))


def _ways(id: str, folder: Path, row: dict[str, Any]) -> Iterator[tuple[unweave.Loading, str]]:
    """How a model is loaded; where its library cannot even make its configuration, that is its row."""
    try:
        yield from loadings(id, folder)
    except Exception as error:
        row |= {"failure": f"its configuration cannot be made: {type(error).__name__}: {error}", "named": True}


def _decomposed(model: unweave.Model, dtype: str, parent: Connection) -> dict[str, Any]:
    """What is told of one decomposition."""
    parent.send(("doing", "planning"))
    start = time.perf_counter()
    plan = unweave.plan(model)
    seconds = time.perf_counter() - start
    parent.send(("doing", "decomposing two images"))
    return {
        "dtype": dtype,
        "size": list(model.input_size),
        "dim": plan.dim,
        "parameters": sum(weight.numel() for weight in model.readout.parameters()),
        "attention": plan.coverage.attention_layers,
        "unresolved": list(plan.coverage.unresolved),
        "lumps": [f"{lump.operation} in {lump.module or 'the model'}: {lump.reason}" for lump in plan.lumps],
        "notes": list(model.notes),
        "seconds": round(seconds, 1),
        **_resolved(plan, _images(model, dtype)),
    }


def _resolved(plan: unweave.Plan, images: torch.Tensor) -> dict[str, Any]:
    """Components, resolved attention layers, the share of what is lumped, and the error of the sum."""
    result = plan.run(images, tolerance=float("inf"))
    lumped = [place for place, component in enumerate(plan.components) if component.kind == "lumped"]
    share = result.values[:, lumped].sum(1).norm(dim=-1) / result.representation.norm(dim=-1)
    return {
        "kinds": dict(Counter(component.kind for component in plan.components)),
        "resolved": plan.coverage.resolved,
        "error": float(result.error.max()),
        "share": float(share.mean()),
    }


def _frozen(model: unweave.Model) -> dict[str, Any]:
    """How far it is resolved where nonlinearities on the trunk are held as gates."""
    try:
        plan = unweave.plan(model, nonlinear="freeze")
        needed = (2 * plan.memory_per_image + plan.constant_bytes) / 1e9
        if needed > GIGABYTES:
            return {"failure": f"takes {needed:.0f} GB"}
        found = _resolved(plan, _images(model, "float32"))
    except Exception as error:
        return {"failure": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    return {name: found[name] for name in ("kinds", "resolved", "error", "share")}


def _images(model: unweave.Model, dtype: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn((2, *model.input_size), generator=generator).to(getattr(torch, dtype))


def _regional(model: unweave.Model) -> str:
    """`yes`, where the sum holds for regions too, or why there are none."""
    try:
        plan = unweave.plan(model, regions=True)
        weights = torch.zeros(2, plan.tokens.count)
        weights[0, -1] = weights[1, : plan.tokens.count // 2] = 1
        error = float(plan.run(_images(model, "float32"), weights, tolerance=float("inf")).error.max())
    except Exception as error:
        reason = str(error).splitlines()[0]
        return reason if isinstance(error, UnweaveError) else f"fails: {type(error).__name__}: {reason}"
    if not error <= BOUNDS["float32"]:
        return f"inexact: {error:.0e}"
    return "yes" if plan.tokens.grid is not None else "yes, by weights of tokens: no grid"


def main(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of models; all of the catalogue if none.")] = None,
    only: Annotated[str, typer.Option(help="Ids, or groups, that fit a pattern.")] = "*",
    rows: Annotated[Path, typer.Option(help="Where rows are kept.")] = ROWS,
    seconds: Annotated[float, typer.Option(help="What one model may take of a processor.")] = SECONDS,
    gigabytes: Annotated[float, typer.Option(help="What one model may hold in memory.")] = GIGABYTES,
    minutes: Annotated[float, typer.Option(help="No model is begun after so long.")] = float("inf"),
    again: Annotated[bool, typer.Option(help="Measure once more what failed, or has no word on regions.")] = False,
    publish: Annotated[bool, typer.Option(help="Write the tables from the rows that there are.")] = False,
) -> None:
    """Measure every model that has no row yet, or publish the rows."""
    known, console = Rows(rows), Console(stderr=True, highlight=False)
    listed = dict.fromkeys(ids, "") if ids else catalogue()
    if publish:
        from publishing import published

        for path in published(known.known, listed):
            console.print(f"wrote {path}")
        return
    wanted = [id for id, group in listed.items() if fnmatch.fnmatch(id, only) or fnmatch.fnmatch(group, only)]
    if again:
        for id in wanted:
            row = known.known.get(id, {})
            if "failure" in row or row.get("regions") == "not measured":
                del known.known[id]
    open_ = [id for id in wanted if id not in known.known]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends the process of the model too
    start = time.monotonic()
    for count, id in enumerate(open_):
        passed = time.monotonic() - start
        if passed > 60 * minutes:
            break
        left = passed / count * (len(open_) - count) / 60 if count else float("nan")
        row = known.of(id, seconds=seconds, gigabytes=gigabytes)
        told = row.get("failure") or f"error {row['error']:.0e}, {row['resolved']}/{row['attention']}, {row['regions']}"
        console.print(
            f"{count + 1}/{len(open_)} ({left:.0f} min left) {id}: {told.splitlines()[0]} [{row.get('took')} s]"
        )


if __name__ == "__main__":
    typer.run(main)
