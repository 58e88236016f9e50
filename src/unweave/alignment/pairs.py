"""Pairs: contributions, and the embeddings that they should add up to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from unweave.view import View


@dataclass(frozen=True, eq=False)
class Pairs:
    """Images with their targets.

    Attributes:
        view: The contributions, in the model's own space.
        targets: The embeddings of these images, of length one.
    """

    view: View
    targets: Float[Tensor, "image dim"]

    @classmethod
    def of(cls, view: View, embeddings: Float[Tensor, "image dim"]) -> Pairs:
        """All images of a view, with embeddings of any length, row by row."""
        return cls(view, normalize(embeddings.float(), dim=-1))

    def __len__(self) -> int:
        return len(self.view)

    def take(self, rows: np.ndarray) -> Pairs:
        """Only some images, by their rows."""
        return Pairs(self.view.rows(rows), self.targets[torch.from_numpy(rows)])

    def batches(self) -> Iterator[tuple[Float[Tensor, "image component width"], Float[Tensor, "image dim"]]]:
        """Contributions and targets, in order, as many images at a time as fit into a view's budget."""
        start = 0
        for part in self.view.batches():
            yield part.values(), self.targets[start : start + len(part)]
            start += len(part)
