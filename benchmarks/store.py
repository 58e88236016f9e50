"""Reading and writing a store, beside a memory-mapped .npy, Parquet, a plain .pt, and zarr read by zarr.

    python benchmarks/store.py [--images 4096] [--components 150] [--dim 768]

Every format holds the same numbers. What is asked: 10 of the components for all images, all components of 64 scattered
images, and one component. Rounds alternate between the formats; the best of each is printed, in GB/s of what was asked
for, with the ratio to the memory-mapped file. Files are in the page cache, as they are the second time somebody reads;
`--cold` drops it before every read (needs root).
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import torch
import typer
import zarr
from pyarrow import parquet
from rich.console import Console
from rich.table import Table

from unweave.components import Component
from unweave.store import Manifest, Place, Store, writer
from unweave.store.manifest import Listing
from unweave.store.writer import Block

ROUNDS = 5


def main(
    images: Annotated[int, typer.Option()] = 4096,
    components: Annotated[int, typer.Option()] = 150,
    dim: Annotated[int, typer.Option()] = 768,
    rows: Annotated[int, typer.Option(help="Of a block.")] = 256,
    cold: Annotated[bool, typer.Option("--cold")] = False,
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="unweave-bench-"))
    try:
        run(folder, images, components, dim, rows, cold)
    finally:
        shutil.rmtree(folder)


def run(folder: Path, images: int, components: int, dim: int, rows: int, cold: bool) -> None:
    bits = np.random.default_rng(0).integers(0, 2**15 - 2**11, (images, components, dim), np.uint16)
    values = bits.view(np.float16)
    seconds = {
        "unweave store": timed(lambda: write_store(folder / "store", values, rows)),
        "memory-mapped .npy": timed(lambda: np.save(folder / "m.npy", values)),
        ".npy, component first": timed(lambda: np.save(folder / "c.npy", values.transpose(1, 0, 2))),
        ".pt": timed(lambda: torch.save(torch.from_numpy(values), folder / "t.pt")),
        "Parquet": timed(lambda: write_parquet(folder / "p.parquet", values, rows)),
    }
    store = Store(folder / "store")
    mapped, first = (np.load(folder / name, mmap_mode="r") for name in ("m.npy", "c.npy"))
    array = zarr.open_array(folder / "store", path="contributions/head", mode="r")
    ten = [int(one) for one in np.linspace(3, components - 4, 10)]
    some = np.sort(np.random.default_rng(1).permutation(images)[:64])
    names = [f"{one}" for one in range(components)]

    def of_store(columns: list[int] | None, chosen: Any = None) -> np.ndarray:
        selection = None if columns is None else [str(store.components()[one]) for one in columns]
        return store.read(selection, chosen).values.numpy()

    def of_zarr(columns: list[int] | None, chosen: Any = None) -> np.ndarray:
        if columns is None:
            return np.asarray(array.oindex[chosen])
        return np.stack([np.asarray(array[:, one]) for one in columns], 1)

    def of_parquet(columns: list[int] | None, chosen: Any = None) -> np.ndarray:
        wanted = names if columns is None else [names[one] for one in columns]
        table = parquet.read_table(folder / "p.parquet", columns=wanted)
        table = table if chosen is None else table.take(pa.array(chosen))
        found = [table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False) for name in wanted]
        return np.stack([one.reshape(-1, dim) for one in found], 1)

    def of_pt(columns: list[int] | None, chosen: Any = None) -> np.ndarray:
        whole = torch.load(folder / "t.pt")
        return (whole[:, columns] if columns is not None else whole[chosen]).numpy()

    readers: dict[str, Callable[..., np.ndarray]] = {
        "memory-mapped .npy": lambda columns, chosen=None: np.array(
            mapped[:, columns] if columns is not None else mapped[chosen]
        ),
        ".npy, component first": lambda columns, chosen=None: np.array(
            first[columns] if columns is not None else first[:, chosen]
        ),
        "unweave store": of_store,
        "zarr, read by zarr": of_zarr,
        "Parquet": of_parquet,
        ".pt": of_pt,
    }
    questions: dict[str, tuple[list[int] | None, Any]] = {
        f"10 of {components} components": (ten, None),
        "1 component": (ten[:1], None),
        "64 scattered images": (None, some),
    }
    table = Table("format", "written, s", *questions, *(f"to the map: {name}" for name in questions))
    best: dict[str, dict[str, float]] = {name: {} for name in readers}
    for question, given in questions.items():
        size = (values[:, given[0]] if given[0] is not None else values[given[1]]).nbytes
        times: dict[str, list[float]] = {name: [] for name in readers}
        for _ in range(ROUNDS):
            for name, read in readers.items():
                if cold:
                    Path("/proc/sys/vm/drop_caches").write_text("1")
                began = time.perf_counter()
                found = read(*given)
                times[name].append(time.perf_counter() - began)
                expected = values[:, given[0]] if given[0] is not None else values[given[1]]
                if name == ".npy, component first" and found.shape != expected.shape:
                    found = found.transpose(1, 0, 2)
                assert np.array_equal(found.view(np.uint16), expected.view(np.uint16)), name
        for name in readers:
            best[name][question] = size / min(times[name]) / 1e9
    for name, speeds in best.items():
        ratios = [f"{speeds[one] / best['memory-mapped .npy'][one]:.2f}" for one in questions]
        wrote = f"{seconds[name]:.1f}" if name in seconds else ""
        table.add_row(name, wrote, *(f"{speeds[one]:.2f} GB/s" for one in questions), *ratios)
    Console(width=200).print(
        f"{images} images, {components} components, {dim} numbers, float16: {values.nbytes / 1e9:.2f} GB", table
    )


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def write_store(folder: Path, values: np.ndarray, rows: int) -> None:
    images, components, dim = values.shape
    own = tuple(Component(f"blocks.{one // 12}.attn", "head", one // 12, one % 12) for one in range(components))
    manifest = Manifest(
        "bench", {}, "", {}, ("head",), None, "through", "stop", "float32", "float16", dim, None, rows, 8, 1e-5, (), {}
    )
    place = Place(folder)
    writer.create(place, {"head": own})
    listed = pa.table({"id": [str(row) for row in range(images)]})
    manifest = writer.extend(place, manifest, listed, Listing("", None, None, images, "", 0, 0))
    for block in range(manifest.blocks):
        part = values[block * rows : (block + 1) * rows]
        none = np.zeros(len(part), np.float32)
        z = np.zeros((len(part), dim), np.float32)
        writer.put(place, manifest, Block(block, {"head": part}, z, None, none, none, [None] * len(part)))
    writer.merge(place, manifest)


def write_parquet(path: Path, values: np.ndarray, rows: int) -> None:
    images, components, dim = values.shape
    out = None
    for start in range(0, images, rows):
        part = np.ascontiguousarray(values[start : start + rows].transpose(1, 0, 2))
        columns = {
            str(one): pa.FixedSizeListArray.from_arrays(pa.array(part[one].reshape(-1)), dim)
            for one in range(components)
        }
        table = pa.table(columns)
        out = out or parquet.ParquetWriter(path, table.schema, compression="none", use_dictionary=False)
        out.write_table(table)
    if out is not None:
        out.close()


if __name__ == "__main__":
    typer.run(main)
