"""What to compute for a selection of components: the chosen columns, and what is left as one `rest`.

The rest is never computed piece by piece: a branch's output is one contraction, less what was chosen of it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from unweave.components import Component
from unweave.decomposition.branches import Branch
from unweave.decomposition.pieces import Job, Piece, reading_of


@dataclass(frozen=True)
class Request:
    """What is to be computed.

    Attributes:
        components: The columns of the result.
        jobs: What is added to them.
        subtractions: Columns, and those whose sum is taken from them afterwards.
    """

    components: tuple[Component, ...]
    jobs: tuple[Job, ...]
    subtractions: tuple[tuple[int, tuple[int, ...]], ...] = ()


def chosen_and_rest(pieces: Sequence[Piece], chosen: Sequence[int], branches: Sequence[Branch]) -> Request:
    """The chosen components, and one `rest` for everything else.

    Args:
        pieces: All of a model's, in order.
        chosen: Places among their components.
        branches: The walk's.
    """
    everything = [component for piece in pieces for component in piece.components]
    components = tuple(everything[place] for place in chosen)
    column = {place: number for number, place in enumerate(chosen)}
    rest = len(chosen)
    jobs: list[Job] = []
    groups: dict[Branch, list[tuple[Piece, tuple[int, ...]]]] = {}
    start = 0
    for piece in pieces:
        inside = tuple(place for place in range(len(piece.components)) if start + place in column)
        columns = tuple(column[start + place] for place in inside)
        start += len(piece.components)
        if inside:
            jobs.append(_job(piece, inside, columns))
        groups.setdefault(piece.branch, []).append((piece, columns))
    if len(chosen) == len(everything):
        return Request(components, tuple(jobs))
    subtractions: list[tuple[int, tuple[int, ...]]] = []
    parents = {branch.parent for branch in branches}
    for branch, group in groups.items():
        if branch.residual is not None and not branch.passed and branch not in parents:
            taken = tuple(number for _, columns in group for number in columns)
            if sum(len(piece.components) for piece, _ in group) == len(taken):
                continue  # everything of this branch was chosen
            jobs.append(Job(tuple(reading_of(term, branch.residual.branch) for term in branch.entry), (rest,)))
            if taken:
                subtractions.append((rest, taken))
            continue
        for piece, columns in group:
            if len(columns) < len(piece.components):
                jobs.append(Job(tuple(reading.whole() for reading in piece.readings), (rest,)))
                if columns:
                    subtractions.append((rest, columns))
    return Request((*components, Component("rest", "rest")), tuple(jobs), tuple(subtractions))


def split_by_token(heads: Sequence[Piece], tokens: Sequence[Piece], chosen: Collection[Component]) -> Request:
    """The chosen components by token, and all others whole.

    Args:
        heads, tokens: All pieces of a model, at either level.
        chosen: Components of level `head`.
    """
    jobs: list[Job] = []
    components: list[Component] = []
    both = [*((piece, False) for piece in heads), *((piece, True) for piece in tokens)]
    for piece, finer in sorted(both, key=lambda item: item[0].order):
        inside = tuple(n for n, component in enumerate(piece.components) if (component.whole in chosen) == finer)
        if inside:
            jobs.append(_job(piece, inside, tuple(range(len(components), len(components) + len(inside)))))
            components += [piece.components[place] for place in inside]
    return Request(tuple(components), tuple(jobs))


def _job(piece: Piece, inside: tuple[int, ...], columns: tuple[int, ...]) -> Job:
    """The job of some columns of a piece; whole heads are left out of the products altogether."""
    count = len(piece.components)
    if len(inside) == count:
        return Job(piece.readings, columns)
    if piece.shape:
        block = count // piece.shape[0]
        first = sorted({place // block for place in inside})
        if 1 < len(first) < piece.shape[0]:
            narrowed = [reading.only(0, first) if reading.kept else None for reading in piece.readings]
            if all(reading is not None for reading in narrowed):
                at = {head: number for number, head in enumerate(first)}
                left = tuple(at[place // block] * block + place % block for place in inside)
                chosen = None if len(left) == len(first) * block else left
                return Job(tuple(reading for reading in narrowed if reading is not None), columns, chosen)
    return Job(piece.readings, columns, inside)
