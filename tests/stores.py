"""A tiny model and tiny pictures, for what is kept of them on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tiny import SIZE, WIDTH, Vit, ready
from unweave.extraction import Settings, extractor, job
from unweave.models import Model
from unweave.store import Manifest, Place, Store, writer
from unweave.store.manifest import Listing
from unweave.store.writer import Block
from unweave.text import TextSpace


class Classifier(nn.Module):
    """A tiny ViT with a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Vit(), nn.Linear(WIDTH, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


@cache
def model() -> Model:
    return Model.from_module(
        ready(Classifier(), torch.float32), classifier="head", input_size=(3, SIZE, SIZE), id="tiny"
    )


_plans: dict[Any, Any] = {}
_made = job.plans_of


def remembered(model: Model, levels: Any, select: Any, **options: Any) -> Any:
    """`plans_of`, once for each question: a plan costs more than all else here."""
    key = model.weights_hash, tuple(levels), select, tuple(sorted(options.items()))
    if key not in _plans:
        _plans[key] = _made(model, levels, select, **options)
    return _plans[key]


@contextmanager
def remembering(cache: Path) -> Iterator[None]:
    """Plans are made once for each model, and embeddings are kept in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (job, extractor):
            patch.setattr(module, "plans_of", remembered)
        patch.setenv("UNWEAVE_CACHE", str(cache))
        yield


def draw(folder: Path, count: int, *, first: int = 0) -> Path:
    """Pictures of noise, all different: `images/0000.png`, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        pixels = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04}.png")
    return folder


def stored(place: Path, values: Tensor, components: Any, *, ids: Any = None, fields: Any = None, **known: Any) -> Store:
    """Contributions that were made up, as a store."""
    names = list(ids or (f"{row}" for row in range(len(values))))
    manifest = Manifest(
        **{
            "model": "tiny",
            "loading": None,
            "weights_hash": "hash",
            "preprocessing": {"size": 1},
            "levels": ("head",),
            "selection": None,
            "attention": "through",
            "nonlinear": "stop",
            "computed_in": "float32",
            "dtype": "float32",
            "dim": values.shape[2],
            "classes": None,
            "rows": 100,
            "batch": 8,
            "tolerance": 1e-5,
            "listings": (),
            "versions": {},
        }
        | known
    )
    writer.create(Place(place), {"head": tuple(components)})
    listed = pa.table({"id": names, **(fields or {})})
    manifest = writer.extend(Place(place), manifest, listed, Listing("", None, len(values), "", 0, 0))
    for block, part in enumerate(values.split(100)):
        none = np.zeros(len(part), np.float32)
        z = part.sum(1).numpy()
        content = Block(block, {"head": part.numpy()}, z, None, none, none, [None] * len(part))
        writer.put(Place(place), manifest, content)
    writer.merge(Place(place), manifest)
    return Store(place)


class Words:
    """A text tower whose directions are given, and otherwise drawn by the text."""

    context = 12

    def __init__(self, dim: int, known: dict[str, Tensor] | None = None) -> None:
        self.dim, self.known = dim, known or {}

    def tokens(self, text: str) -> int:
        return len(text.split()) + 2

    def embed(self, texts: Any) -> Tensor:
        return torch.stack([self._one(text) for text in texts])

    def _one(self, text: str) -> Tensor:
        if text in self.known:
            return self.known[text]
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        return torch.randn(self.dim, generator=torch.Generator().manual_seed(seed))


def space_of(dim: int, known: dict[str, Tensor] | None = None) -> TextSpace:
    """A text space with given directions."""
    mark = hashlib.sha256(
        repr([dim, {name: tensor.tolist() for name, tensor in (known or {}).items()}]).encode()
    ).hexdigest()
    return TextSpace("tiny", model(), Words(dim, known), mark, ("{}",))


SMALL = Settings(rows=4, batch=3)
"""Blocks of four images, three at a time."""
