"""From the places where contributions are read to named components.

A piece is one contraction whose result has one column for each of its components: the heads of an attention, the
    tokens or neurons of an MLP, or
a single whole. Names are the model's own module paths; nothing here looks inside them except for the numbers that
count blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from torch import fx

from unweave.adjoint.pending import BATCH, Constant, Indices, Operand, Term, narrowed, size_of
from unweave.components import Component, Grid, Kind, Level
from unweave.decomposition.branches import Branch, Site, Walk
from unweave.decomposition.walk import convolves
from unweave.structure.labels import cells


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


def pieces_of(walk: Walk, level: Level) -> tuple[tuple[Piece, ...], dict[str, Grid]]:
    """Every component of a model at a level, in execution order, and the token grid of each path where it is known."""
    return _Namer(walk, level).run()


def reading_of(term: Term, source: fx.Node | Constant, kept: Indices = (), sign: float = 1.0) -> Reading:
    """The contraction of a value with its pending map."""
    return Reading((term.operand(source), *term.factors), kept, term.out, term.scale * sign)


class _Namer:
    def __init__(self, walk: Walk, level: Level) -> None:
        self.walk, self.level, self.graph = walk, level, walk.graph
        self.children = {id(branch.parent) for branch in walk.branches if branch.parent}
        self.layers = self._layers()
        self.paths = self._paths()
        self.grids: dict[str, Grid] = {}

    def run(self) -> tuple[tuple[Piece, ...], dict[str, Grid]]:
        found: list[Piece] = []
        for branch in self.walk.branches:
            found += self._trunk(branch) if branch.residual is None else self._branch(branch)
        return tuple(sorted(found, key=lambda piece: piece.order)), self.grids

    # -- pieces ----------------------------------------------------------------------------------------------------

    def _trunk(self, root: Branch) -> Iterable[Piece]:
        embed = [site for site in root.sites if site.role == "embed"]
        if embed:
            first = min((self.graph.order[s.source] for s in embed if isinstance(s.source, fx.Node)), default=0)
            yield self._whole("embed", "embed", embed, root, (min(first, 0), 0))
        taken: set[str] = set()
        for site in root.sites:
            if site.role == "lumped":
                path = self.graph.module(site.via) or "trunk"
                if site.via is self.graph.output and not self.walk.paths.has_residual(site.via):
                    path = "output"
                while path in taken:
                    path += "_"
                taken.add(path)
                yield self._whole(path, "lumped", [site], root, (self.graph.order[site.via], 0))
        yield from self._attention(root, None)
        by_module: dict[str, list[Site]] = {}
        for site in root.sites:
            if site.role == "bias":
                by_module.setdefault(self.graph.module(site.via) or "trunk", []).append(site)
        for path, sites in by_module.items():
            yield self._whole(path, "bias", sites, root, (max(self.graph.order[s.via] for s in sites), 9))

    def _branch(self, branch: Branch) -> Iterable[Piece]:
        assert branch.residual is not None
        path, layer = self.paths[branch], self.layers[branch]
        order = self.graph.order[branch.residual.node]
        bias = [site for site in branch.sites if site.role == "bias"]
        sources = [site for site in branch.sites if site.role in ("source", "read")]
        attentive = any(site.role == "attention" for site in branch.sites)
        several = len({site.source for site in sources if site.role == "source"}) > 1
        simple = not branch.passed and id(branch) not in self.children
        found: list[Piece] = []
        if simple and (self.level == "layer" or not (attentive or several or self.level in ("token", "neuron"))):
            readings = [reading_of(term, branch.residual.branch) for term in branch.entry]
            readings += [reading_of(term, site.source, sign=-1.0) for site in bias for term in site.terms]
            kind: Kind = "attn" if attentive else self._kind(branch)
            found.append(Piece((Component(path, kind, layer),), tuple(readings), branch, (order, 0)))
        else:
            found += self._attention(branch, layer)
            groups: dict[str, list[Site]] = {}
            for site in sources:
                own = self._own_path(site) if several and site.role == "source" else path
                groups.setdefault(own, []).append(site)
            for own, sites in groups.items():
                at = (order, self.graph.order[sites[0].via])
                found.append(self._sources(branch, own, sites, attentive, layer, at))
        yield from found
        paths = sorted({piece.components[0].path for piece in found}, key=len, reverse=True)
        shifts: dict[str, list[Site]] = {}
        for site in bias:  # with the part of the branch whose module it is in
            module = self.graph.module(site.via)
            shifts.setdefault(next((own for own in paths if module.startswith(f"{own}.")), path), []).append(site)
        for own, sites in shifts.items():
            yield replace(
                self._whole(own, "bias", sites, branch, (order, order)), components=(Component(own, "bias", layer),)
            )

    def _own_path(self, site: Site) -> str:
        """The path of one of several nonlinear ends of a branch: the module around its activation."""
        assert isinstance(site.source, fx.Node)
        return self.graph.module(site.source).rpartition(".")[0] or self.graph.module(site.source)

    def _whole(self, path: str, kind: Kind, sites: Sequence[Site], branch: Branch, order: tuple[int, int]) -> Piece:
        readings = [reading_of(term, site.source) for site in sites for term in site.terms]
        return Piece((Component(path, kind),), tuple(readings), branch, order)

    def _attention(self, branch: Branch, layer: int | None) -> Iterable[Piece]:
        role = "tokens" if self.level == "token" else "attention"
        attentions = list(dict.fromkeys(site.attention for site in branch.sites if site.role == "attention"))
        for attention in attentions:
            assert attention is not None
            sites = [site for site in branch.sites if site.attention is attention]
            site = next((site for site in sites if site.role == role), sites[0])
            path = self.paths[branch] if branch.residual else self.graph.module(attention)
            if len(attentions) > 1:
                path = self.graph.module(attention)
            order = (
                self.graph.order[branch.residual.node if branch.residual else attention],
                self.graph.order[attention],
            )
            yield self._split(site, path, "head", layer, branch, order)

    def _split(
        self, site: Site, path: str, kind: Kind, layer: int | None, branch: Branch, order: tuple[int, int]
    ) -> Piece:
        """An attention in one component for each head (and token)."""
        first = site.terms[0]
        if site.role == "tokens":
            kept = [(own, _tokens(term, own)) for term, own in zip(site.terms, site.heads, strict=True)]
        else:
            kept = [(own, ()) for own in site.heads]
        if self.level == "layer":
            kept = [((), ())] * len(kept)
        readings = [
            reading_of(term, site.source, own_heads + tokens)
            for term, (own_heads, tokens) in zip(site.terms, kept, strict=True)
        ]
        own_heads, tokens = kept[0]
        count = size_of(own_heads)
        places = self._token_places(site, first, tokens, path) if tokens else [(None, None, None)]
        components = tuple(
            Component(
                path,
                "attn" if self.level == "layer" else kind,
                layer,
                None if self.level == "layer" else head,
                token,
                None,
                row,
                column,
            )
            for head, (token, row, column) in product(range(count), places)
        )
        return Piece(components, tuple(readings), branch, order, tuple(index.size for index in own_heads + tokens))

    def _token_places(
        self, site: Site, term: Term, tokens: Indices, path: str
    ) -> list[tuple[int | None, int | None, int | None]]:
        """For each token entry: its number in the layer's own sequence, and its cell on the layer's grid."""
        assert isinstance(site.source, fx.Node)
        numbers = _numbers(term, tokens)
        grid = cells(
            self.graph, site.source, [place for place, axis in enumerate(term.axes) if set(axis.indices) & term.channel]
        )
        if grid is not None:
            self.grids[path] = grid
        places: list[tuple[int | None, int | None, int | None]] = []
        for number in numbers:
            cell = grid.cells[number] if grid is not None and number < len(grid.cells) else -1
            places.append(
                (number, cell // grid.width, cell % grid.width)
                if grid is not None and cell >= 0
                else (number, None, None)
            )
        return places

    def _sources(
        self,
        branch: Branch,
        path: str,
        sites: Sequence[Site],
        attentive: bool,
        layer: int | None,
        order: tuple[int, int],
    ) -> Piece:
        """The part of a branch that is not attention."""
        kind = self._kind(branch)
        if (attentive or any(site.attention for site in branch.sites)) and path == self.paths[branch]:
            kind = "conv" if branch.convolves else "linear"
            path = f"{path}.{kind}"
        only = sites[0] if len(sites) == 1 else None
        kept_role = next((term.kept for site in sites for term in site.terms if term.kept), ())
        if (
            branch.passed
            and kept_role
            and all(len(term.kept) == len(kept_role) for site in sites for term in site.terms)
        ):
            readings = [reading_of(term, site.source, term.kept) for site in sites for term in site.terms]
            components = tuple(Component(self.paths[branch], "head", layer, head) for head in range(size_of(kept_role)))
            return Piece(components, tuple(readings), branch, order, tuple(index.size for index in kept_role))
        if only and only.role == "source" and self.level in ("token", "neuron"):
            kept = [_pieces(term, only.source, neurons=self.level == "neuron") for term in only.terms]
            terms = list(zip(only.terms, kept, strict=True))
            if all(kept) and len({tuple(_numbers(term, own)) for term, own in terms}) == 1:
                readings = [reading_of(term, only.source, own) for term, own in terms]
                if self.level == "token":
                    places = self._token_places(only, *terms[0], path)
                    components = tuple(
                        Component(path, kind, layer, None, token, None, row, column) for token, row, column in places
                    )
                else:
                    components = tuple(
                        Component(path, kind, layer, neuron=number) for number in range(size_of(kept[0]))
                    )
                return Piece(components, tuple(readings), branch, order, tuple(index.size for index in kept[0]))
        readings = [reading_of(term, site.source) for site in sites for term in site.terms]
        return Piece((Component(path, kind, layer),), tuple(readings), branch, order)

    def _kind(self, branch: Branch) -> Kind:
        nonlinear = any(site.role == "source" for site in branch.sites)
        return (
            "conv"
            if branch.convolves or any(self._convolved(site) for site in branch.sites)
            else "mlp"
            if nonlinear
            else "linear"
        )

    def _convolved(self, site: Site) -> bool:
        """Whether a source is computed by a spatial convolution inside its branch."""
        if site.role != "source" or not isinstance(site.source, fx.Node):
            return False
        branch = next(branch for branch in self.walk.branches if site in branch.sites)
        if branch.residual is None:
            return False
        return any(convolves(node) for node in self.walk.paths.between(branch.residual.read, site.source))

    # -- names -----------------------------------------------------------------------------------------------------

    def _paths(self) -> dict[Branch, str]:
        """The module path of every branch: what its source and its last projection share, with the kind where that
        names a whole block.
        """
        base: dict[Branch, str] = {}
        for branch in self.walk.branches:
            if branch.residual is None:
                continue
            nodes = [branch.attention] if branch.attention else []
            nodes += [site.attention or site.via for site in branch.sites if site.role == "attention"]
            nodes = nodes or [site.via for site in branch.sites if site.role in ("source", "read")][:1]
            nodes = [node for node in nodes if not (branch.residual and node is branch.residual.read)]
            nodes += [branch.projection] if branch.projection else []
            modules = [self.graph.module(node) for node in nodes if self.graph.module(node)]
            base[branch] = _shared(modules) if modules else self.graph.module(branch.residual.branch)
        named: dict[Branch, str] = {}
        for branch, path in sorted(base.items(), key=lambda item: not self._attentive(item[0])):
            others = [other for own, other in base.items() if own is not branch]
            parent, _, last = path.rpartition(".")
            if last.isdigit() and parent and not any(own == parent or own.startswith(f"{parent}.") for own in others):
                path = parent  # a numbered place in a container that holds this branch alone
            whole = not path or path.rpartition(".")[2].isdigit() or any(own.startswith(f"{path}.") for own in others)
            if whole or path in named.values():
                path = f"{path}.{'attn' if self._attentive(branch) else self._kind(branch)}".lstrip(".")
            while path in named.values():
                path += "_"
            named[branch] = path
        return named

    @staticmethod
    def _attentive(branch: Branch) -> bool:
        return branch.passed or any(site.attention for site in branch.sites)

    def _layers(self) -> dict[Branch, int]:
        """The ordinal of each branch's block: the innermost numbered module around its residual addition."""
        blocks: dict[str, int] = {}
        layers: dict[Branch, int] = {}
        ordered = sorted(
            (branch for branch in self.walk.branches if branch.residual),
            key=lambda branch: self.graph.order[branch.residual.node],  # type: ignore[union-attr]
        )
        for branch in ordered:
            assert branch.residual is not None
            parts = self.graph.module(branch.residual.node).split(".")
            while parts and not re.search(r"\d$", parts[-1]):
                parts.pop()
            block = ".".join(parts) or self.graph.module(branch.residual.node)
            layers[branch] = blocks.setdefault(block, len(blocks))
        return layers


def _shared(modules: Sequence[str]) -> str:
    parts = modules[0].split(".")
    for module in modules[1:]:
        other = module.split(".")
        length = 0
        while length < min(len(parts), len(other)) and parts[length] == other[length]:
            length += 1
        parts = parts[:length]
    return ".".join(parts)


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
