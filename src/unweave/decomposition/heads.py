"""The heads of an attention: which axes of its output they run along, told from what its values come from.

A head is a set of channels of the values, the same at every place. So an axis that is shared with the weights (not
summed over, not the values' own) is one of heads if the channels differ along it and the positions do not; windows are
axes along which the positions differ. Where several heads share their values the queries tell them apart: an axis that
the weights have and the values do not, beside the rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, fx

from unweave.adjoint.merge import read_positions
from unweave.adjoint.operand import BATCH, Index, Indices, Runtime, size_of
from unweave.adjoint.term import Term
from unweave.structure.labels import differs
from unweave.structure.products import Products


def laid_apart(products: Products, node: fx.Node, terms: Sequence[Term]) -> tuple[Term, ...]:
    """The pending map of an attention's output, in which every term reads all heads.

    Where heads went apart (a norm or a projection for each) a term reads only one of them; a one-hot operand makes it
    read all.
    """
    origin = products.origins.of(node)
    if origin is None:
        return tuple(terms)
    whole = []
    for term in terms:
        for dim, axis in enumerate(term.axes[:-1]):
            if axis.take is not None and differs(origin.channels, dim) and not differs(origin.positions, dim):
                term = term.untaken(dim)
        whole.append(term)
    return tuple(whole)


def heads_of(products: Products, node: fx.Node, live: fx.Node, term: Term, value: Term | None) -> Indices:
    """The indices of the heads, of those that run over an attention's output.

    Args:
        products: The model.
        node: The attention.
        live: Its values.
        term: The pending map of its output.
        value: The pending map of its values; None where it is not known.
    """
    stacked = products.row(node).product != ("tensors",)  # rows and channels last, whatever comes before them
    shared = {index for axis in term.axes[:-2] for index in axis.indices} if stacked or value is None else set()
    if value is not None:
        held = next(factor for factor in reversed(value.factors) if isinstance(factor.source, Runtime))
        shared |= set(held.indices)
    origin = products.origins.of(live)

    def is_head(index: Index) -> bool:
        if value is None or (index in value.indices and (origin is None or value.indices.count(index) > 1)):
            return index in term.channel
        if index in value.indices:
            assert origin is not None
            return not differs(_spread(origin.positions, value), value.indices.index(index))
        return any(index in axis.indices for axis in term.axes[:-2]) if stacked else index in term.channel

    indices = (index for index in dict.fromkeys(term.indices) if index in shared and index is not BATCH)
    return tuple(index for index in indices if is_head(index))


def agreed(terms: Sequence[Term], heads: Sequence[Indices]) -> tuple[Indices, ...]:
    """The heads of every term, of which there are as many in each: along the axes on which any term has the most; none
    where the terms do not run over these alike.
    """
    count = max(size_of(indices) for indices in heads)
    most = next(place for place, indices in enumerate(heads) if size_of(indices) == count)
    dims = [dim for dim, axis in enumerate(terms[most].axes) if {*axis.indices} & {*heads[most]}]
    along = [
        indices
        if size_of(indices) == count
        else tuple(index for dim in dims for index in term.axes[dim].indices if index is not BATCH)
        for term, indices in zip(terms, heads, strict=True)
    ]
    return tuple(along) if all(size_of(indices) == count for indices in along) else ((),) * len(terms)


def is_merged(products: Products, node: fx.Node, term: Term, heads: Indices) -> bool:
    """Whether an attention's output has axes that may be heads or windows, which could not be told."""
    leading = {index for axis in term.axes[:-2] for index in axis.indices if index is not BATCH}
    return products.origins.of(node) is None and not leading <= set(heads)


def keys_of(products: Products, node: fx.Node, live: fx.Node, term: Term, heads: Indices) -> tuple[object, ...]:
    """What tells an attention's heads from those of others: the channels that each reads, and the weights behind them.

    Two attentions over the same values whose outputs go the same way (differential attention) have the same heads.
    """
    way = tuple(
        (factor.source, tuple(axis.take for axis in factor.axes))
        for factor in term.factors
        if factor.constant and not set(factor.indices) <= set(heads)
    )
    origin = products.origins.of(node)
    if origin is None:
        return (way, live)
    labels = _spread(origin.channels, term)
    places = [term.indices.index(index) for index in heads]
    first = labels.movedim(places, list(range(len(places)))).flatten(len(places))[..., 0].flatten()
    return (way, *(round(float(label), 9) for label in first))


def _spread(labels: Tensor, term: Term) -> Tensor:
    """Labels of one image with one axis for each index of a term."""
    read = read_positions(labels, [axis.take for axis in term.axes])
    return read.reshape([1 if index is BATCH else index.size for index in term.indices])
