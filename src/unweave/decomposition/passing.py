"""Attention by which alone another stream is read: whether to pass through it, and what of it stays a branch.

A pooling token is not on the residual stream that it reads (`probe`). All of the stream reaches the representation
through that attention, so its weights are held and the walk goes on at its values:

    images - x - block - block ----- values
                                       |
                         probe ---- attention - + MLP - representation

A class token may join late, and read the patches and itself, which go on alone (CaiT). What the attention reads of the
class token is a branch of the trunk `c`; what it reads of the patches `x` is passed on:

    images - x - block - block ----- values of x
                                       |
                      c ---------- attention - + - representation      heads: what is read of c
                      |                        |
                      +------------------------+

A class token may also be one of the tokens and write only itself: the layer hands on position 0, and reads all. The
positions that the trunk beside it does not hand on have no way on but this attention:

    x[0] -------------------- + ---- representation
      |                       |
    x[:] --- attention to row 0      heads: what is read of x[0]; the rest of x goes on with the trunk
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import fx

from unweave.adjoint.operand import Irregular
from unweave.adjoint.term import Term
from unweave.decomposition.branches import Branch
from unweave.graph.graph import extents_of
from unweave.operations.table import handed
from unweave.structure.residual import Paths


def passes(paths: Paths, node: fx.Node, branch: Branch, terms: Sequence[Term]) -> bool:
    """Whether an attention reads a stream that has no other way on.

    Args:
        paths: The model.
        node: The attention.
        branch: The branch it lies in.
        terms: The pending map of its output.
    """
    live = paths.live(node)
    assert live is not None
    if branch.residual is None or paths.bypasses(live, branch.reads):
        return True
    try:
        return (_selects(node, live, terms) and _leaves(paths, branch)) or _alone(paths, branch)
    except Irregular:
        return False  # the trunk beside it cannot be followed either


def divided(terms: Sequence[Term], trunk: Sequence[Term]) -> tuple[tuple[Term, ...], tuple[Term, ...]]:
    """A branch's reading of the trunk, split into the positions that the trunk itself hands on and those that it does
    not.
    """
    shared: list[Term] = []
    beyond: list[Term] = []
    for term in terms:
        for place, axis in enumerate(term.axes):
            if axis.extent.batch or set(axis.indices) & term.channel:
                continue
            covered = _positions(trunk, place)
            if _positions([term], place) - covered:
                for part, inside in ((shared, True), (beyond, False)):
                    places = [at if (at in covered) == inside else None for at in range(axis.extent.size)]
                    moved = term.taken(place, places, axis.extent.size)
                    part += [moved] if moved is not None else []
                break
        else:
            shared.append(term)
    return tuple(shared), tuple(beyond)


def _selects(node: fx.Node, live: fx.Node, terms: Sequence[Term]) -> bool:
    """Whether an attention writes to fewer tokens than it reads, all of which matter, as a class attention does."""
    rows, keys = extents_of(node)[-2], extents_of(live)[-2]
    return rows.size < keys.size and all(term.axes[-2].extent == rows and term.axes[-2].take is None for term in terms)


def _leaves(paths: Paths, branch: Branch) -> bool:
    """Whether the trunk beside a branch hands on only some of the positions that the branch may read."""
    assert branch.residual is not None
    read = branch.residual.read
    reached = next((terms for node, terms in _descent(paths, branch) if node is read), [])
    for place, extent in enumerate(extents_of(read)):
        channel = any(set(term.axes[place].indices) & term.channel for term in reached)
        if reached and not extent.batch and not channel and len(_positions(reached, place)) < extent.size:
            return True
    return False


def _alone(paths: Paths, branch: Branch) -> bool:
    """Whether all that the trunk beside a branch hands on is a token that is still a weight, while the branch reads a
    residual stream as well: that stream has no way on but this attention.
    """
    residual = branch.residual
    if residual is None or not paths.has_residual(residual.read):
        return False
    return all(node not in paths.residuals and paths.row(node).linear for node, _ in _descent(paths, branch))


def _descent(paths: Paths, branch: Branch) -> Iterator[tuple[fx.Node, list[Term]]]:
    """The trunk beside a branch, followed down by the rules: image-dependent nodes, last first, with what of them is
    handed on.
    """
    assert branch.residual is not None
    pending: dict[fx.Node, list[Term]] = {branch.residual.trunk: list(branch.trunk)}
    while pending:
        node = max(pending, key=paths.graph.order.__getitem__)
        terms = pending.pop(node)
        yield node, terms
        if not paths.row(node).linear:
            continue
        for source, term in handed(node, paths.graph, paths.live(node), terms):
            if isinstance(source, fx.Node) and paths.graph.image_dependent(source):
                pending.setdefault(source, []).append(term)


def _positions(terms: Sequence[Term], place: int) -> set[int]:
    """The positions along an axis that any of the terms reads."""
    return {int(at) for term in terms for at in term.axes[place].positions()}
