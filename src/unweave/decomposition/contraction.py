"""Products of factors, each made once, and the multiplications themselves.

A contribution is one einsum of a value with its pending map, multiplied in the order that `order.py` chooses. Equal
products (the same norm statistics read through the same windows, in every layer of a stage) are made once per batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from unweave.adjoint.merge import read_positions
from unweave.adjoint.operand import BATCH, Constant, Index, Indices, Operand
from unweave.decomposition.order import NOMINAL_BATCH, Tree, best_order


@dataclass(frozen=True)
class Pairing:
    """How two tensors are multiplied: one batched matrix product after bringing both to three axes.

    Attributes:
        first_sum, second_sum: Axes of either that nothing else has; summed beforehand.
        first, second: The order of the remaining axes: (shared and kept, own, summed) and (shared and kept, summed,
            own).
        shared, left, summed, right: How many axes each group has.
    """

    first_sum: tuple[int, ...]
    second_sum: tuple[int, ...]
    first: tuple[int, ...]
    second: tuple[int, ...]
    shared: int
    left: int
    summed: int
    right: int


@dataclass(eq=False)
class Value:
    """One intermediate tensor: an operand as it is read, or a product of two.

    Attributes:
        number: Its place; inputs come before.
        sizes: The length of each axis; 0 stands for the number of images.
        constant: Whether it is made of weights alone.
        operand: What is read, for a leaf.
        inputs: The two factors, for a product.
        pairing: How they are multiplied.
    """

    number: int
    sizes: tuple[int, ...]
    constant: bool
    operand: Operand | None = None
    inputs: tuple[Value, ...] = ()
    pairing: Pairing | None = None

    @property
    def shape(self) -> list[int]:
        """The lengths as `reshape` takes them: -1 for the number of images."""
        return [size or -1 for size in self.sizes]

    def elements(self, batch: int = NOMINAL_BATCH) -> int:
        """The number of entries."""
        return prod(size or batch for size in self.sizes)


@dataclass(frozen=True)
class Emission:
    """Where a value goes in the result.

    Attributes:
        value: The contraction's result.
        order: Its axes in the order (batch, kept, out); -1 for one along which it is the same everywhere.
        sizes: The length of each of these; -1 for the batch.
        columns: The result's columns.
        chosen: Which of the value's columns those are; None for all.
        scale: A factor.
        count: How many columns the value has.
    """

    value: Value
    order: tuple[int, ...]
    sizes: tuple[int, ...]
    columns: tuple[int, ...]
    chosen: tuple[int, ...] | None
    scale: float
    count: int


class Contractions:
    """Builds products, each only once.

    Attributes:
        values: Every intermediate tensor, inputs before what is made of them.
    """

    def __init__(self) -> None:
        self.values: list[Value] = []
        self._known: dict[object, Value] = {}
        self._orders: dict[object, Tree] = {}

    def leaf(self, operand: Operand) -> tuple[Value, Indices]:
        """An operand as a tensor with one axis for each atomic index."""
        indices = tuple(dict.fromkeys(operand.indices))
        names = {index: (place, index.size) for place, index in enumerate(indices)}
        layout = tuple((tuple(names[index] for index in axis.indices), axis.take) for axis in operand.axes)
        sizes = tuple(index.size for index in indices)
        return self._value((operand.source, layout), sizes, operand.constant, operand), indices

    def contract(self, operands: Sequence[Operand], out: Indices) -> tuple[Value, Indices]:
        """The sum over all indices but `out` of the product of the operands.

        Returns:
            The value and the order of its axes (those of `out` that any operand has, in some order).
        """
        leaves = [self.leaf(operand) for operand in operands]
        if len(leaves) == 1 and not set(leaves[0][1]) <= set(out):
            leaves.append(self.leaf(Operand(_ONE, ())))  # a product of it alone, so that something is summed
        return self._build(self._order(leaves, out), leaves, out)

    def pair(self, first: tuple[Value, Indices], second: tuple[Value, Indices], out: Indices) -> tuple[Value, Indices]:
        """The product of two values, summed over what is not in `out`."""
        (a, la), (b, lb) = first, second
        if b.constant is False and a.constant:
            (a, la), (b, lb) = (b, lb), (a, la)
        lead, other = (la, lb) if a.elements() >= b.elements() else (lb, la)
        order = [*lead, *(index for index in other if index not in lead)]
        shared = [index for index in order if index in la and index in lb and index in out]
        summed = [index for index in order if index in la and index in lb and index not in out]
        left = [index for index in la if index not in lb and index in out]
        right = [index for index in lb if index not in la and index in out]
        pairing = Pairing(
            tuple(place for place, index in enumerate(la) if index not in lb and index not in out),
            tuple(place for place, index in enumerate(lb) if index not in la and index not in out),
            tuple(_place(la, index, lb, out) for index in (*shared, *left, *summed)),
            tuple(_place(lb, index, la, out) for index in (*shared, *summed, *right)),
            len(shared),
            len(left),
            len(summed),
            len(right),
        )
        indices = (*shared, *left, *right)
        sizes = tuple(index.size for index in indices)
        value = self._value((a, b, pairing), sizes, a.constant and b.constant, None, (a, b), pairing)
        return value, indices

    def _value(
        self,
        key: object,
        sizes: tuple[int, ...],
        constant: bool,
        operand: Operand | None = None,
        inputs: tuple[Value, ...] = (),
        pairing: Pairing | None = None,
    ) -> Value:
        if key not in self._known:
            self._known[key] = Value(len(self.values), sizes, constant, operand, inputs, pairing)
            self.values.append(self._known[key])
        return self._known[key]

    def _order(self, leaves: Sequence[tuple[Value, Indices]], out: Indices) -> Tree:
        names: dict[Index, int] = {}
        key = (
            tuple(
                (tuple((names.setdefault(i, len(names)), i.size) for i in own), value.constant) for value, own in leaves
            ),
            tuple(names.get(index, -1) for index in out),
        )
        if key not in self._orders:
            self._orders[key] = best_order(
                [frozenset(own) for _, own in leaves], [v.constant for v, _ in leaves], frozenset(out)
            )
        return self._orders[key]

    def _build(self, order: Tree, leaves: Sequence[tuple[Value, Indices]], out: Indices) -> tuple[Value, Indices]:
        def build(tree: Tree, outside: frozenset[Index]) -> tuple[Value, Indices]:
            if isinstance(tree, int):
                return leaves[tree]
            left, right = (frozenset(index for leaf in _leaves(part) for index in leaves[leaf][1]) for part in tree)
            return self.pair(build(tree[0], outside | right), build(tree[1], outside | left), tuple(outside))

        return build(order, frozenset(out))


def _leaves(tree: Tree) -> list[int]:
    return [tree] if isinstance(tree, int) else _leaves(tree[0]) + _leaves(tree[1])


_ONE = Constant((), (), lambda: torch.ones(()), "one")


def _place(own: Indices, index: Index, other: Indices, out: Indices) -> int:
    """The axis of an index once the axes that only this operand has are summed away."""
    kept = [one for one in own if one in other or one in out]
    return kept.index(index)


def laid_out(tensor: Tensor, operand: Operand, skip: Sequence[int] = ()) -> Tensor:
    """A tensor read as an operand says, with one axis for each atomic index; the axes `skip` are already so read."""
    takes = [None if place in skip else axis.take for place, axis in enumerate(operand.axes)]
    tensor = read_positions(tensor, takes)
    images = 0
    shape: list[int] = []
    for place, axis in enumerate(operand.axes):
        if BATCH in axis.indices:
            rest = 1
            for index in axis.indices:
                rest *= index.size if index is not BATCH else 1
            images = tensor.shape[place] // rest
        shape += [images if index is BATCH else index.size for index in axis.indices]
    tensor = tensor.reshape(shape)
    indices = operand.indices
    if len(set(indices)) < len(indices):  # an index that runs along two axes at once: their diagonal
        apart = tuple(dict.fromkeys(indices))
        tensor = torch.einsum(tensor, [apart.index(index) for index in indices], list(range(len(apart))))
    return tensor


def arranged(tensor: Tensor, pairing: Pairing, first: bool) -> Tensor:
    """A factor brought to three axes: (shared, own, summed) for the first, (shared, summed, own) for the second."""
    own_sum, order = (pairing.first_sum, pairing.first) if first else (pairing.second_sum, pairing.second)
    if own_sum:
        tensor = tensor.sum(own_sum)
    tensor = tensor.permute(order)
    cut = pairing.shared + (pairing.left if first else pairing.summed)
    shape = tensor.shape
    return tensor.reshape(prod(shape[: pairing.shared]), prod(shape[pairing.shared : cut]), prod(shape[cut:]))


def multiplied(first: Tensor, second: Tensor, pairing: Pairing) -> Tensor:
    """The product of two arranged factors, `[shared, left, right]`."""
    if not pairing.summed:
        return first * second  # [shared, left, 1] * [shared, 1, right]
    if first.shape[0] == 1:
        return (first[0] @ second[0])[None]
    return torch.bmm(first, second)
