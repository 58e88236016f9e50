"""The range of a component: the directions that its contributions ever point in.

A head writes through its own slice of the output projection, so its contributions lie in as many directions as the head
is wide (64 of 768, say); a bias lies in one. With an orthonormal basis U of that range, c_i = y_i U' exactly, and the
map acts on it through A_i = U' W_i alone. What W_i does beside the range changes no image, only the penalty, and the
best that it can do there is known in closed form (`least`, `completed`). So CompAlign is solved for the small A_i,
without approximation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

EXACT = {torch.float16: 1e-3, torch.float32: 1e-5, torch.float64: 1e-12}
"""How much of a component's length may lie outside its range, by the numbers that it is stored in: no more than their
rounding moves it.
"""


@dataclass(frozen=True, eq=False)
class Ranges:
    """Orthonormal bases, one for each component.

    Attributes:
        bases: `[width, rank]` each; the rank of a component that writes nothing is 0.
    """

    bases: tuple[Tensor, ...]

    @cached_property
    def alike(self) -> list[list[int]]:
        """Components of the same rank, which can be dealt with at once."""
        found: dict[int, list[int]] = {}
        for number, rank in enumerate(self.ranks):
            found.setdefault(rank, []).append(number)
        return list(found.values())

    @property
    def ranks(self) -> list[int]:
        """How many directions each component has."""
        return [basis.shape[1] for basis in self.bases]

    def within(self, contributions: Float[Tensor, "image component width"]) -> Float[Tensor, "image total"]:
        """The contributions' coordinates in their ranges, side by side."""
        parts = [contributions[:, number] @ basis for number, basis in enumerate(self.bases)]
        return torch.cat(parts, 1)

    def restricted(self, maps: Iterable[Float[Tensor, "width dim"]]) -> Float[Tensor, "total dim"]:
        """What maps do on the ranges, one below the other."""
        return torch.cat([basis.T @ own for basis, own in zip(self.bases, maps, strict=True)])


def ranges(batches: Iterable[Tensor], stored: torch.dtype = torch.float32) -> Ranges:
    """Find the ranges in one pass over the contributions.

    Memory: `component * width^2` numbers.

    Args:
        batches: The contributions, `[image, component, width]`, some images at a time.
        stored: In which numbers they were kept.
    """
    # Sums of squares need twice the digits of what is told by them.
    precise = torch.float32 if stored == torch.float16 else torch.float64
    moments: Tensor | None = None
    for batch in batches:
        columns = batch.to(precise).permute(1, 0, 2)
        own = columns.mT @ columns
        moments = own if moments is None else moments.add_(own)
    assert moments is not None
    bases = []
    for moment in moments:
        values, vectors = torch.linalg.eigh(moment.double())
        without = values.clamp_min(0).cumsum(0)  # variance that is lost with this direction and all smaller ones
        bases.append(vectors[:, without > EXACT[stored] ** 2 * without[-1]].flip(1).float())
    return Ranges(tuple(bases))


def free(width: int, dim: int, rank: int) -> int:
    """How many singular values of a map below one may be made up for beside the range.

    A map to a narrower space (`width > dim`) is an isometry if W'W = 1. What A'A lacks of that, W can add from outside
    the range, in as many directions as are left.
    """
    return max(0, width - max(rank, dim)) if width > dim else 0


def least(small: Float[Tensor, "*some rank dim"], width: int) -> Float[Tensor, "*some"]:
    """The squared Frobenius norm of the defect of the best map that acts as `small` on the range; of several at once.

    For `width <= dim`, what lies beside the range can be mapped to directions of its own, so the defect is that of
    `small`. For `width > dim` it also makes up for the smallest singular values (see `free`).
    """
    rank, dim = small.shape[-2:]
    spare = free(width, dim, rank)
    gram = small @ small.mT if rank <= dim else small.mT @ small
    if not spare:
        return (gram - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)).square().sum((-2, -1))
    lacking = 1 - torch.linalg.eigvalsh(gram)  # descending, as eigenvalues ascend
    return lacking.square().sum(-1) - lacking[..., :spare].clamp_min(0).square().sum(-1)


def completed(basis: Float[Tensor, "width rank"], small: Float[Tensor, "rank dim"]) -> Float[Tensor, "width dim"]:
    """The map that acts as `small` on the range, and beside it is whatever makes its defect least."""
    width, rank = basis.shape
    dim = small.shape[1]
    complement = torch.linalg.qr(basis.double(), mode="complete").Q[:, rank:] if rank else torch.eye(width).double()
    own = small.double()
    if width <= dim:
        # Orthonormal rows beside those of `small`.
        outside = torch.linalg.qr(own.T, mode="complete").Q[:, rank:].T if rank else torch.eye(dim).double()
        beside = outside[: width - rank]
    else:
        values, vectors = torch.linalg.eigh(own.T @ own)
        lacking = (1 - values).clamp_min(0)[: width - rank]
        beside = torch.zeros(width - rank, dim).double()
        beside[: len(lacking)] = lacking.sqrt()[:, None] * vectors.T[: len(lacking)]
    return (basis.double() @ own + complement @ beside).to(small.dtype)
