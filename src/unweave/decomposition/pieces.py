"""From the places where contributions are read to named components.

A piece is one contraction whose result has one column for each of its components: the heads of an attention, the
tokens or neurons of an MLP, or a single whole. Names are the model's own module paths.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeAlias

import numpy as np
from torch import fx

from unweave.adjoint.operand import BATCH, Axis, Constant, Indices, Operand, fresh, size_of
from unweave.adjoint.term import Term, narrowed
from unweave.components import Component, Grid, Kind, Level
from unweave.decomposition.branches import Branch, Site, Walk
from unweave.decomposition.names import Names, inside
from unweave.graph.graph import line_of, operation
from unweave.structure.places import cells, lost

Place: TypeAlias = tuple[int | None, int | None, int | None, int | None]
"""A token's number, row, column and time."""


@dataclass(frozen=True)
class Reading:
    """One summand of a piece: `sign` times the sum over all indices but the batch, `kept` and `out` of the operands'
    product.
    """

    operands: tuple[Operand, ...]
    kept: Indices
    out: Indices
    scale: float

    def whole(self) -> Reading:
        """The same, summed over what was kept apart."""
        return replace(self, kept=())

    def only(self, place: int, inside: Sequence[int]) -> Reading | None:
        """The same, of only some entries of one kept index; None where its factors do not lie so."""
        index = self.kept[place]
        new = (type(index)(len(inside)),)
        moved = []
        for operand in self.operands:
            axes = [narrowed(axis, (index,), inside, new) for axis in operand.axes]
            if any(axis is None for axis in axes):
                return None
            moved.append(replace(operand, axes=tuple(axis for axis in axes if axis is not None)))
        kept = tuple(new[0] if one is index else one for one in self.kept)
        return replace(self, operands=tuple(moved), kept=kept)


@dataclass(frozen=True)
class Piece:
    """Components that are read together.

    Attributes:
        components: One for each column of the result.
        readings: The summands.
        branch: The branch they belong to.
        order: Where it lies in the model's execution.
        shape: How many entries each kept index has; its product is the number of components.
    """

    components: tuple[Component, ...]
    readings: tuple[Reading, ...]
    branch: Branch
    order: tuple[int, int]
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Job:
    """What a plan asks to be computed: columns of the result, and the readings that add up to them.

    Attributes:
        readings: The summands.
        columns: The columns of the result that they are added to.
        chosen: Which of the readings' columns those are; None for all.
    """

    readings: tuple[Reading, ...]
    columns: tuple[int, ...]
    chosen: tuple[int, ...] | None = None


def pieces_of(walk: Walk, level: Level) -> tuple[tuple[Piece, ...], dict[str, Grid], dict[str, str]]:
    """Every component of a model at a level, in execution order; the token grid of each path where it is known; and of
    each other path where it was lost.
    """
    return _Pieces(walk, level).run()


def reading_of(term: Term, source: fx.Node | Constant, kept: Indices = (), sign: float = 1.0) -> Reading:
    """The contraction of a value with its pending map.

    An index that is kept and runs over the representation itself (heads that nothing projects) is told apart from it.
    """
    operands = [term.operand(source), *term.factors]
    apart = {index: fresh(index.size)[0] for index in kept if index in term.out}
    for index, new in apart.items():
        operands.append(Operand(Constant.array(np.eye(index.size)), (Axis((new,)), Axis((index,)))))
    return Reading(tuple(operands), tuple(apart.get(index, index) for index in kept), term.out, term.scale * sign)


class _Pieces:
    def __init__(self, walk: Walk, level: Level) -> None:
        self.walk, self.level, self.graph, self.names = walk, level, walk.graph, Names(walk)
        self.parents = {branch.parent for branch in walk.branches}
        self.grids: dict[str, Grid] = {}
        self.unplaced: dict[str, str] = {}

    def run(self) -> tuple[tuple[Piece, ...], dict[str, Grid], dict[str, str]]:
        pieces: list[Piece] = []
        for branch in self.walk.branches:
            pieces += self._trunk(branch) if branch.residual is None else self._branch(branch)
        return tuple(_distinct(sorted(pieces, key=lambda piece: piece.order))), self.grids, self.unplaced

    def _trunk(self, root: Branch) -> Iterable[Piece]:
        embed = [site for site in root.sites if site.role == "embed"]
        if embed:
            yield self._whole("embed", "embed", embed, root, (0, 0))
        for site in root.sites:
            if site.role == "lumped":
                path = self.graph.module(site.via) or "trunk"
                if not self.walk.paths.has_residual(site.via):
                    path = "output" if site.via is self.graph.output else "embed"
                yield self._whole(path, "lumped", [site], root, (self.graph.order[site.via], 0))
        yield from self._attention(root)
        by_module: dict[str, list[Site]] = {}
        for site in root.sites:
            if site.role == "bias":
                by_module.setdefault(self.graph.module(site.via) or "trunk", []).append(site)
        for path, sites in by_module.items():
            yield self._whole(path, "bias", sites, root, (max(self.graph.order[s.via] for s in sites), 9))

    def _branch(self, branch: Branch) -> Iterable[Piece]:
        assert branch.residual is not None
        path, order = self.names.paths[branch], self.graph.order[branch.residual.node]
        bias = [site for site in branch.sites if site.role == "bias"]
        attends = any(site.role == "attention" for site in branch.sites)
        groups = self._groups(branch, attends)
        ends = attends or len(groups) > 1
        whole = self.level == "layer" and not (attends and any(group[0].role == "source" for _, group in groups))
        pieces: list[Piece] = []
        if (whole or not (ends or self.level in ("token", "neuron"))) and not (branch.passed or branch in self.parents):
            readings = [reading_of(term, branch.residual.branch) for term in branch.entry]
            readings += [reading_of(term, site.source, sign=-1.0) for site in bias for term in site.terms]
            kind: Kind = "attn" if attends else self.names.kind(branch)
            components = (Component(path, kind, self.names.layers[branch]),)
            pieces.append(Piece(components, tuple(readings), branch, (order, 0)))
        else:
            pieces += self._attention(branch)
            for group_path, sites in groups:
                at = (order, self.graph.order[sites[0].via])
                pieces.append(self._sources(branch, group_path, sites, ends, at))
        yield from pieces
        paths = sorted({piece.components[0].path for piece in pieces}, key=len, reverse=True)
        shifts: dict[str, list[Site]] = {}
        for site in bias:  # with the part of the branch whose module it is in
            module = self.graph.module(site.via)
            shifts.setdefault(next((part for part in paths if inside(module, part)), path), []).append(site)
        for part, sites in shifts.items():
            yield self._whole(part, "bias", sites, branch, (order, order))

    def _groups(self, branch: Branch, attends: bool) -> list[tuple[str, list[Site]]]:
        """The parts of a branch that are not attention, each with its path: ends in one module that go on through the
        same weights are one part.
        """
        path = self.names.paths[branch]
        ends = [site for site in branch.sites if site.role == "source"]
        reads = [site for site in branch.sites if site.role == "read"]
        parts: dict[object, list[Site]] = {}
        for site in ends:
            behind = frozenset(factor.source for term in site.terms for factor in term.factors if factor.constant)
            parts.setdefault((self.names.source(site), behind), []).append(site)
        if len(parts) < 2 and not (attends and ends):  # what reads the trunk beside an end belongs to it
            return [(path, ends + reads)] if ends or reads else []
        again = self.names.again(branch)
        parts = dict(sorted(parts.items(), key=lambda part: self.graph.order[part[1][0].via]))
        paths = [self.names.source(sites[0]) for sites in parts.values()]
        around = [*(self.names.paths[other] for other in self.names.branches), *paths]
        named: list[str] = []
        for part, sites in zip(paths, parts.values(), strict=True):
            if not part or part.rpartition(".")[2].isdigit() or any(other.startswith(f"{part}.") for other in around):
                part = f"{part}.{self.names.kind(branch, sites)}".lstrip(".")
            named.append(part)
        numbers = [f".{named[:place].count(part)}" * (named.count(part) > 1) for place, part in enumerate(named)]
        groups = [
            (part + number + again, sites) for part, number, sites in zip(named, numbers, parts.values(), strict=True)
        ]
        return groups + ([(path, reads)] if reads else [])

    def _attention(self, branch: Branch) -> Iterable[Piece]:
        """The attentions of a branch: those of one module number their heads on, but for heads that they share."""
        role = "tokens" if self.level == "token" else "attention"
        by_path: dict[str, list[fx.Node]] = {}
        attentions = dict.fromkeys(
            site.attention for site in branch.sites if site.role == "attention" and site.attention
        )
        modules = {node: self.graph.module(node) for node in attentions}
        several = len(set(modules.values())) > 1
        for node, module in modules.items():
            path = self.names.paths[branch] if branch.residual and not several else module
            by_path.setdefault(path, []).append(node)
        for path, nodes in by_path.items():
            count, known = 0, dict[tuple[object, ...], Piece]()
            for node in sorted(nodes, key=self.graph.order.__getitem__):
                sites = [site for site in branch.sites if site.attention is node]
                site = next((site for site in sites if site.role == role), sites[0])
                order = (self.graph.order[branch.residual.node if branch.residual else node], self.graph.order[node])
                piece = self._split(site, path, branch, order, count)
                same = known.get(site.keys) if site.keys else None
                if same is not None and same.shape == piece.shape:
                    known[site.keys] = replace(same, readings=same.readings + piece.readings)
                    continue
                known[site.keys or (node,)] = piece
                count += size_of(site.heads[0])
            yield from known.values()

    def _split(self, site: Site, path: str, branch: Branch, order: tuple[int, int], first: int) -> Piece:
        """An attention in one component for each head (and token), the heads numbered from `first` on."""
        if self.level == "layer":
            return self._whole(path, "attn", [site], branch, order)
        terms = list(zip(site.terms, site.heads, strict=True))
        tokens = [_tokens(term, heads) if site.role == "tokens" else () for term, heads in terms]
        readings = [
            reading_of(term, site.source, heads + own) for (term, heads), own in zip(terms, tokens, strict=True)
        ]
        places = self._token_places(site, site.terms[0], tokens[0], path) if tokens[0] else [(None,) * 4]
        heads, layer = range(first, first + size_of(site.heads[0])), self.names.layers.get(branch)
        components = [
            Component(path, "head", layer, head, token, None, *place)
            for head, (token, *place) in product(heads, places)
        ]
        return _apart(components, readings, branch, order)

    def _token_places(self, site: Site, term: Term, tokens: Indices, path: str) -> list[Place]:
        """For each token entry: its number in the layer's own sequence, its cell on the layer's grid, and its time."""
        assert isinstance(site.source, fx.Node)
        channels = [place for place, axis in enumerate(term.axes) if set(axis.indices) & term.channel]
        grid = cells(self.graph, site.source, channels)
        if grid is not None:
            self.grids[path] = grid
        else:
            node = lost(self.graph, site.source)
            self.unplaced[path] = f"{operation(node)} in {self.graph.module(node) or 'the model'} ({line_of(node)})"
        places: list[Place] = []
        for number in _numbers(term, tokens):
            cell = grid.cells[number] if grid is not None and number < len(grid.cells) else -1
            if grid is None or cell < 0:
                places.append((number, None, None, None))
            else:
                places.append((number, *divmod(cell, grid.width), grid.times[number] if grid.times else None))
        return places

    def _sources(self, branch: Branch, path: str, sites: Sequence[Site], beside: bool, order: tuple[int, int]) -> Piece:
        """A part of a branch that is not attention."""
        layer, kind = self.names.layers[branch], self.names.kind(branch, sites if beside else None)
        attends = any(site.attention for site in branch.sites)
        if (attends or beside) and path == self.names.paths[branch] and (attends or sites[0].role == "read"):
            kind = "conv" if branch.convolves else "linear"
            path = f"{path}.{kind}"
        only = sites[0] if len(sites) == 1 else None
        counts = {len(term.kept) for site in sites for term in site.terms}
        if branch.passed and len(counts) == 1 and 0 not in counts:
            readings = [reading_of(term, site.source, term.kept) for site in sites for term in site.terms]
            heads = range(size_of(sites[0].terms[0].kept))
            components = [Component(self.names.paths[branch], "head", layer, head) for head in heads]
            return _apart(components, readings, branch, order)
        if only and only.role == "source" and self.level in ("token", "neuron"):
            kept = [_pieces(term, only.source, neurons=self.level == "neuron") for term in only.terms]
            terms = list(zip(only.terms, kept, strict=True))
            if all(kept) and len({tuple(_numbers(term, indices)) for term, indices in terms}) == 1:
                readings = [reading_of(term, only.source, indices) for term, indices in terms]
                if self.level == "token":
                    places = self._token_places(only, *terms[0], path)
                    components = [Component(path, kind, layer, None, token, None, *place) for token, *place in places]
                else:
                    components = [Component(path, kind, layer, neuron=neuron) for neuron in range(size_of(kept[0]))]
                return _apart(components, readings, branch, order)
        return self._whole(path, kind, sites, branch, order)

    def _whole(self, path: str, kind: Kind, sites: Sequence[Site], branch: Branch, order: tuple[int, int]) -> Piece:
        """One component of all that is read at these sites."""
        readings = [reading_of(term, site.source) for site in sites for term in site.terms]
        return Piece((Component(path, kind, self.names.layers.get(branch)),), tuple(readings), branch, order)


def _apart(
    components: Sequence[Component], readings: Sequence[Reading], branch: Branch, order: tuple[int, int]
) -> Piece:
    """Components that each have an entry of what is kept."""
    shapes = {tuple(index.size for index in reading.kept) for reading in readings}
    return Piece(tuple(components), tuple(readings), branch, order, shapes.pop() if len(shapes) == 1 else ())


def _distinct(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The same pieces, renamed where two of their components would share a name."""
    taken: set[str] = set()
    for piece in pieces:
        number, renamed = 0, piece
        while any(str(component) in taken for component in renamed.components):
            number += 1
            renamed = replace(
                piece, components=tuple(replace(part, path=f"{part.path}.{number}") for part in piece.components)
            )
        taken.update(str(component) for component in renamed.components)
        yield renamed


def _pieces(term: Term, source: fx.Node | Constant, *, neurons: bool) -> Indices:
    """The indices of a value's channels, or of its positions."""
    own = (index for index in dict.fromkeys(term.operand(source).indices) if index is not BATCH)
    return tuple(index for index in own if (index in term.channel) == neurons)


def _tokens(term: Term, own: Indices) -> Indices:
    """The token indices at an attention's values: all but the images, the channels and the heads."""
    indices = dict.fromkeys(index for axis in term.axes for index in axis.indices)
    return tuple(index for index in indices if index is not BATCH and index not in term.channel and index not in own)


def _numbers(term: Term, tokens: Indices) -> list[int]:
    """The flat place of each token entry among all positions of the value (of one image)."""
    lengths, positions = [], []
    for axis in term.axes:
        own = replace(axis, indices=tuple(index for index in axis.indices if index is not BATCH))
        if set(own.indices) & set(tokens) or (own.take is not None and not own.indices):
            lengths.append(own.extent.size)
            positions.append(own.positions())
    grid = np.meshgrid(*positions, indexing="ij")
    return np.ravel_multi_index([part.ravel() for part in grid], lengths).tolist() if positions else [0]
