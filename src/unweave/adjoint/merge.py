"""Summands of a pending map that differ only in what they read become one.

Patch merging by strided slices reads an image as four sub-grids, a distilled model reads two tokens: the pending map
is then a sum of terms with the same factors, read at different positions and with different slices of a weight.
Stacking what differs along a new index gives one term, which reads everything once; without it the summands would
multiply from stage to stage.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unweave.adjoint.operand import Axis, Constant, Index, Operand, reading
from unweave.adjoint.term import Term


def merged(terms: Sequence[Term]) -> tuple[Term, ...]:
    """The same sum with as few terms as can be told from their structure."""
    terms = list(terms)
    if len(terms) < 2:
        return tuple(terms)
    for place in (None, *range(len(terms[0].axes))):
        groups: dict[object, list[Term]] = {}
        for term in terms:
            groups.setdefault(_signature(term, place), []).append(term)
        joined: list[Term] = []
        for group in groups.values():
            together = _joined(sorted(group, key=lambda term: _first(term, place)), place) if len(group) > 1 else None
            joined += group if together is None else [together]
        terms = joined
    return tuple(terms)


def _first(term: Term, place: int | None) -> int:
    return 0 if place is None else (term.axes[place].take or (0,))[0]


def _signature(term: Term, place: int | None) -> object:
    """What terms must share to be stacked along axis `place`: factors, indices, and the positions read on all other
    axes.
    """
    names: dict[Index, int] = {}

    def named(axis: Axis) -> tuple[object, ...]:
        return tuple((names.setdefault(index, len(names)), index.size) for index in axis.indices)

    axes = tuple(
        (named(axis), None if own == place else (axis.take, axis.length)) for own, axis in enumerate(term.axes)
    )
    factors = tuple(
        (
            "constant" if factor.constant else factor.source,
            tuple((named(axis), axis.extent.size) for axis in factor.axes),
        )
        for factor in term.factors
    )
    rest = (named(Axis(term.kept)), named(Axis(term.out)), frozenset(names.get(index, -1) for index in term.channel))
    return axes, factors, rest, None if place is None else term.axes[place].extent


def _joined(terms: Sequence[Term], place: int | None) -> Term | None:
    """The terms as one, or None where they differ in more than can be stacked."""
    first = terms[0]
    index = Index(len(terms))
    factors: list[Operand] = []
    stacked = 0
    for operands in zip(*(term.factors for term in terms), strict=True):
        if _alike(operands):
            factors.append(operands[0])
        elif operands[0].constant:
            factors.append(_stack(operands, index))
            stacked += 1
        else:
            axes = _stacked_axes([operand.axes for operand in operands], index)
            if axes is None:
                return None
            factors.append(replace(operands[0], axes=axes))
            stacked += 2
    if len({term.scale for term in terms}) > 1:
        scales = torch.tensor([term.scale / first.scale for term in terms], dtype=torch.float64)
        factors.append(
            Operand(Constant((len(terms),), (), lambda: scales, ("scales", tuple(scales.tolist()))), (Axis((index,)),))
        )
        stacked += 2
    if place is None:
        if stacked == 0:
            return replace(first, scale=first.scale * len(terms), anchor=None)
        if stacked == 1:
            factors = [_summed(factor, index) for factor in factors]
        return replace(first, factors=tuple(factors), anchor=None)
    axis = _stacked_axis([term.axes[place] for term in terms], index)
    if axis is None:
        return None
    axes = (*first.axes[:place], axis, *first.axes[place + 1 :])
    return replace(first, axes=axes, factors=tuple(factors), anchor=None)


def _alike(operands: Sequence[Operand]) -> bool:
    first = operands[0]
    return all(
        operand.source == first.source and [axis.take for axis in operand.axes] == [axis.take for axis in first.axes]
        for operand in operands
    )


def _stacked_axis(axes: Sequence[Axis], index: Index) -> Axis | None:
    """One axis that reads what all of them read, the new index running fastest; None where two read the same
    position.
    """
    if any(axis.extent.batch for axis in axes):
        return None
    places = [place for row in zip(*(axis.positions().tolist() for axis in axes), strict=True) for place in row]
    if len(set(places)) != len(places):
        return None
    return reading((*axes[0].indices, index), places, axes[0].extent.size)


def _stacked_axes(many: Sequence[tuple[Axis, ...]], index: Index) -> tuple[Axis, ...] | None:
    differing = [place for place, axes in enumerate(zip(*many, strict=True)) if len({axis.take for axis in axes}) > 1]
    if len(differing) != 1:
        return None
    axis = _stacked_axis([axes[differing[0]] for axes in many], index)
    return None if axis is None else (*many[0][: differing[0]], axis, *many[0][differing[0] + 1 :])


def _stack(operands: Sequence[Operand], index: Index) -> Operand:
    """Constants side by side along a new last axis, each read at its own positions."""
    takes = [[axis.take for axis in operand.axes] for operand in operands]

    def make(*values: Tensor) -> Tensor:
        return torch.stack([read_positions(value, take) for value, take in zip(values, takes, strict=True)], -1)

    shape = tuple(len(axis.positions()) for axis in operands[0].axes)
    sources = tuple(operand.source for operand in operands)
    key = ("stack", sources, tuple(tuple(take) for take in takes))
    constant = Constant((*shape, len(operands)), sources, make, key)  # type: ignore[arg-type]
    return Operand(constant, (*(Axis(axis.indices) for axis in operands[0].axes), Axis((index,))))


def _summed(operand: Operand, index: Index) -> Operand:
    """A stacked constant summed over the new index, which nothing else carries."""
    if index not in operand.indices:
        return operand
    inner = operand.source
    assert isinstance(inner, Constant)
    constant = Constant(inner.shape[:-1], (inner,), lambda value: value.sum(-1), ("summed", inner))
    return Operand(constant, operand.axes[:-1])


def read_positions(value: Tensor, takes: Sequence[Sequence[int] | None]) -> Tensor:
    """A tensor read at these positions of each axis (None: all)."""
    for dim, take in enumerate(takes):
        if take is None:
            continue
        step = take[1] - take[0] if len(take) > 1 else 1
        if step > 0 and all(after - before == step for before, after in itertools.pairwise(take)):
            span = (slice(None),) * dim + (slice(take[0], take[-1] + 1, step),)
            value = value[span]
        else:
            value = value.index_select(dim, torch.tensor(take, device=value.device))
    return value
