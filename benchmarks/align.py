"""Both solvers of CompAlign's objective on the same images: how low, how long, how much memory.

    python benchmarks/align.py pocket  [--images 3000] [--epochs 2,20]
    python benchmarks/align.py planted [--images 10000 --components 150 --width 768]

`pocket` extracts the six families of the pocket zoo and aligns them to its CLIP. `planted` writes a store whose targets
known orthogonal maps make of known contributions, plus noise, and says how near the solvers come to those maps and
whether scores put the planted components first.

The solvers run one after the other in processes of their own, so that the most memory that each held can be told. What
is compared is the objective on held-out images, and the time at which the default solver is as low as `adam` ends.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import torch
import typer
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

import unweave
from unweave import Aligner, Recipe
from unweave.alignment import Point, embeddings
from unweave.alignment.pairs import Pairs
from unweave.alignment.solvers import SOLVERS, nearest
from unweave.alignment.state import Keep
from unweave.components import Component
from unweave.pocket.networks import NETWORKS
from unweave.store import Manifest, Place, Store, writer
from unweave.store.manifest import Listing
from unweave.store.writer import Block

app = typer.Typer()
COLUMNS = (
    "store",
    "solver",
    "seconds",
    "1 - cosine",
    "penalty",
    "objective",
    "as low as adam after",
    "ratio",
    "memory",
)


def solved(place: str, targets: str, solver: str, recipe: Recipe, out: str) -> None:
    """One solver on one store; what it found goes into files, as this is a process of its own."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    view = Store(place).view()
    pairs = Pairs.of(view, load_file(targets)["targets"])
    side = np.isin(view.numbers, view.split(0.1)[1].numbers)
    train, other = pairs.take(np.flatnonzero(~side)), pairs.take(np.flatnonzero(side))

    def say(point: Point) -> None:
        print(f"{solver:8} {point.step:11} {point.seconds:9.1f} s  {point.total:.4f}", flush=True)

    found = SOLVERS[solver](train, other, recipe, say, Keep())
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    save_file({"maps": found.maps.contiguous(), "bias": found.bias}, f"{out}.safetensors")
    Path(f"{out}.json").write_text(
        json.dumps({"path": [asdict(own) for own in found.path], "kilobytes": most, "before": before})
    )


def compared(name: str, place: Path, targets: torch.Tensor, recipes: dict[str, tuple[str, Recipe]]) -> list[list[str]]:
    """A row for each solver."""
    save_file({"targets": targets.contiguous()}, place.parent / "targets.safetensors")
    found: dict[str, Any] = {}
    for label, (solver, recipe) in recipes.items():
        out = str(place.parent / f"solved-{solver}-{recipe.epochs}")
        worker = multiprocessing.get_context("spawn").Process(
            target=solved, args=(str(place), str(place.parent / "targets.safetensors"), solver, recipe, out)
        )
        worker.start()
        worker.join()
        if worker.exitcode:
            raise SystemExit(f"{solver} failed")
        found[label] = json.loads(Path(f"{out}.json").read_text())
    ranged = [Point(**own) for own in found["ranged"]["path"]]
    lines = []
    for label, own in found.items():
        path = [Point(**one) for one in own["path"]]
        best = min(path, key=lambda point: point.total)
        reached = next((point.seconds for point in ranged if point.total <= best.total), None)
        compare = label != "ranged"
        after = "never" if reached is None else f"{reached:.1f} s"
        ratio = "" if reached is None else f"{reached / path[-1].seconds:.3f}"
        lines.append(
            [
                name,
                label,
                f"{path[-1].seconds:.1f}",
                f"{best.held_out:.4f}",
                f"{best.penalty:.4f}",
                f"{best.total:.4f}",
                after if compare else "",
                ratio if compare else "",
                f"{own['kilobytes'] / 1e6:.2f} GB",
            ]
        )
    return lines


def shown(title: str, lines: list[list[str]], columns: tuple[str, ...] = COLUMNS) -> None:
    table = Table(*columns, title=title)
    for line in lines:
        table.add_row(*line)
    Console(width=160).print(table)
    print("\n".join(f"| {' | '.join(line)} |" for line in [list(columns), ["---"] * len(columns), *lines]), flush=True)


@app.command()
def pocket(
    images: Annotated[int, typer.Option()] = 3000,
    epochs: Annotated[str, typer.Option()] = "2,20",
    families: Annotated[str, typer.Option()] = ",".join(NETWORKS),
) -> None:
    """The six families of the pocket zoo."""
    space, lines = unweave.text_space("pocket/clip"), list[list[str]]()
    recipes = {"ranged": ("ranged", Recipe())}
    recipes |= {f"adam, {own} epochs": ("adam", Recipe(epochs=int(own))) for own in epochs.split(",")}
    for name in families.split(","):
        folder = Path(tempfile.mkdtemp(prefix="unweave-bench-"))
        try:
            store = unweave.extract(f"pocket/{name}", f"pocket/world/5/{images}", folder / "store")
            lines += compared(name, folder / "store", embeddings(store.view(), space), recipes)
        finally:
            shutil.rmtree(folder)
    shown(f"pocket zoo, {images} scenes", lines)


@app.command()
def planted(
    images: Annotated[int, typer.Option()] = 10_000,
    components: Annotated[int, typer.Option()] = 150,
    width: Annotated[int, typer.Option()] = 768,
    head: Annotated[int, typer.Option(help="Width of a head; one component in thirteen is an MLP of full width.")] = 64,
    noise: Annotated[float, typer.Option(help="Length of the noise, relative to the target.")] = 0.3,
    epochs: Annotated[int, typer.Option()] = 2,
    rounds: Annotated[int, typer.Option()] = 12,
) -> None:
    """Contributions and known orthogonal maps of them."""
    folder = Path(tempfile.mkdtemp(prefix="unweave-bench-"))
    try:
        store, maps, targets, clean = plant(folder / "store", images, components, width, head, noise)
        print(f"{store}; cosine of noisy and clean targets {float(cosine(targets, clean).mean()):.4f}", flush=True)
        recipe = Recipe(epochs=epochs, rounds=rounds)
        recipes = {"ranged": ("ranged", recipe), f"adam, {epochs} epochs": ("adam", recipe)}
        lines = compared("planted", folder / "store", targets, recipes)
        shown(f"{images} images, {components} components, width {width}", lines)
        recovered = []
        for label, (solver, own) in recipes.items():
            found = load_file(folder / f"solved-{solver}-{own.epochs}.safetensors")
            recovered.append([label, *recovery(store, found["maps"], found["bias"], maps, clean)])
        columns = ("solver", "maps, relative error", "1 - cosine with clean targets", "planted components first")
        shown("what was planted", recovered, columns)
    finally:
        shutil.rmtree(folder)


def plant(
    place: Path, images: int, components: int, width: int, head: int, noise: float
) -> tuple[Store, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A store of contributions in which images have a few hundred properties in common, and targets."""
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(images, 256, generator=generator)
    named = tuple(
        Component(f"blocks.{number // 13}.mlp", "mlp", number // 13)
        if number % 13 == 12
        else Component(f"blocks.{number // 13}.attn", "head", number // 13, number % 13)
        for number in range(components)
    )
    ranks = [width if own.kind == "mlp" else head for own in named]
    # Each component hears some of the properties, and has something to say of its own.
    heard = [
        torch.randn(256, rank, generator=generator) * (torch.rand(256, 1, generator=generator) < 0.1) for rank in ranks
    ]
    ranges = [torch.linalg.qr(torch.randn(width, rank, generator=generator)).Q.T for rank in ranks]
    maps = torch.stack([nearest(torch.randn(width, width, generator=generator)) for _ in named])
    manifest = Manifest(
        "planted", {}, "planted", {}, ("head",), None, "through", "stop", "float32", "float16", width, None, 500, 8,
        1e-5, (), {},
    )  # fmt: skip
    writer.create(Place(place), {"head": named})
    table = pa.table({"id": [f"{row:06}" for row in range(images)]})
    manifest = writer.extend(Place(place), manifest, table, Listing("", None, None, images, "", 0, 0))
    clean = torch.zeros(images, width)
    for block in range(manifest.blocks):
        rows = slice(500 * block, min(500 * block + 500, images))
        count = rows.stop - rows.start
        values = torch.empty(count, components, width)
        for number, rank in enumerate(ranks):
            own = latent[rows] @ heard[number] + torch.randn(count, rank, generator=generator)
            values[:, number] = own @ ranges[number] / rank**0.5
        clean[rows] = torch.einsum("ncw,cwd->nd", values, maps)
        none = np.zeros(count, np.float32)
        half = values.numpy().astype(np.float16)
        sums = values.sum(1).numpy()
        writer.put(Place(place), manifest, Block(block, {"head": half}, sums, None, none, none, [None] * count))
    writer.merge(Place(place), manifest)
    off = torch.randn(images, width, generator=generator)
    targets = clean + noise * clean.norm(dim=1, keepdim=True) * off / off.norm(dim=1, keepdim=True)
    return Store(place), maps, targets, clean


def cosine(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cosine_similarity(one, other, dim=-1)


def recovery(
    store: Store, maps: torch.Tensor, bias: torch.Tensor, known: torch.Tensor, clean: torch.Tensor
) -> tuple[str, str, str]:
    """How far aligned contributions are from what was planted, and whether scores find whose they are."""
    values = store.view().rows(slice(0, 1000)).values()
    error, aligned = [], torch.zeros(len(values), maps.shape[2]) + bias
    scale_top = scale_bottom = 0.0
    pairs = []
    for number in range(len(maps)):
        own, true = values[:, number] @ maps[number], values[:, number] @ known[number]
        aligned += own
        scale_top += float((own * true).sum())
        scale_bottom += float(own.square().sum())
        pairs.append((own, true))
    scale = scale_top / scale_bottom  # the cosine does not tell it
    for own, true in pairs:
        error.append(float((scale * own - true).norm() / true.norm()))
    # For ten components, a direction along which that component alone was planted to vary most among all.
    seen = store.view().rows(slice(0, 1000)).through(Aligner(maps, bias, store.components(), {"level": "head"}))
    first = 0
    chosen = range(0, len(maps), max(1, len(maps) // 10))
    for number in chosen:
        direction = torch.linalg.svd(pairs[number][1] - pairs[number][1].mean(0), full_matrices=False)[2][:1]
        whole, parts = seen.representation_along(direction)[:, 0], seen.along(direction)[:, :, 0]
        scores = [abs(float(torch.corrcoef(torch.stack([part, whole]))[0, 1])) for part in parts.T]
        first += int(np.argmax(scores)) == number
    return (
        f"{np.mean(error):.3f} (most {max(error):.3f})",
        f"{float(1 - cosine(aligned, clean[:1000]).mean()):.4f}",
        f"{first} of {len(chosen)}",
    )


if __name__ == "__main__":
    app()
