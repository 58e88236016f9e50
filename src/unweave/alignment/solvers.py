"""Two solvers of CompAlign's one objective.

`adam` follows the published recipe. `ranged`, the default, solves the same problem for what each map does on the range
of its component (`unweave.alignment.ranges`), which is all that images can tell of it, and is several times smaller.
First comes one isometry for all components (orthogonal Procrustes on the representation), then one for each on what the
others leave (block by block), then L-BFGS on the objective itself. It looks at all images in every step, so it needs
few.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unweave.alignment.objective import Form, cosine_loss, penalties
from unweave.alignment.pairs import Pairs
from unweave.alignment.ranges import Ranges, completed, least, ranges
from unweave.alignment.state import Keep, OnPoint, Point, fresh
from unweave.errors import ArgumentError

Solver = Literal["ranged", "adam"]

_AT_ONCE = 8192
"""Representations in memory at a time."""


@dataclass(frozen=True)
class Recipe:
    """How to solve.

    Attributes:
        solver: `ranged`, or `adam` as published.
        weight: The weight of the penalty.
        form: The form of the penalty.
        held_out: The share of images that are held out; which ones follows from their ids and the seed.
        seed: The seed of what is drawn by chance: held-out images, shuffled targets, the order of images (`adam`).
        rounds: The most rounds, of ten steps each (`ranged`).
        sweeps: How often all components are fitted in turn, each to what the others leave (`ranged`).
        epochs: The most passes over all images (`adam`).
        batch, rate, decay: Images in a step, learning rate, weight decay (`adam`).
        patience: Rounds or epochs without gain on held-out images after which to stop.
        memory: Bytes that compressed contributions may take in memory; beyond that they are read again (`ranged`).
        random_images: How many images the same model with random weights is aligned on, as a control; 0 for none.

    Raises:
        ArgumentError: A number is out of range.
    """

    solver: Solver = "ranged"
    weight: float = 1.0
    form: Form = "mean-squared"
    held_out: float = 0.1
    seed: int = 0
    rounds: int = 12
    sweeps: int = 2
    epochs: int = 2
    batch: int = 32
    rate: float = 3e-4
    decay: float = 1e-6
    patience: int = 2
    memory: int = 2 * 2**30
    random_images: int = 500

    def __post_init__(self) -> None:
        if self.solver not in ("ranged", "adam"):
            raise ArgumentError(f"There is no solver {self.solver!r}.", cure="use ranged or adam")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ArgumentError(f"weight must be a number that is not negative, got {self.weight}.", cure="use 1.0")
        if not 0 < self.held_out < 1:
            raise ArgumentError(f"held_out must lie between 0 and 1, got {self.held_out}.", cure="use 0.1")


@dataclass(frozen=True, eq=False)
class Solution:
    """Maps and what they cost.

    Attributes:
        maps: `[component, width, dim]`.
        bias: `[dim]`, shared by all components.
        path: Where the solver stood from time to time; the maps are those of the best point.
    """

    maps: Float[Tensor, "component width dim"]
    bias: Float[Tensor, " dim"]
    path: list[Point]


def isometry(width: int, dim: int) -> Float[Tensor, "width dim"]:
    """The identity, as far as there is one."""
    return torch.eye(width, dim)


def nearest(matrix: Float[Tensor, "width dim"]) -> Float[Tensor, "width dim"]:
    """The isometry nearest to a matrix (orthogonal Procrustes): its singular values made one."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right


def shared(train: Pairs) -> Float[Tensor, "width dim"]:
    """The one isometry that, used for all components, brings the representation nearest to the target.

    It needs the representations alone, which a store has beside the contributions.
    """
    total = torch.zeros(train.view.dim, train.targets.shape[1], dtype=torch.float64)
    for z, target in _representations(train):
        total += z.T.double() @ target.double()
    return nearest(total).float()


def _representations(pairs: Pairs) -> Iterator[tuple[Tensor, Tensor]]:
    start = 0
    for part in pairs.view.batches(_AT_ONCE):
        yield part.representation, pairs.targets[start : start + len(part)]
        start += len(part)


def _shared_loss(pairs: Pairs, map_: Float[Tensor, "width dim"]) -> float:
    """The first term with one map for all components."""
    total = sum(len(target) * float(cosine_loss(z @ map_, target)) for z, target in _representations(pairs))
    return total / len(pairs)


# -- on the range -----------------------------------------------------------------------------------------------------


def ranges_of(train: Pairs) -> Ranges:
    """The ranges of the components, from the images to fit."""
    stored = train.view.source.dtype
    return ranges((contributions for contributions, _ in train.batches()), stored)


class _Small:
    """The problem on the ranges: coordinates of the contributions, and maps of those."""

    def __init__(self, pairs: Pairs, found: Ranges, memory: int) -> None:
        self.pairs, self.found = pairs, found
        size = len(pairs) * sum(found.ranks) * 4
        self._kept = list(self._read()) if size <= memory else None

    def _read(self) -> Iterator[tuple[Tensor, Tensor]]:
        for contributions, target in self.pairs.batches():
            yield self.found.within(contributions), target

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Coordinates and targets, from memory where they fit."""
        yield from self._kept if self._kept is not None else self._read()

    def first(self, memory: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The first batches, as many as take no more than so many bytes, but one at least."""
        left = memory
        for inner, target in self.batches():
            yield inner, target
            left -= inner.numel() * 4
            if left <= 0:
                return

    def loss(self, maps: Tensor, bias: Tensor) -> float:
        """The first term."""
        total = 0.0
        for inner, target in self.batches():
            total += len(target) * float(cosine_loss(inner @ maps + bias, target))
        return total / len(self.pairs)

    def slope(self, maps: Tensor, bias: Tensor) -> tuple[float, Tensor, Tensor]:
        """The first term and its gradients, in one pass."""
        total, by_maps, by_bias = 0.0, torch.zeros_like(maps), torch.zeros_like(bias)
        for inner, target in self.batches():
            aligned = (inner @ maps + bias).requires_grad_()
            with torch.enable_grad():
                loss = cosine_loss(aligned, target) * (len(target) / len(self.pairs))
            (own,) = torch.autograd.grad(loss, aligned)
            total += loss.item()
            by_maps += inner.T @ own
            by_bias += own.sum(0)
        return total, by_maps, by_bias


def ranged(
    train: Pairs,
    held_out: Pairs,
    recipe: Recipe,
    on_point: OnPoint = lambda point: None,
    keep: Keep = Keep(),  # noqa: B008
    found: Ranges | None = None,
) -> Solution:
    """The default solver.

    Memory: `component * width^2` doubles once, and the compressed contributions up to `recipe.memory`.

    Args:
        train: Images to fit.
        held_out: Images to stop by.
        recipe: How.
        on_point: Called with every point that is reached.
        keep: Where the state is kept after every point; a run that was interrupted goes on from there.
        found: The ranges of the components, where they are known.
    """
    began, state = time.perf_counter(), keep.load()
    one = shared(train)
    first = (_shared_loss(train, one), _shared_loss(held_out, one)) if state is None else (0.0, 0.0)
    since = time.perf_counter() - began
    found = ranges_of(train) if found is None else found
    small, other = _Small(train, found, recipe.memory), _Small(held_out, found, recipe.memory)
    width = train.view.dim
    if state is None:
        state = fresh(found.restricted(one for _ in found.bases))
        on_point(state.reached("one map", *first, 0.0, seconds=since))
        keep.save(state)
    state.began = began
    steps = [f"blocks {number + 1}" for number in range(recipe.sweeps)]
    steps += [f"descent {number + 1}" for number in range(recipe.rounds)]
    for step in steps[state.done - 1 :]:
        if state.idle >= recipe.patience:
            break
        maps, bias = state.tensors["maps"], state.tensors["bias"]
        if step.startswith("blocks"):
            _sweep(small, found, maps, recipe.memory)
        else:
            maps, bias = _descended(small, found, width, maps, bias, recipe)
        state.tensors |= {"maps": maps, "bias": bias}
        with torch.no_grad():
            cost = float(_penalty(maps, found, width, recipe))
        on_point(state.reached(step, small.loss(maps, bias), other.loss(maps, bias), cost))
        if step.startswith("blocks"):  # these are few, and lead to where the descent begins
            state.idle = 0
        keep.save(state)
    maps, bias = state.best
    whole = [completed(basis, own) for basis, own in zip(found.bases, maps.split(found.ranks), strict=True)]
    return Solution(torch.stack(whole), bias, state.path)


def _penalty(maps: Tensor, found: Ranges, width: int, recipe: Recipe) -> Tensor:
    """The second term, for the best maps that act like these on the ranges."""
    side = min(width, maps.shape[1])
    total, each = maps.new_zeros(()), maps.split(found.ranks)
    for places in found.alike:
        squared = least(torch.stack([each[place] for place in places]), width)
        total = total + (squared / side**2 if recipe.form == "mean-squared" else (squared + 1e-12).sqrt()).sum()
    return recipe.weight * total


def _sweep(small: _Small, found: Ranges, maps: Tensor, memory: int) -> None:
    """Fit each component's isometry, in turn, to what the others leave of the targets (in place).

    The targets are given the lengths of the present sums, about which the cosine says nothing. Of images that do not
    fit into the memory the first ones serve.
    """
    inner, target = (torch.cat(parts) for parts in zip(*small.first(memory), strict=True))
    total = inner @ maps
    goal = target * total.norm(dim=-1, keepdim=True)
    for start, end in pairwise(np.cumsum([0, *found.ranks]).tolist()):
        if start == end:  # it writes nothing
            continue
        own, old = inner[:, start:end], maps[start:end].clone()
        maps[start:end] = nearest(own.T @ (goal - total + own @ old))
        total += own @ (maps[start:end] - old)


def _descended(
    small: _Small, found: Ranges, width: int, maps: Tensor, bias: Tensor, recipe: Recipe
) -> tuple[Tensor, Tensor]:
    """Ten steps of L-BFGS, which begins anew, so that a run that stopped between two rounds goes on as it was."""
    maps, bias = maps.clone().requires_grad_(), bias.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([maps, bias], max_iter=10, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        cost = _penalty(maps, found, width, recipe)
        cost.backward()
        with torch.no_grad():
            loss, by_maps, by_bias = small.slope(maps.detach(), bias.detach())
        assert maps.grad is not None
        maps.grad += by_maps
        bias.grad = by_bias
        return cost.detach() + loss

    optimiser.step(closure)
    return maps.detach(), bias.detach()


# -- as published -----------------------------------------------------------------------------------------------------


def adam(
    train: Pairs,
    held_out: Pairs,
    recipe: Recipe,
    on_point: OnPoint = lambda point: None,
    keep: Keep = Keep(),  # noqa: B008
) -> Solution:
    """The published recipe: Adam on small batches of images, from the identity, for a few epochs.

    Args: as for `ranged`.
    """
    components, width = len(train.view.components), train.view.dim
    state = keep.load() or fresh(isometry(width, train.targets.shape[1]).expand(components, -1, -1).clone())
    maps, bias = (state.tensors[name].clone().requires_grad_() for name in ("maps", "bias"))
    optimiser = torch.optim.Adam([maps, bias], lr=recipe.rate, weight_decay=recipe.decay)
    for place, own in enumerate((maps, bias)):
        names = [name for name in state.tensors if name.startswith(f"{place} ")]
        optimiser.state[own].update({name.partition(" ")[2]: state.tensors[name] for name in names})
    for epoch in range(state.done, recipe.epochs):
        if state.idle >= recipe.patience:
            break
        order = np.random.default_rng((recipe.seed, epoch)).permutation(len(train))
        for start in range(0, len(order), recipe.batch):
            places = order[start : start + recipe.batch]
            aligned = torch.einsum("ncw,cwd->nd", train.view.rows(places).values(), maps) + bias
            loss = cosine_loss(aligned, train.targets[torch.from_numpy(places)])
            loss = loss + recipe.weight * penalties(maps, recipe.form).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        state.tensors |= {"maps": maps.detach().clone(), "bias": bias.detach().clone()}
        for place, own in enumerate((maps, bias)):
            state.tensors |= {f"{place} {name}": value for name, value in optimiser.state[own].items()}
        with torch.no_grad():
            cost = float(recipe.weight * penalties(maps, recipe.form).sum())
            ours, theirs = (_loss(pairs, maps, bias) for pairs in (train, held_out))
        on_point(state.reached(f"epoch {epoch + 1}", ours, theirs, cost))
        keep.save(state)
    return Solution(*state.best, state.path)


def _loss(pairs: Pairs, maps: Tensor, bias: Tensor) -> float:
    total = 0.0
    for contributions, target in pairs.batches():
        aligned = torch.einsum("ncw,cwd->nd", contributions, maps) + bias
        total += len(target) * float(cosine_loss(aligned, target))
    return total / len(pairs)


SOLVERS: dict[Solver, Callable[[Pairs, Pairs, Recipe, OnPoint, Keep], Solution]] = {"ranged": ranged, "adam": adam}
