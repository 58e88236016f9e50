"""In what order to multiply a network of factors.

A contribution is one einsum of a value with its pending map. Multiplied in the wrong order it costs more than the
model; in the right order a few percent: tokens are contracted before channels, products of weights are made once. The
order is chosen by dynamic programming over subsets of factors, with the arithmetic and the memory traffic of a nominal
batch as the cost, and for products of weights alone the memory they occupy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import inf, prod
from random import Random
from typing import Any, TypeAlias

from unweave.adjoint.pending import BATCH, Index

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


@lru_cache(2**16)
def _elements(indices: frozenset[Index]) -> int:
    return prod(NOMINAL_BATCH if index is BATCH else index.size for index in indices)


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
