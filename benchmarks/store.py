"""Reading and writing a store, beside a memory-mapped .npy, Parquet, a plain .pt, and the same blocks as zarr.

    python benchmarks/store.py [--images 4096] [--components 150] [--dim 768]
    python benchmarks/store.py --remote             # needs s3fs and moto[server], which plays S3 on this machine

Every format holds the same numbers. What is asked: 10 of the components for all images, one component, and all
components of 64 scattered images. zarr 3 has a shard for each block and a chunk for each component, not compressed, as
stores of version 1 had; it is read by zarr itself, by zarr with the pipeline of zarrs, and by tensorstore, where those
are installed. Rounds alternate between the formats; the best of each is printed, in MB/s of what was asked for, with
the ratio to the memory-mapped file. Files are in the page cache, as they are the second time somebody reads; `--cold`
drops it before every read (needs root).
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import fsspec
import numpy as np
import pyarrow as pa
import torch
import typer
import zarr
from pyarrow import parquet
from rich.console import Console
from rich.table import Table
from zarr.codecs import BytesCodec

from unweave.components import Component
from unweave.contributions import Contributions
from unweave.store import Manifest, Place, Store, writer
from unweave.store.manifest import Listing
from unweave.store.writer import Block

ROUNDS = 5

Reader = Callable[..., np.ndarray]


def main(
    images: Annotated[int, typer.Option()] = 4096,
    components: Annotated[int, typer.Option()] = 150,
    dim: Annotated[int, typer.Option()] = 768,
    rows: Annotated[int, typer.Option(help="Of a block.")] = 256,
    cold: Annotated[bool, typer.Option("--cold")] = False,
    remote: Annotated[bool, typer.Option("--remote")] = False,
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="unweave-bench-"))
    try:
        bits = np.random.default_rng(0).integers(0, 2**15 - 2**11, (images, components, dim), np.uint16)
        values = bits.view(np.float16)
        if remote:
            with bucket() as url:
                seconds, readers = from_afar(url, values, rows)
                compare(values, seconds, readers, "zarr, read by zarr", cold=False)
        else:
            seconds, readers = on_disk(folder, values, rows)
            compare(values, seconds, readers, "memory-mapped .npy", cold=cold)
    finally:
        shutil.rmtree(folder)


def on_disk(folder: Path, values: np.ndarray, rows: int) -> tuple[dict[str, float], dict[str, Reader]]:
    seconds = {
        "unweave store": timed(lambda: write_store(folder / "store", values, rows)),
        "memory-mapped .npy": timed(lambda: np.save(folder / "m.npy", values)),
        ".npy, component first": timed(lambda: np.save(folder / "c.npy", values.transpose(1, 0, 2))),
        ".pt": timed(lambda: torch.save(torch.from_numpy(values), folder / "t.pt")),
        "Parquet": timed(lambda: write_parquet(folder / "p.parquet", values, rows)),
        "zarr, read by zarr": timed(lambda: write_zarr(str(folder / "z"), values, rows)),
    }
    mapped, first = (np.load(folder / name, mmap_mode="r") for name in ("m.npy", "c.npy"))
    names = [f"{one}" for one in range(values.shape[1])]

    def of_parquet(columns: list[int] | None, chosen: Any = None) -> np.ndarray:
        wanted = names if columns is None else [names[one] for one in columns]
        table = parquet.read_table(folder / "p.parquet", columns=wanted)
        table = table if chosen is None else table.take(pa.array(chosen))
        found = [table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False) for name in wanted]
        return np.stack([one.reshape(-1, values.shape[2]) for one in found], 1)

    def of_pt(columns: list[int] | None, chosen: Any = None) -> np.ndarray:
        whole = torch.load(folder / "t.pt")
        return (whole[:, columns] if columns is not None else whole[chosen]).numpy()

    readers: dict[str, Reader] = {
        "memory-mapped .npy": lambda columns, chosen=None: np.array(
            mapped[:, columns] if columns is not None else mapped[chosen]
        ),
        ".npy, component first": lambda columns, chosen=None: np.array(
            first[columns] if columns is not None else first[:, chosen]
        ).transpose(1, 0, 2),
        **of_store(Store(folder / "store"), Store(folder / "store", check=True)),
        **of_zarr(str(folder / "z")),
        "Parquet": of_parquet,
        ".pt": of_pt,
    }
    if find_spec("tensorstore"):
        readers["zarr, read by tensorstore"] = of_tensorstore({"driver": "file", "path": str(folder / "z")})
    return seconds, readers


def from_afar(url: str, values: np.ndarray, rows: int) -> tuple[dict[str, float], dict[str, Reader]]:
    seconds = {
        "unweave store": timed(lambda: write_store(f"{url}/store", values, rows)),
        "zarr, read by zarr": timed(lambda: write_zarr(f"{url}/z", values, rows)),
    }
    readers = of_store(Store(f"{url}/store")) | of_zarr(f"{url}/z", pipelines=("zarr",))
    return seconds, readers


@contextmanager
def bucket() -> Iterator[str]:
    """A bucket of an S3 that runs on this machine."""
    from moto.server import ThreadedMotoServer

    os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    server = ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        fsspec.config.conf["s3"] = {"endpoint_url": f"http://{host}:{port}"}
        fsspec.filesystem("s3").mkdir("bench")
        yield "s3://bench"
    finally:
        server.stop()


def compare(
    values: np.ndarray, seconds: dict[str, float], readers: dict[str, Reader], standard: str, *, cold: bool
) -> None:
    images, components, dim = values.shape
    ten = [int(one) for one in np.linspace(3, components - 4, 10)]
    some = np.sort(np.random.default_rng(1).permutation(images)[:64])
    questions: dict[str, tuple[list[int] | None, Any]] = {
        f"10 of {components} components": (ten, None),
        "1 component": (ten[:1], None),
        "64 scattered images": (None, some),
    }
    table = Table("format", "written, s", *questions, *(f"ratio: {name}" for name in questions))
    best: dict[str, dict[str, float]] = {name: {} for name in readers}
    for question, given in questions.items():
        expected = values[:, given[0]] if given[0] is not None else values[given[1]]
        times: dict[str, list[float]] = {name: [] for name in readers}
        for _ in range(ROUNDS):
            for name, read in readers.items():
                if cold:
                    Path("/proc/sys/vm/drop_caches").write_text("1")
                began = time.perf_counter()
                found = read(*given)
                times[name].append(time.perf_counter() - began)
                assert np.array_equal(found.view(np.uint16), expected.view(np.uint16)), name
        for name in readers:
            best[name][question] = expected.nbytes / min(times[name]) / 1e9
    for name, speeds in best.items():
        ratios = [f"{speeds[one] / best[standard][one]:.2f}" for one in questions]
        wrote = f"{seconds[name]:.1f}" if name in seconds else ""
        table.add_row(name, wrote, *(f"{1000 * speeds[one]:,.0f} MB/s" for one in questions), *ratios)
    Console(width=200).print(
        f"{images} images, {components} components, {dim} numbers, float16: {values.nbytes / 1e9:.2f} GB", table
    )


def of_store(store: Store, checked: Store | None = None) -> dict[str, Reader]:
    """A view with all that belongs to it, the numbers alone, and those of a store just opened with `check`."""

    def whole(columns: list[int] | None, chosen: Any = None) -> np.ndarray:
        view = store.view() if columns is None else store.view().select(columns)
        return Contributions.of(view.rows(chosen)).values.numpy()

    def numbers(own: Store) -> Reader:
        every, whole = list(range(len(own.components()))), np.arange(len(own))

        def read(columns: list[int] | None, chosen: Any = None) -> np.ndarray:
            rows = whole if chosen is None else whole[chosen]
            return own.numbers(writer.array("head"), every if columns is None else columns, rows).transpose(1, 0, 2)

        return read

    readers = {"unweave store": whole, "unweave store, numbers alone": numbers(store)}
    if checked is not None:

        def fresh(columns: list[int] | None, chosen: Any = None) -> np.ndarray:
            checked.__dict__.pop("blocks", None)  # forgets what was compared
            return numbers(checked)(columns, chosen)

        readers["unweave store, numbers alone, check=True"] = fresh
    return readers


def of_zarr(url: str, pipelines: tuple[str, ...] = ("zarr", "zarrs")) -> dict[str, Reader]:
    def reader(pipeline: str | None) -> Reader:
        with zarr.config.set({"codec_pipeline.path": pipeline} if pipeline else {}):
            array = zarr.open_array(url, mode="r")

        def read(columns: list[int] | None, chosen: Any = None) -> np.ndarray:
            if columns is None:
                return np.asarray(array.oindex[chosen])
            return np.stack([np.asarray(array[:, one]) for one in columns], 1)

        return read

    readers = {"zarr, read by zarr": reader(None)}
    if "zarrs" in pipelines and find_spec("zarrs"):
        readers["zarr, read by zarrs"] = reader("zarrs.ZarrsCodecPipeline")
    return readers


def of_tensorstore(place: dict[str, str]) -> Reader:
    import tensorstore

    array = tensorstore.open({"driver": "zarr3", "kvstore": place}).result()
    return lambda columns, chosen=None: (array[:, columns] if columns is not None else array[chosen]).read().result()


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def write_store(folder: Path | str, values: np.ndarray, rows: int) -> None:
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


def write_zarr(url: str, values: np.ndarray, rows: int) -> None:
    images, components, dim = values.shape
    array = zarr.create_array(
        url,
        shape=values.shape,
        chunks=(rows, 1, dim),
        shards=(rows, components, dim),
        dtype=values.dtype,
        serializer=BytesCodec(endian="little"),
        compressors=None,
    )
    for start in range(0, images, rows):
        array[start : start + rows] = values[start : start + rows]


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
