"""In what order to multiply a network of factors.

A contribution is one einsum of a value with its pending map. Multiplied in the wrong order it costs more than the
model; in the right order a few percent: tokens are contracted before channels, products of weights are made once. The
order is chosen by dynamic programming over subsets of factors, with the arithmetic and the memory traffic of a nominal
batch as the cost, and for products of weights alone the memory they occupy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heapify, heappop, heappush
from itertools import chain, combinations
from math import inf
from random import Random
from typing import Any, TypeAlias

from unweave.adjoint.operand import BATCH, Index

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
class Network:
    """What an order of multiplication is chosen by: which factor has which indices. A set of indices, like a subset of
    the factors, is a bit mask.

    Attributes:
        sets: The indices of each factor.
        constants: Which factors are made of weights alone: multiplying two of them is done once, and costs the memory
            of the product.
        out: The indices of the result.
        sizes: The length of each index.
    """

    sets: tuple[int, ...]
    constants: tuple[bool, ...]
    out: int
    sizes: tuple[int, ...]
    _elements: dict[int, int] = field(default_factory=lambda: {0: 1}, init=False, repr=False, compare=False)
    _inside: dict[int, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, sets: Sequence[Iterable[Index]], constants: Sequence[bool], out: Iterable[Index]) -> Network:
        """The network of factors with these indices."""
        bits = {index: 1 << place for place, index in enumerate(dict.fromkeys(chain(*sets, out)))}
        sizes = tuple(NOMINAL_BATCH if index is BATCH else index.size for index in bits)
        *factors, result = (sum(bits[index] for index in set(indices)) for indices in (*sets, out))
        return cls(tuple(factors), tuple(constants), result, sizes)

    def elements(self, indices: int) -> int:
        """The number of entries of a tensor with these indices."""
        entries = self._elements.get(indices)
        if entries is None:
            lowest = indices & -indices
            entries = self.sizes[lowest.bit_length() - 1] * self.elements(indices ^ lowest)
            self._elements[indices] = entries
        return entries

    def inside(self, mask: int) -> int:
        """The indices of the product of a subset of the factors: those that the rest, or the result, has too."""
        indices = self._inside.get(mask)
        if indices is None:
            product, rest = 0, self.out
            for place, factor in enumerate(self.sets):
                if mask >> place & 1:
                    product |= factor
                else:
                    rest |= factor
            indices = self._inside[mask] = product & rest
        return indices

    @cached_property
    def _varying(self) -> int:
        return sum(1 << place for place, constant in enumerate(self.constants) if not constant)

    def fixed(self, mask: int) -> bool:
        """Whether a subset is made of weights alone."""
        return not mask & self._varying

    def step(self, left: int, right: int, result: int, fixed: bool) -> float:
        """What multiplying two tensors costs."""
        return self.price(left | right, self.elements(left) + self.elements(right), self.elements(result), fixed)

    def price(self, indices: int, read: int, made: int, fixed: bool) -> float:
        """What a multiplication over these indices costs that reads and makes so many numbers."""
        if fixed:
            return float(made) if made <= CONSTANT_LIMIT else inf
        large = OVERSIZE * made if made > LARGE else 0
        return self.elements(indices) + TRAFFIC * (read + made) + large


def best_order(sets: Sequence[frozenset[Index]], constants: Sequence[bool], out: frozenset[Index]) -> Tree:
    """The cheapest binary tree over the factors, as nested pairs of their places: exact for up to `EXACT` factors.

    Args:
        sets: The indices of each factor.
        constants: Which factors are made of weights alone.
        out: The indices of the result.
    """
    network = Network.of(sets, constants, out)
    if len(sets) <= EXACT:
        return _exact(network)[1]
    return min((_greedy(network, seed) for seed in range(TRIES)), key=lambda found: found[0])[1]


def _exact(network: Network) -> tuple[float, Tree]:
    """Dynamic programming over subsets."""
    count = len(network.sets)
    full = (1 << count) - 1
    union = [0] * (full + 1)
    for mask in range(1, full + 1):
        union[mask] = union[mask & (mask - 1)] | network.sets[(mask & -mask).bit_length() - 1]
    inside = [union[mask] & (union[full ^ mask] | network.out) for mask in range(full + 1)]
    entries = [network.elements(indices) for indices in inside]
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
            below = cost[part] + cost[other]
            if below < cost[mask]:
                read = entries[part] + entries[other]
                total = below + network.price(inside[part] | inside[other], read, entries[mask], fixed[mask])
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
    trees: dict[int, Tree] = {1 << place: place for place in range(len(network.sets))}
    total = 0.0

    def cost(left: int, right: int) -> float:
        joined = left | right
        return network.step(network.inside(left), network.inside(right), network.inside(joined), network.fixed(joined))

    def candidate(left: int, right: int) -> tuple[float, int, int]:
        apart = network.inside(left), network.inside(right)
        shrinks = network.elements(network.inside(left | right)) - sum(map(network.elements, apart))
        blur = 1.0 if seed < 4 else noise.uniform(0.3, 3.0)
        unrelated = 0 if apart[0] & apart[1] else 1e9
        return shrinks * blur + weight * min(cost(left, right), 1e30) + unrelated, left, right

    pairs = [candidate(left, right) for left, right in combinations(trees, 2)]
    heapify(pairs)
    while len(trees) > EXACT:
        _, left, right = heappop(pairs)
        if left in trees and right in trees:
            total += cost(left, right)
            pair = trees.pop(left), trees.pop(right)
            for other in trees:
                heappush(pairs, candidate(other, left | right))
            trees[left | right] = pair
    rest = Network(tuple(map(network.inside, trees)), tuple(map(network.fixed, trees)), network.out, network.sizes)
    remaining, order = _exact(rest)
    return total + remaining, _grafted(order, list(trees.values()))


def _grafted(order: Tree, trees: Sequence[Tree]) -> Tree:
    return trees[order] if isinstance(order, int) else (_grafted(order[0], trees), _grafted(order[1], trees))
