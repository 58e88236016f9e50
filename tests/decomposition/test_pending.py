"""The algebra of pending maps against the dense map that they stand for."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import count
from math import prod

import pytest
import torch
from torch import Tensor

from unweave.adjoint.merge import merged
from unweave.adjoint.operand import BATCH, Axis, Constant, Index, Irregular, Operand, fresh, reading
from unweave.adjoint.term import Term
from unweave.graph.graph import Extent

IMAGES = 2
SIZES = (1, 2, 3, 4, 6)


def size_of(index: Index) -> int:
    return IMAGES if index is BATCH else index.size


def value(constant: Constant) -> Tensor:
    return constant.make(*(value(own) for own in constant.inputs)).double()


def dense(term: Term) -> Tensor:
    """The map written out, `[*axes, *out]`: every factor, and the positions read along every axis, in one sum."""
    numbers: dict[Index, int] = {}
    serial = count()

    def number(index: Index) -> int:
        if index not in numbers:
            numbers[index] = next(serial)
        return numbers[index]

    given: list[object] = [torch.tensor(term.scale).double(), []]
    for factor in term.factors:
        tensor = value(factor.source)
        for dim, axis in enumerate(factor.axes):
            if axis.take is not None:
                tensor = tensor.index_select(dim, torch.tensor(axis.take))
        indices = [index for axis in factor.axes for index in axis.indices]
        given += [tensor.reshape([size_of(index) for index in indices]), [number(index) for index in indices]]
    ends = []
    for axis in term.axes:
        sizes = [size_of(index) for index in axis.indices]
        length = axis.length if axis.take is not None else prod(sizes)
        one_hot = torch.zeros(prod(sizes), length).double()
        places = axis.take if axis.take is not None else range(length)
        one_hot[torch.arange(prod(sizes)), torch.tensor(list(places))] = 1
        ends.append(next(serial))
        given += [one_hot.reshape(*sizes, length), [*(number(index) for index in axis.indices), ends[-1]]]
    for index in term.out:
        given += [torch.ones(size_of(index)).double(), [number(index)]]
    return torch.einsum(*given, [*ends, *(number(index) for index in term.out)])


def constant(*sizes: int) -> Constant:
    tensor = torch.randn(*sizes).double()
    return Constant(tuple(sizes), (), lambda: tensor)


def random_term(rng: random.Random, batch: bool = False) -> Term:
    """Two to four axes, two or three factors that share indices with them, one of them read at some positions only."""
    lengths = [rng.choice(SIZES) for _ in range(rng.randint(2, 4))]
    axes = [Axis((BATCH,))] if batch else []
    for length in lengths:
        if length > 2 and rng.random() < 0.3:
            places = rng.sample(range(length), rng.randint(1, length - 1))
            axes.append(reading(fresh(len(places)), places, length))
        else:
            axes.append(Axis(fresh(length)))
    out, inner = fresh(3), fresh(2)
    factors = []
    for extra in ((*inner,), (*inner, *out)):
        own = [Axis(axis.indices) for axis in axes if BATCH not in axis.indices and rng.random() < 0.7]
        own += [Axis((index,)) for index in extra]
        factors.append(Operand(constant(*(prod(map(size_of, axis.indices)) for axis in own)), tuple(own)))
    long = fresh(3)
    picked = Operand(constant(5, 3), (Axis(long, (4, 0, 2), 5), Axis(out)))
    factors += [picked] if rng.random() < 0.5 else []
    channel = frozenset(axes[-1].indices)
    return Term(tuple(axes), tuple(factors), out, rng.choice((1.0, 0.25)), channel)


def regroupings(rng: random.Random, sizes: list[int]) -> list[int]:
    """Other lengths of as many entries."""
    left, found = prod(sizes), []
    while left > 1:
        own = rng.choice([part for part in range(1, left + 1) if left % part == 0])
        found.append(own)
        left //= own
    return found or [1]


@pytest.mark.parametrize("seed", range(30))
def test_a_view_keeps_every_entry(seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    term = random_term(rng)
    sizes = [axis.extent.size for axis in term.axes]
    for _ in range(3):
        lengths = regroupings(rng, sizes)
        moved = term.regrouped([Extent(length) for length in lengths])
        assert [axis.extent.size for axis in moved.axes] == lengths
        torch.testing.assert_close(dense(moved), dense(term).reshape(*lengths, 3))
        term = moved


@pytest.mark.parametrize("seed", range(30))
def test_images_stay_apart_in_a_view(seed: int) -> None:
    """Images merge with the axes behind them and come out again."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    term = random_term(rng, batch=True)
    sizes = [axis.extent.size for axis in term.axes[1:]]
    first, *rest = regroupings(rng, sizes)
    try:
        moved = term.regrouped([Extent(first, True), *map(Extent, rest)])
    except Irregular:
        assert any(axis.take is not None for axis in term.axes)
        return
    torch.testing.assert_close(dense(moved), dense(term).reshape(IMAGES * first, *rest, 3))
    back = moved.regrouped([Extent(1, True), *map(Extent, sizes)])
    torch.testing.assert_close(dense(back), dense(term))


def test_the_image_axis_is_never_mixed_with_positions() -> None:
    term = Term((Axis(fresh(4)), Axis((BATCH,))), (), (), 1.0)
    with pytest.raises(Irregular):
        term.regrouped([Extent(1, True), Extent(4)])
    with pytest.raises(Irregular):
        Term((Axis((BATCH,)),), (), ()).taken(0, [0], 1)


@pytest.mark.parametrize("seed", range(30))
def test_positions_are_taken_where_they_lie(seed: int) -> None:
    """Entry k lies at `places[k]` of the input; several may lie at one place, and some nowhere."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    term = random_term(rng)
    for _ in range(2):
        place = rng.randrange(len(term.axes))
        extent, length = term.axes[place].extent.size, rng.choice(SIZES)
        places = [rng.choice([None, *range(length)]) for _ in range(extent)]
        before = dense(term)
        after = torch.zeros(*before.shape[:place], length, *before.shape[place + 1 :]).double()
        for entry, at in enumerate(places):
            if at is not None:
                after.select(place, at).add_(before.select(place, entry))
        moved = term.taken(place, places, length)
        if moved is None:
            assert not after.any()
            return
        torch.testing.assert_close(dense(moved), after)
        term = moved


@pytest.mark.parametrize("seed", range(30))
def test_views_and_takes_in_a_row(seed: int) -> None:
    """Windows of a shifted, padded, strided axis: the moves compose."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    term = random_term(rng)
    for _ in range(3):
        place = rng.randrange(len(term.axes))
        extent = term.axes[place].extent.size
        shift, length = rng.randrange(extent), extent + rng.randint(0, 2)
        places = [(entry + shift) % extent for entry in range(extent)]
        before = dense(term)
        moved = term.taken(place, places, length)
        assert moved is not None
        after = torch.zeros(*before.shape[:place], length, *before.shape[place + 1 :]).double()
        after.narrow(place, 0, extent).copy_(before.roll(shift, place))
        torch.testing.assert_close(dense(moved), after)
        lengths = regroupings(rng, list(after.shape[:-1]))
        term = moved.regrouped([Extent(own) for own in lengths])
        torch.testing.assert_close(dense(term), after.reshape(*lengths, 3))


@pytest.mark.parametrize("seed", range(20))
def test_a_broadcast_is_summed_over_what_shared_it(seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    term = random_term(rng)
    sizes = [axis.extent.size for axis in term.axes]
    kept = [size if rng.random() < 0.5 else 1 for size in sizes][rng.randint(0, 1) :]
    moved = term.broadcast([Extent(size) for size in kept])
    torch.testing.assert_close(dense(moved), dense(term).sum_to_size(*kept, 3))


@pytest.mark.parametrize("seed", range(30))
def test_merging_keeps_the_sum(seed: int) -> None:
    """Terms that read other positions, have other weights, other scales, or are no relations at all."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    first = random_term(rng)
    terms = [first]
    for _ in range(rng.randint(1, 4)):
        kind = rng.choice(("same", "scale", "weights", "positions", "other"))
        own = first
        if kind == "scale":
            own = first.times(scale=0.3)
        elif kind == "weights":
            factors = tuple(
                Operand(constant(*factor.source.shape), factor.axes) if rng.random() < 0.5 else factor
                for factor in first.factors
            )
            own = replace(first, factors=factors)
        elif kind == "positions":
            place = rng.randrange(len(first.axes))
            length = first.axes[place].extent.size
            moved = first.taken(place, rng.sample(range(length), length), length)
            assert moved is not None
            own = moved
        elif kind == "other":
            own = replace(random_term(rng), axes=first.axes, factors=(), out=first.out)
        terms.append(own)
    total = sum(dense(term) for term in terms)
    together = merged(terms)
    assert len(together) <= len(terms)
    torch.testing.assert_close(sum(dense(term) for term in together), total, rtol=1e-6, atol=1e-6)


def test_patches_merged_by_four_slices_are_one_term() -> None:
    """What strided slices read of one map, with four slices of one weight, is read once."""
    term = Term((Axis(fresh(2)), Axis(fresh(2)), Axis(fresh(12))), (), fresh(3))
    term = term.times(Operand(constant(2, 2, 12, 3), (*term.axes, Axis(term.out))))
    parts = []
    for number, (row, column) in enumerate((row, column) for column in (0, 1) for row in (0, 1)):
        part = term.taken(2, [place - 3 * number if place // 3 == number else None for place in range(12)], 3)
        assert part is not None
        for dim, start in ((0, row), (1, column)):
            part = part.taken(dim, [start, start + 2], 4)
            assert part is not None
        parts.append(part)
    together = merged(parts)
    assert len(together) == 1
    torch.testing.assert_close(dense(together[0]), sum(dense(part) for part in parts))
