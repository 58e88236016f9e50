"""How what is written at an outlet is averaged over tokens."""

from __future__ import annotations

from typing import Literal

from torch import fx

from unweave.adjoint.merge import merged
from unweave.adjoint.operand import BATCH, Axis, Index, Operand, Runtime, fresh, size_of
from unweave.adjoint.term import Term
from unweave.decomposition.branches import Walk
from unweave.decomposition.pieces import Reading
from unweave.graph.graph import extents_of
from unweave.operations.table import handed
from unweave.surgery.outlets import Outlet

Average = Literal["readout", "tokens"]


def readings(walk: Walk, outlet: Outlet, average: Average) -> tuple[tuple[Reading, ...], tuple[Reading, ...]]:
    """How to average what is written at an outlet over its tokens.

    Args:
        walk: Of the model.
        outlet: The outlet.
        average: `readout`: a token counts as much as the representation reads of it, directly, on each image: the
            factors of the pending map that differ from token to token (which are read, how a pooling weighs them, their
            1/std in norms, attention that is passed through), without the matrices that are the same for all. `tokens`:
            all tokens of the residual stream count alike.

    Returns:
        Readings of the weighted sum, with the outlet's channels kept, and of the weights' sum.
    """
    values, shares = [], []
    for term in _terms_at(walk, outlet, average):
        channels = fresh(outlet.width)
        axes = list(term.axes)
        positions = {index for place, axis in enumerate(axes) if place != outlet.channel for index in axis.indices}
        factors = _weighing(term, {*axes[outlet.channel].indices}, positions)
        if average == "tokens":
            factors = tuple(factor for factor in factors if factor.constant)
        axes[outlet.channel] = Axis(channels)
        source = outlet.node if outlet.inputs is None else outlet.input
        values.append(Reading((Operand(source, tuple(axes)), *factors), channels, (), abs(term.scale)))
        unread = positions - {BATCH} - {index for factor in factors for index in factor.indices}
        shares.append(Reading(factors, (), (), abs(term.scale) * size_of(tuple(unread))))
    return tuple(values), tuple(shares)


def _terms_at(walk: Walk, outlet: Outlet, average: Average) -> tuple[Term, ...]:
    """The pending map of an outlet's output: of the representation, or of the residual stream."""
    graph, branch = walk.graph, outlet.branch
    start = branch.residual.branch if branch.residual else graph.output
    if average == "readout" and branch.residual:
        terms = list(branch.entry)
    else:
        axes = tuple(Axis(((BATCH,) if extent.batch else ()) + fresh(extent.size)) for extent in extents_of(start))
        terms = [Term(axes, (), axes[-1].indices)]
    pending: dict[fx.Node, list[Term]] = {start: terms}
    while pending:
        node = max(pending, key=graph.order.__getitem__)
        here = merged(pending.pop(node))
        if node is outlet.node:
            return tuple(here)
        for source, read in handed(node, graph, walk.paths.live(node), here):
            if isinstance(source, fx.Node) and graph.depends(source, outlet.node):
                pending.setdefault(source, []).append(read)
    return ()


def _weighing(term: Term, channels: set[Index], positions: set[Index]) -> tuple[Operand, ...]:
    """The factors that weigh tokens: those that no chain of matrices ties to the channels or to the representation."""
    matrix = {*term.out, *channels}
    held = positions | {
        index for factor in term.factors if isinstance(factor.source, Runtime) for index in factor.indices
    }
    grown = True
    while grown:
        tied = (
            {index for factor in term.factors if matrix & {*factor.indices} for index in factor.indices}
            - held
            - {BATCH}
        )
        grown = not tied <= matrix
        matrix |= tied
    return tuple(factor for factor in term.factors if not matrix & {*factor.indices})
