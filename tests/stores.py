"""A tiny model and tiny pictures, for what is kept of them on disk."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tiny import SIZE, WIDTH, Vit, ready
from unweave.extraction import Settings, job
from unweave.models import Model


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


def remembered(own: Model, levels: Any, select: Any, **options: Any) -> Any:
    """`plans_of`, once for each question: a plan costs more than all else here."""
    key = own.weights_hash, tuple(levels), select, tuple(sorted(options.items()))
    if key not in _plans:
        _plans[key] = _made(own, levels, select, **options)
    return _plans[key]


def draw(folder: Path, count: int, *, first: int = 0) -> Path:
    """Pictures of noise, all different: `images/0000.png`, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        pixels = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04}.png")
    return folder


SMALL = Settings(rows=4, batch=3)
"""Blocks of four images, three at a time."""
