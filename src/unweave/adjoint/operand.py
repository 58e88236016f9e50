"""The pending map: how a node of the graph still reaches the representation, as a small network of factors.

Walking back from the representation z, the linear map from a node X to z is kept as a sum of *terms*, each a product
of factors that share named indices (an einsum that is never multiplied out while walking):

    z[b, D]  =  sum over all other indices of   scale * factor_1 * factor_2 * ... * X

A factor is either a **constant** (made of weights alone: it is contracted once per model and kept) or a **runtime**
value that depends on the image but is small (1/std of a norm, rows of attention probabilities, a gate). Each axis of
X, and of each factor, is a tuple of atomic indices (row-major), with an optional `take`: the positions of that axis
that are read. So the whole vocabulary of shape operations is three moves: relabel an axis (permute, view), split an
index (view), and compose a take (slice, select, roll, cat, pad). Where two splits of one axis disagree (windows of 7
over patches merged by 2) a small one-hot factor relates the two.

A class-token readout is then `take=(0,)` on the token axis of everything below it; mean pooling is a fresh token
index and a scale of 1/T; nothing else is special about either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from math import prod
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, fx

from unweave.graph.graph import Extent, extents_of

_serial = count()


@dataclass(frozen=True, eq=False)
class Index:
    """One atomic index of a pending map, of size two or more. The batch index is the single instance `BATCH`."""

    size: int
    serial: int = field(default_factory=lambda: next(_serial))

    def __repr__(self) -> str:
        return "b" if self is BATCH else f"i{self.serial}:{self.size}"


BATCH = Index(0)
Indices: TypeAlias = tuple[Index, ...]


def size_of(indices: Indices) -> int:
    """The number of entries that indices without the batch run over."""
    return prod(index.size for index in indices)


def fresh(size: int) -> Indices:
    """A new index of this size; none where there is only one entry."""
    return (Index(size),) if size > 1 else ()


class Irregular(Exception):
    """A pending map cannot follow this operation; the walk stops here and what lies below becomes one component."""


@dataclass(frozen=True)
class Axis:
    """One axis of a tensor: the indices that run over it (row-major), and the positions they read.

    Attributes:
        indices: The atomic indices; none for an axis of one entry, or for a single position.
        take: The position that each flat entry of `indices` reads; None where they run over the whole axis in order.
        length: The length of the tensor's axis where `take` is given.
    """

    indices: Indices = ()
    take: tuple[int, ...] | None = None
    length: int = 0

    @property
    def extent(self) -> Extent:
        """The length of the tensor's axis."""
        if self.take is not None:
            return Extent(self.length)
        return Extent(prod(index.size for index in self.indices if index is not BATCH), BATCH in self.indices)

    def positions(self) -> np.ndarray:
        """The position each flat entry reads."""
        return np.arange(size_of(self.indices)) if self.take is None else np.asarray(self.take)

    def substituted(self, old: Index, new: Indices) -> Axis:
        """The axis with one index written as several."""
        if old not in self.indices:
            return self
        return replace(self, indices=tuple(part for one in self.indices for part in (new if one is old else (one,))))


def reading(indices: Indices, positions: Sequence[int], length: int) -> Axis:
    """An axis of this length read at these positions."""
    if len(positions) == length and all(place == entry for entry, place in enumerate(positions)):
        return Axis(indices)
    return Axis(indices, tuple(int(place) for place in positions), length)


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor made of weights alone, evaluated when a plan first runs and kept for its device and dtype.

    Attributes:
        shape: Its shape.
        inputs: What it is made of: image-independent graph nodes or other constants.
        make: Turns the inputs' values into the tensor.
        key: Equal keys mean equal values, so that equal structure is built and multiplied once.
    """

    shape: tuple[int, ...]
    inputs: tuple[fx.Node | Constant, ...]
    make: Callable[..., Tensor]
    key: object = None

    @staticmethod
    def of(node: fx.Node) -> Constant:
        """The value of an image-independent node."""
        return Constant(tuple(extent.size for extent in extents_of(node)), (node,), _same, node)

    @staticmethod
    def array(values: np.ndarray) -> Constant:
        """A tensor known now: one-hot structure."""
        tensor = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
        return Constant(values.shape, (), lambda: tensor, (values.shape, tensor.numpy().tobytes()))

    def __hash__(self) -> int:
        return id(self) if self.key is None else hash(self.key)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Constant) and self.key is not None and self.key == other.key)


def _same(value: Tensor) -> Tensor:
    return value


@dataclass(frozen=True)
class Runtime:
    """A factor that depends on the image, computed from node values once they are known.

    Attributes:
        kind: Names the computation; with `node` it identifies the value.
        node: The node it belongs to.
        inputs: Nodes whose values `make` takes.
        make: Turns `(*values, positions)` into the tensor, where `positions[i]` are the ones read along axis i (None:
            all).
        reads: The axes (from the end) of which `make` itself returns only the positions read; the others come whole.
    """

    kind: str
    node: fx.Node
    inputs: tuple[fx.Node, ...] = field(compare=False)
    make: Callable[..., Tensor] = field(compare=False)
    reads: tuple[int, ...] = field(default=(), compare=False)


Source: TypeAlias = "Constant | Runtime | fx.Node"


@dataclass(frozen=True)
class Operand:
    """A tensor and how each of its axes is read."""

    source: Source
    axes: tuple[Axis, ...]

    @property
    def indices(self) -> Indices:
        """All indices, in the row-major order of the tensor."""
        return tuple(index for axis in self.axes for index in axis.indices)

    @property
    def constant(self) -> bool:
        """Whether it is made of weights alone."""
        return isinstance(self.source, Constant)

    def substituted(self, old: Index, new: Indices) -> Operand:
        """The operand with one index written as several."""
        if old not in self.indices:
            return self
        return replace(self, axes=tuple(axis.substituted(old, new) for axis in self.axes))
