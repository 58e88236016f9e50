"""One term of the pending map, and the moves on it: relabel an axis, split an index, read positions, add factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch

from unweave.adjoint.operand import (
    BATCH,
    Axis,
    Constant,
    Index,
    Indices,
    Irregular,
    Operand,
    Source,
    fresh,
    reading,
    size_of,
)
from unweave.graph.graph import Extent

RELATION_LIMIT = 2**24
"""Entries of the largest one-hot factor that is built to relate two groupings of the same positions."""


@dataclass(frozen=True)
class Term:
    """One product of factors: the pending map of a node, or one summand of it.

    Attributes:
        axes: How the node itself is read.
        factors: What its value is multiplied with.
        out: The indices of the representation's own axis.
        scale: A plain number.
        channel: The indices of the axis that the last weight on the way contracts: what heads are split from.
        kept: Indices that survive in the result beside the batch and `out`.
        anchor: An earlier node on the way that holds the same numbers in a layout cheaper to read (only data movement
            in between).
    """

    axes: tuple[Axis, ...]
    factors: tuple[Operand, ...]
    out: Indices
    scale: float = 1.0
    channel: frozenset[Index] = frozenset()
    kept: Indices = ()
    anchor: Operand | None = None

    @property
    def indices(self) -> Indices:
        """All indices that run over the node."""
        return tuple(index for axis in self.axes for index in axis.indices)

    def operand(self, source: Source) -> Operand:
        """The node as an operand: the anchor where there is one."""
        return self.anchor or Operand(source, self.axes)

    # -- moves -----------------------------------------------------------------------------------------------------

    def read(self, axes: Sequence[Axis]) -> Term:
        """The same factors, of an input read so. An index that no axis and no factor carries any more is summed: it
        counts its size.
        """
        term = replace(self, axes=tuple(axes))
        alive = {*term.indices, *self.kept, *self.out, BATCH}
        for factor in self.factors:
            alive.update(factor.indices)
        return replace(term, scale=self.scale * prod(index.size for index in {*self.indices} - alive))

    def times(self, *factors: Operand, scale: float = 1.0) -> Term:
        """The map with more factors."""
        return replace(self, factors=self.factors + factors, scale=self.scale * scale)

    def through(self, indices: Indices) -> Term:
        """Marks these as the axis that the last weight on the way contracts."""
        return replace(self, channel=frozenset(indices), anchor=None)

    def unanchored(self) -> Term:
        """The map without its anchor: the next node holds other numbers."""
        return replace(self, anchor=None)

    def broadcast(self, extents: Sequence[Extent]) -> Term:
        """The map of an input of these extents that was broadcast (right-aligned) to the present node's shape."""
        offset = len(self.axes) - len(extents)
        axes = [
            Axis() if extent == Extent(1) and axis.extent != Extent(1) else axis
            for axis, extent in zip(self.axes[offset:], extents, strict=True)
        ]
        changed = offset > 0 or any(new is not old for new, old in zip(axes, self.axes, strict=False))
        return self.unanchored().read(axes) if changed else self

    def taken(self, position: int, places: Sequence[int | None], length: int) -> Term | None:
        """The map of an input, of which entry k of the present axis `position` lies at `places[k]`; None: it is not
        from there.

        Args:
            position: Which axis.
            places: For every position along the present node's axis, the position along the input's axis.
            length: The length of the input's axis.

        Returns:
            The map of the input; None where nothing of it is read.
        """
        axis = self.axes[position]
        if BATCH in axis.indices:
            raise Irregular("positions are taken along the image axis")
        entries = [places[place] for place in axis.positions()]
        inside = [entry for entry, place in enumerate(entries) if place is not None]
        if not inside:
            return None
        term = self if len(inside) == len(entries) else self._restricted(axis.indices, inside)
        kept = [place for place in entries if place is not None]
        axes = list(term.axes)
        axes[position] = reading(axes[position].indices, kept, length)
        return replace(term, axes=tuple(axes), anchor=None)

    def _restricted(self, indices: Indices, inside: Sequence[int]) -> Term:
        """Replace these indices by one that runs over only the flat entries `inside`."""
        new = fresh(len(inside))
        factors = [[narrowed(axis, indices, inside, new) for axis in factor.axes] for factor in self.factors]
        channel = self.channel - set(indices) | set(new) if set(indices) & self.channel else self.channel
        axes = tuple(Axis(new, None) if axis.indices == indices else axis for axis in self.axes)
        loose = {*self.kept, *self.out, *(index for axis in axes for index in axis.indices)} & set(indices)
        if loose or any(axis is None for factor in factors for axis in factor):
            one_hot = np.eye(size_of(indices))[:, list(inside)]
            shape = (*(index.size for index in indices), *(index.size for index in new))
            relation = Operand(
                Constant.array(one_hot.reshape(shape)), tuple(Axis((index,)) for index in (*indices, *new))
            )
            return replace(self, axes=axes, factors=(*self.factors, relation), channel=channel)
        moved = tuple(
            replace(factor, axes=tuple(axis for axis in axes if axis is not None))
            for factor, axes in zip(self.factors, factors, strict=True)
        )
        return replace(self, axes=axes, factors=moved, channel=channel)

    def split(self, old: Index, new: Indices) -> Term:
        """The map with one index written as several."""
        return replace(
            self,
            axes=tuple(axis.substituted(old, new) for axis in self.axes),
            factors=tuple(factor.substituted(old, new) for factor in self.factors),
            channel=self.channel - {old} | set(new) if old in self.channel else self.channel,
            kept=Axis(self.kept).substituted(old, new).indices,
            out=Axis(self.out).substituted(old, new).indices,
            anchor=self.anchor and self.anchor.substituted(old, new),
        )

    # -- views -----------------------------------------------------------------------------------------------------

    def regrouped(self, extents: Sequence[Extent]) -> Term:
        """The map of an input with these extents, of which the present node is a row-major view.

        Raises:
            Irregular: The image axis cannot be told apart from the others, or relating the two groupings is too large.
        """
        places = [place for place, axis in enumerate(self.axes) if axis.extent != Extent(1)]
        wanted = [extent for extent in extents if extent != Extent(1)]
        term, axes = self, []
        while places or wanted:
            group, targets = _next_group([self.axes[place].extent for place in places], wanted)
            term, new = term._regroup([term.axes[place] for place in places[:group]], wanted[:targets])
            axes += new
            places, wanted = places[group:], wanted[targets:]
        supply = iter(axes)
        full = [Axis() if extent == Extent(1) else next(supply) for extent in extents]
        for place, axis in enumerate(full):
            term, full[place] = term._retaken(axis, [other for other in full if other is not axis])
        return replace(term, axes=tuple(full))

    def untaken(self, dim: int) -> Term:
        """The map with one axis of the node read whole: the positions that are read become a one-hot factor."""
        term, axis = self._untaken(self.axes[dim])
        return replace(term, axes=(*term.axes[:dim], axis, *term.axes[dim + 1 :]))

    def _untaken(self, axis: Axis) -> tuple[Term, Axis]:
        """An axis of which positions are read, as one that is read whole: the positions become a one-hot factor."""
        if axis.take is None:
            return self, axis
        whole = Axis(fresh(axis.length))
        shape = (*(index.size for index in axis.indices), axis.length)
        key = ("taken", axis.take, axis.length, shape)
        values = torch.eye(axis.length)[list(axis.take)].reshape(shape)
        sides = (*(Axis((index,)) for index in axis.indices), whole)
        return self.unanchored().times(Operand(Constant(shape, (), lambda: values, key), sides)), whole

    def _retaken(self, axis: Axis, others: Sequence[Axis]) -> tuple[Term, Axis]:
        """Undoes `_untaken` once the axis stands alone again."""
        if (
            len(axis.indices) != 1
            or axis.take is not None
            or any(set(axis.indices) & set(own.indices) for own in others)
        ):
            return self, axis
        carriers = [factor for factor in self.factors if axis.indices[0] in factor.indices]
        key = carriers[0].source.key if len(carriers) == 1 and isinstance(carriers[0].source, Constant) else None
        if not (isinstance(key, tuple) and key[:1] == ("taken",)) or carriers[0].axes[-1].indices != axis.indices:
            return self, axis
        own = tuple(index for side in carriers[0].axes[:-1] for index in side.indices)
        rest = tuple(factor for factor in self.factors if factor is not carriers[0])
        return replace(self, factors=rest, anchor=None), Axis(own, key[1], key[2])

    def _regroup(self, own: Sequence[Axis], targets: Sequence[Extent]) -> tuple[Term, list[Axis]]:
        """Axes of the map grouped otherwise."""
        if len(own) == 1 and len(targets) == 1:
            return self, list(own)
        if all(axis.take is None for axis in own):
            cut = _cut(tuple(index for axis in own for index in axis.indices), targets)
            if cut is not None:
                term = self
                for old, new in cut[0]:
                    term = term.split(old, new)
                return term, cut[1]
        return self._related(own, targets)

    def _related(self, own: Sequence[Axis], targets: Sequence[Extent]) -> tuple[Term, list[Axis]]:
        """Relate two groupings that do not refine each other by a one-hot factor."""
        batched = any(axis.extent.batch for axis in own)
        if batched and any(axis.take is not None for axis in own):
            term, whole = self, []
            for axis in own:
                term, axis = term._untaken(axis)
                whole.append(axis)
            return term._regroup(whole, targets)
        if own[0].indices[:1] == (BATCH,) and own[0].take is None and targets[0].batch:
            inner = [Axis(own[0].indices[1:]), *own[1:]]  # the image leads on both sides: relate what follows it
            first = [Extent(targets[0].size)] if targets[0].size > 1 else []
            term, axes = self._related([axis for axis in inner if axis.extent != Extent(1)], [*first, *targets[1:]])
            if not first:
                return term, [Axis((BATCH,)), *axes]
            if axes[0].take is not None:
                raise Irregular("the image axis is mixed with positions")
            return term, [Axis((BATCH, *axes[0].indices)), *axes[1:]]
        if any(axis.extent.batch for axis in own) or any(extent.batch for extent in targets):
            raise Irregular("the image axis is mixed with positions")
        grid = np.meshgrid(*[axis.positions() for axis in own], indexing="ij")
        flat = np.ravel_multi_index(tuple(part.ravel() for part in grid), [axis.extent.size for axis in own])
        axes, rows = [], []
        for places, extent in zip(np.unravel_index(flat, [extent.size for extent in targets]), targets, strict=True):
            read, row = np.unique(places, return_inverse=True)
            axes.append(reading(fresh(len(read)), read.tolist(), extent.size))
            rows.append(row)
        sides = [*own, *axes]
        shape = [size_of(axis.indices) for axis in sides]
        if prod(shape) > RELATION_LIMIT:
            raise Irregular(f"relating {len(flat)} positions takes {prod(shape):,} entries")
        one_hot = np.zeros((len(flat), *shape[len(own) :]))
        one_hot[(np.arange(len(flat)), *rows)] = 1
        relation = Operand(Constant.array(one_hot.reshape(shape)), tuple(Axis(axis.indices) for axis in sides))
        return self.unanchored().times(relation), axes


def narrowed(axis: Axis, indices: Indices, inside: Sequence[int], new: Indices) -> Axis | None:
    """An axis on which `indices` run over only their flat entries `inside`, as `new`; None where they do not lie side
    by side on it.
    """
    own = axis.indices
    if not set(own) & set(indices):
        return axis
    start = next((at for at in range(len(own)) if own[at : at + len(indices)] == indices), None)
    if start is None or BATCH in own:
        return None
    before, after = own[:start], own[start + len(indices) :]
    flat = np.arange(size_of(own)).reshape(size_of(before), size_of(indices), size_of(after))
    places = axis.positions()[flat[:, list(inside)].ravel()]
    return reading(before + new + after, places.tolist(), axis.extent.size)


def _next_group(own: Sequence[Extent], wanted: Sequence[Extent]) -> tuple[int, int]:
    """The shortest heads of both lists that span the same entries."""
    left, right = Extent(1), Extent(1)
    group = targets = 0
    while not group or left != right:
        behind = (right.batch and not left.batch) or (left.batch == right.batch and left.size <= right.size)
        if (behind and group < len(own)) or targets >= len(wanted):
            if group >= len(own):
                raise Irregular(f"{list(own)} is no view of {list(wanted)}")
            left, group = left * own[group], group + 1
        else:
            right, targets = right * wanted[targets], targets + 1
    return group, targets


def _cut(flat: Indices, targets: Sequence[Extent]) -> tuple[list[tuple[Index, Indices]], list[Axis]] | None:
    """Deal the indices out to the targets in order, splitting them where needed; None where the splits disagree."""
    splits: list[tuple[Index, Indices]] = []
    queue = list(flat)
    axes = []
    for target in targets:
        size, batch, indices = target.size, target.batch, []
        while size > 1 or batch:
            if not queue:
                return None
            index = queue.pop(0)
            if index is BATCH:
                if not batch:
                    return None
                batch = False
            elif size % index.size == 0:
                size //= index.size
            elif index.size % size == 0 and size > 1:
                parts = (Index(size), Index(index.size // size))
                splits.append((index, parts))
                queue.insert(0, parts[1])
                index, size = parts[0], 1
            else:
                return None
            indices.append(index)
        axes.append(Axis(tuple(indices)))
    return (splits, axes) if not queue else None
