"""In what order to multiply a network of factors, and the multiplications themselves.

A contribution is one einsum of a value with its pending map. Multiplied in the wrong order it costs more than the
model; in the right order a few percent: tokens are contracted before channels, products of weights are made once, and
equal products (the same norm statistics read through the same windows, in every layer of a stage) are made once per
batch. The order is chosen by dynamic programming over subsets of factors, with the arithmetic and the memory traffic of
a nominal batch as the cost, and for products of weights alone the memory they occupy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import inf, prod
from random import Random
from typing import Any, TypeAlias

import torch
from torch import Tensor

from unweave.adjoint.pending import BATCH, Constant, Index, Indices, Operand

NOMINAL_BATCH = 8
TRAFFIC = 8.0
"""What moving one number costs, in multiplications."""
CONSTANT_LIMIT = 2**26
"""Entries of the largest product of weights that is kept."""
LARGE = 2**27
"""Entries of a product beyond which memory is what matters; each costs `OVERSIZE` multiplications."""
OVERSIZE = 1e3
EXACT = 7
"""The largest network whose order is found exactly."""
TRIES = 16
"""How many orders are tried for a larger one."""

Tree: TypeAlias = int | tuple[Any, Any]
"""A place, or a pair of trees."""


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

    def elements(self, batch: int = NOMINAL_BATCH) -> int:
        """The number of entries."""
        return prod(size or batch for size in self.sizes)


@lru_cache(2**16)
def _elements(indices: frozenset[Index]) -> int:
    return prod(NOMINAL_BATCH if index is BATCH else index.size for index in indices)


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
        if len(leaves) == 1:
            value, indices = leaves[0]
            kept = tuple(index for index in indices if index in out)
            if len(kept) < len(indices):
                one = self.leaf(Operand(_ONE, ()))
                return self.pair((value, indices), one, out)
            return value, indices
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


@dataclass(frozen=True)
class Network:
    """What an order of multiplication is chosen by: which factor has which indices.

    Attributes:
        sets: The indices of each factor.
        constants: Which factors are made of weights alone: multiplying two of them is done once, and costs the memory
            of the product.
        out: The indices of the result.
    """

    sets: tuple[frozenset[Index], ...]
    constants: tuple[bool, ...]
    out: frozenset[Index]

    def inside(self, mask: int) -> frozenset[Index]:
        """The indices of the product of a subset of the factors (a bit mask)."""
        own: set[Index] = set()
        rest: set[Index] = set(self.out)
        for place, indices in enumerate(self.sets):
            (own if mask >> place & 1 else rest).update(indices)
        return frozenset(own & rest)

    def fixed(self, mask: int) -> bool:
        """Whether a subset is made of weights alone."""
        return all(constant for place, constant in enumerate(self.constants) if mask >> place & 1)

    def step(self, left: frozenset[Index], right: frozenset[Index], result: frozenset[Index], fixed: bool) -> float:
        """What multiplying two subsets costs."""
        size = _elements(result)
        if fixed:
            return float(size) if size <= CONSTANT_LIMIT else inf
        traffic = _elements(left) + _elements(right) + size
        return _elements(left | right) + TRAFFIC * traffic + (OVERSIZE * size if size > LARGE else 0)


def best_order(sets: Sequence[frozenset[Index]], constants: Sequence[bool], out: frozenset[Index]) -> Tree:
    """The cheapest binary tree over the factors, as nested pairs of their places: exact for up to `EXACT` factors.

    Args:
        sets: The indices of each factor.
        constants: Which factors are made of weights alone.
        out: The indices of the result.
    """
    network = Network(tuple(sets), tuple(constants), out)
    if len(sets) <= EXACT:
        return _exact(network)[1]
    tries = [_greedy(network, seed) for seed in range(TRIES)]
    return min(tries, key=lambda found: found[0])[1]


def _exact(network: Network) -> tuple[float, Tree]:
    """Dynamic programming over subsets."""
    count = len(network.sets)
    full = (1 << count) - 1
    inside = [network.inside(mask) for mask in range(full + 1)]
    fixed = [network.fixed(mask) for mask in range(full + 1)]
    cost: list[float] = [inf] * (full + 1)
    tree: list[Tree] = [0] * (full + 1)
    for mask in range(1, full + 1):
        if mask & (mask - 1) == 0:
            cost[mask], tree[mask] = 0.0, mask.bit_length() - 1
            continue
        part = (mask - 1) & mask
        tree[mask] = (tree[mask & -mask], tree[mask & (mask - 1)])
        while part > mask ^ part:
            other = mask ^ part
            total = cost[part] + cost[other] + network.step(inside[part], inside[other], inside[mask], fixed[mask])
            if total < cost[mask]:
                cost[mask], tree[mask] = total, (tree[part], tree[other])
            part = (part - 1) & mask
    return cost[full], tree[full]


def _greedy(network: Network, seed: int) -> tuple[float, Tree]:
    """One order found by joining, again and again, the pair that shrinks most; the seeds weigh size against cost, and
    blur ties.
    """
    noise = Random(seed)
    weight = (0.0, 1e-3, 1e-2, 0.1)[seed % 4]
    parts: list[tuple[int, Tree]] = [(1 << place, place) for place in range(len(network.sets))]
    inside = {mask: network.inside(mask) for mask, _ in parts}
    scores: dict[tuple[int, int], float] = {}
    total = 0.0

    def score(left: int, right: int) -> float:
        if (left, right) not in scores:
            joined = inside.setdefault(left | right, network.inside(left | right))
            shrinks = _elements(joined) - _elements(inside[left]) - _elements(inside[right])
            cost = network.step(inside[left], inside[right], joined, network.fixed(left | right))
            apart = 0 if inside[left] & inside[right] else 1e9
            blur = 1.0 if seed < 4 else noise.uniform(0.3, 3.0)
            scores[left, right] = shrinks * blur + weight * min(cost, 1e30) + apart
        return scores[left, right]

    while len(parts) > EXACT:
        pairs = [(score(a, b), a, b) for (a, _), (b, _) in combinations(parts, 2)]
        _, left, right = min(pairs)
        trees = dict(parts)
        joined = left | right
        total += network.step(inside[left], inside[right], inside[joined], network.fixed(joined))
        parts = [part for part in parts if part[0] not in (left, right)] + [(joined, (trees[left], trees[right]))]
    rest = Network(
        tuple(inside[mask] for mask, _ in parts), tuple(network.fixed(mask) for mask, _ in parts), network.out
    )
    cost, order = _exact(rest)
    return total + cost, _grafted(order, [tree for _, tree in parts])


def _grafted(order: Tree, trees: Sequence[Tree]) -> Tree:
    return trees[order] if isinstance(order, int) else (_grafted(order[0], trees), _grafted(order[1], trees))


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
