"""Rows: contributions and the embeddings that they should add up to, some images at a time, as often as asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from unweave.store import Store

_BYTES = 2**28
"""Of contributions, in memory at a time."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Some images of a store, with their targets.

    Attributes:
        store: The contributions.
        level: At which level.
        numbers: Which rows.
        targets: The embeddings of these images, of length one.
    """

    store: Store
    level: str
    numbers: np.ndarray
    targets: Float[Tensor, "image dim"]

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, places: np.ndarray) -> Rows:
        """Only these."""
        return Rows(self.store, self.level, self.numbers[places], self.targets[torch.from_numpy(places)])

    def contributions(self, places: slice | np.ndarray) -> Float[Tensor, "image component width"]:
        """The contributions of some of them."""
        return self.store.read(rows=self.numbers[places], level=self.level).values.float()

    def batches(self, size: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Contributions and targets, in order.

        Args:
            size: Images at a time; as many as fit into a quarter of a gigabyte if not given.
        """
        width = len(self.store.components(self.level)) * self.store.manifest.dim * 4
        size = size or max(1, _BYTES // width)
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield self.contributions(part), self.targets[part]


def rows_of(store: Store, targets: Tensor, level: str | None = None) -> Rows:
    """All images of a store, with the embeddings of these images, row by row."""
    return Rows(store, level or store.manifest.levels[0], np.arange(len(store)), normalize(targets.float(), dim=-1))


def held_out(ids: Sequence[str], share: float, seed: int) -> np.ndarray:
    """Which images are held out: by a hash of their ids, so that an image is on the same side in every store.

    Args:
        ids: Of the images.
        share: How many, of one.
        seed: Another one holds others out.
    """
    hashes = [hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:8] for name in ids]
    return np.array([int.from_bytes(one, "big") < share * 2**64 for one in hashes], bool)
