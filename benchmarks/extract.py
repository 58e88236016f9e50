"""Extraction into a store, beside the plain forward pass over the same images and loader.

    python benchmarks/extract.py PHOTOS [--models vit_base_patch16_224,swin_base_patch4_window7_224] [--limit 1000]

Both read, decode and preprocess every image with the same loader; one runs the model, the other `unweave.extract`, to
the last byte on disk. They alternate in pieces of some images, so that whatever else the machine does meets both alike;
the ratio is that of the sums. The plan is made once: the last ratio counts it in.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

import unweave
from unweave.extraction import Settings, prepare
from unweave.images import batches, open_images
from unweave.store import Store, summary

PIECES = 10


def main(
    photos: str,
    models: Annotated[str, typer.Option()] = "vit_base_patch16_224,swin_base_patch4_window7_224",
    limit: Annotated[int, typer.Option()] = 1000,
    device: Annotated[str, typer.Option()] = "cpu",
) -> None:
    table = Table(
        "model",
        "images",
        "components",
        "plan, s",
        "forward, images/s",
        "extract, images/s",
        "ratio",
        "with plan",
        "stored",
    )
    for name in models.split(","):
        table.add_row(*measured(name, photos, limit, device))
    Console(width=160).print(table)


def measured(name: str, photos: str, limit: int, device: str) -> list[str]:
    model = unweave.load_model(f"timm/{name}", random_weights=True, device=device)
    images = open_images(photos, limit=limit)
    folder = Path(tempfile.mkdtemp(prefix="unweave-bench-"))
    size = -(-len(images) // PIECES)
    try:
        began = time.perf_counter()
        extraction = prepare(model, images, folder / "store", Settings(device=device, rows=-(-size // 2)))
        batch = extraction.manifest.batch
        # The weight products, which are made once, belong to the plan.
        extraction.extractor.computed(["warm"], [model.example(1)[0]])
        planned = time.perf_counter() - began
        with torch.inference_mode():
            model.readout(model.example(batch))
        forward = extracted = 0.0
        pending = extraction.blocks()
        for start in range(0, len(images), size):
            forward += plain(model, images[start : start + size], batch, device)
            began = time.perf_counter()
            extraction.extractor.run(pending[:2])
            pending = pending[2:]
            extracted += time.perf_counter() - began
        began = time.perf_counter()
        extraction.run()
        extracted += time.perf_counter() - began
        found = summary(Store(folder / "store"))
    finally:
        shutil.rmtree(folder)
    assert found["rows"] == len(images)
    return [
        name,
        str(len(images)),
        str(sum(found["components"].values())),
        f"{planned:.1f}",
        f"{len(images) / forward:.2f}",
        f"{len(images) / extracted:.2f}",
        f"{extracted / forward:.3f}",
        f"{(extracted + planned) / forward:.3f}",
        f"{found['bytes'] / 1e6:.0f} MB",
    ]


def plain(model: unweave.Model, images: unweave.ImageSet, batch: int, device: str) -> float:
    began = time.perf_counter()
    with torch.inference_mode():
        for _, tensors in batches(model, images, batch):
            found = model.readout(tensors.to(device))
        found.cpu()
    return time.perf_counter() - began


if __name__ == "__main__":
    typer.run(main)
