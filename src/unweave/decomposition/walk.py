"""The reverse walk: from the representation back along the trunk, into every branch, to the places where
contributions are read.

The walk knows no operations and no models. It hands the pending map from node to node by the rule table, and decides
only where to stop:

* at a residual addition the branch gets a scope of its own, and is not followed past the point where it reads the
  trunk;
* at an operation that is not linear (inside a branch: its MLP or convolution; on the trunk: what lies below is one
  component);
* at the attention's own output, whose batch-like axes are the heads; at token level the map goes on through the
  frozen probabilities;
* where nothing residual lies below: the embedding; and at every constant: the biases.

Where a layer reads another stream only by attention (class attention, attention pooling), that attention is frozen
and passed through.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Literal

from torch import Tensor, fx

from unweave.adjoint.merge import merged
from unweave.adjoint.pending import BATCH, Axis, Constant, Indices, Irregular, Operand, Runtime, Term, fresh
from unweave.graph.capture import Graph, arguments, extents_of, line_of, operation
from unweave.operations.table import Row, Step, find, missing, row
from unweave.structure.residual import Paths, Residual

TERM_LIMIT = 64
"""Summands of one node's pending map beyond which the walk stops there."""

Role = Literal["attention", "tokens", "source", "read", "embed", "lumped", "bias"]


@dataclass(frozen=True)
class Site:
    """A place where contributions are read: `sum over terms` of the pending map, applied to a value.

    Attributes:
        role: `attention` (the attention's output, one piece for each head), `tokens` (the same attention, at its
            values), `source` (the end of an MLP or convolution), `read` (where a branch without any nonlinearity
            reads the trunk), `embed`, `lumped`, `bias`.
        source: The value: a node, or a constant.
        terms: The pending map there.
        via: The operation by which the walk came here.
        attention: The attention layer of the site, if it belongs to one.
        heads: For each term, the indices of that attention's heads.
    """

    role: Role
    source: fx.Node | Constant
    terms: tuple[Term, ...]
    via: fx.Node
    attention: fx.Node | None = None
    heads: tuple[Indices, ...] = ()


@dataclass(eq=False)
class Branch:
    """What one residual addition adds; the root (`residual` None) is the trunk itself.

    Attributes:
        residual: The addition.
        parent: The branch that this one lies in.
        entry: The pending map of the branch's output.
        trunk: The pending map of the trunk's operand beside it.
        sites: Where its contributions are read, in the order of the walk.
        projection: The last operation of the branch with a weight matrix.
        passed: Whether the walk went on to another stream through an attention of this branch.
        attention: That attention.
        convolves: Whether a spatial convolution was passed on the way.
    """

    residual: Residual | None
    parent: Branch | None
    entry: tuple[Term, ...] = ()
    trunk: tuple[Term, ...] = ()
    sites: list[Site] = field(default_factory=list)
    projection: fx.Node | None = None
    passed: bool = False
    attention: fx.Node | None = None
    convolves: bool = False


@dataclass(frozen=True)
class Lump:
    """Why what lies below an operation is one component.

    Attributes:
        operation, module, line: Where.
        reason: Why.
        rule: The rule to write, where that is what is missing.
        inside: Whether it lies on the trunk, or inside a branch.
    """

    operation: str
    module: str
    line: str
    reason: str
    rule: str = ""
    inside: Literal["trunk", "branch"] = "trunk"


@dataclass(frozen=True)
class Walk:
    """What the walk found.

    Attributes:
        graph, paths: The model.
        branches: The root first, then every branch, in the order of the walk.
        lumps: Operations that could not be followed.
        fired: Each operation that was passed, with its rule, in the order of the walk.
    """

    graph: Graph
    paths: Paths
    branches: tuple[Branch, ...]
    lumps: tuple[Lump, ...]
    fired: tuple[tuple[fx.Node, Row], ...]


def walk(graph: Graph, *, passing: bool = True, freeze: bool = False) -> Walk:
    """Walks back from the representation.

    Args:
        graph: The captured model.
        passing: Whether to pass through an attention by which alone another stream is read.
        freeze: Whether to pass nonlinearities on the trunk as `x * frozen slope`.
    """
    return _Walker(graph, passing, freeze).run()


class _Walker:
    def __init__(self, graph: Graph, passing: bool, freeze: bool) -> None:
        self.graph, self.paths, self.passing, self.freeze = graph, Paths(graph), passing, freeze
        self.root = Branch(None, None)
        self.branches = [self.root]
        self.lumps: list[Lump] = []
        self.fired: dict[fx.Node, Row] = {}
        self.pending: dict[fx.Node, dict[Branch, list[Term]]] = defaultdict(lambda: defaultdict(list))
        self.queue: list[tuple[int, fx.Node]] = []

    def run(self) -> Walk:
        dim = extents_of(self.graph.output)[1].size
        out = fresh(dim)
        start = Term((Axis((BATCH,)), Axis(out)), (), out, channel=frozenset(out))
        self._push(self.graph.output, self.root, start)
        while self.queue:
            _, node = heapq.heappop(self.queue)
            scopes = self.pending.pop(node)
            for branch in sorted(scopes, key=_depth, reverse=True):
                terms = merged(scopes[branch])
                if branch.passed and branch.residual and branch.residual.read is node and branch.parent in scopes:
                    # what a class attention reads of tokens that have no path of their own goes on with the trunk
                    terms, beyond = _own_positions(terms, scopes[branch.parent])
                    scopes[branch.parent] += [replace(term, kept=(), anchor=None) for term in beyond]
                if terms:
                    self._visit(node, branch, terms)
        return Walk(self.graph, self.paths, tuple(self.branches), tuple(self.lumps), tuple(self.fired.items()))

    def _push(self, node: fx.Node, branch: Branch, term: Term) -> None:
        if node not in self.pending:
            heapq.heappush(self.queue, (-self.graph.order[node], node))
        self.pending[node][branch].append(term)

    def _visit(self, node: fx.Node, branch: Branch, terms: tuple[Term, ...]) -> None:
        anchored = tuple(term if term.anchor else replace(term, anchor=Operand(node, term.axes)) for term in terms)
        if any(own.residual and own.residual.read is node for own in _chain(branch)):
            self._stop("read", node, branch, anchored)
        elif branch is self.root and not self.paths.has_residual(node) and node not in self.paths.shortcuts:
            self._stop("embed" if self.paths.has_residual(self.graph.output) else "lumped", node, branch, anchored)
            if not self.paths.has_residual(self.graph.output):
                self._lump(node, branch, "the model has no residual stream: its output is one component")
        elif len(terms) > TERM_LIMIT:
            self._end(node, branch, anchored, f"the pending map has {len(terms)} summands here")
        elif (residual := self.paths.residuals.get(node)) and not (branch.residual and self.paths.relays(residual)):
            self._split(residual, branch, terms)
        else:
            self._pass(node, branch, anchored)

    def _split(self, residual: Residual, branch: Branch, terms: tuple[Term, ...]) -> None:
        """At a residual addition: the trunk goes on in its scope, the branch in one of its own."""
        own = Branch(residual, branch)
        self.branches.append(own)
        for node, term in self._reads(residual.node, tuple(term.unanchored() for term in terms), None):
            if node is residual.branch:
                own.entry += (term,)
                self._push(residual.branch, own, replace(term, kept=()))
            elif isinstance(node, fx.Node):
                own.trunk += (term,)
                self._push(node, *self._scoped(node, branch, term))

    def _pass(self, node: fx.Node, branch: Branch, terms: tuple[Term, ...]) -> None:
        """Hands the map on to the inputs, or stops where there is no way on."""
        rule = find(node)
        if rule is None or rule.kind == "source":
            if rule and self.freeze and branch is self.root and not rule.softmax and len(self.paths.inputs(node)) == 1:
                self._slope(node, branch, terms)
            else:
                self._end(node, branch, terms, self._reason(node, rule))
            return
        live, varying = self.paths.live(node), self.paths.varying(node)
        if self.paths.is_attention(node) and live is not None:
            on = self._attend(node, branch, terms, live)
            if on is None:
                return
            terms = on
        elif row(node).product and varying > 1 and live is None:
            self._end(node, branch, terms, "a product of two values that both vary; neither is a gate")
            return
        try:
            reads = list(self._reads(node, terms, live))
        except Irregular as reason:
            self._end(node, branch, terms, str(reason), loud=True)
            return
        self.fired[node] = rule
        if branch.projection is None and varying == 1 and rule.contracts:
            branch.projection = node
        branch.convolves |= convolves(node)
        for source, term in reads:
            if isinstance(source, Constant) or not self.graph.image_dependent(source):
                self._constant(source, branch, term, node)
            else:
                self._push(source, *self._scoped(source, branch, term))

    def _reads(
        self, node: fx.Node, terms: tuple[Term, ...], live: fx.Node | None
    ) -> Iterator[tuple[fx.Node | Constant, Term]]:
        """The pending maps of a node's inputs, by its rule. An earlier layout of the same numbers stands for them only
        through operations that keep every entry.
        """
        reads, step = row(node).reads, Step(node, self.graph, live, arguments(node))
        for term in terms if reads is not None else ():
            for source, read in reads(step, term):  # type: ignore[misc]
                yield source, read if row(node).relayout else read.unanchored()

    def _scoped(self, source: fx.Node, branch: Branch, term: Term) -> tuple[Branch, Term]:
        """The scope that a node belongs to: a value that is not computed from what the branch reads belongs to the
        scope outside.
        """
        while branch.residual is not None and not self.graph.depends(source, branch.residual.read):
            branch.passed = True
            assert branch.parent is not None
            branch, term = branch.parent, replace(term, kept=())
        return branch, term

    def _attend(self, node: fx.Node, branch: Branch, terms: tuple[Term, ...], live: fx.Node) -> tuple[Term, ...] | None:
        """At an attention layer: its heads are components, and None is returned; or the terms with which to pass
        through it.
        """
        try:
            values = tuple(term for _, term in self._reads(node, terms, live))
        except Irregular:
            values = ()
        split = tuple(_heads(node, *pair) for pair in zip_longest(terms, values))
        if self.passing and values and self._elsewhere(node, branch, terms, live):
            branch.passed, branch.attention = True, node
            if branch.residual is None:
                return terms
            # what of it reads the branch's own trunk stays split by head
            return tuple(replace(term, kept=own) for term, own in zip(terms, split, strict=True))
        branch.sites.append(Site("attention", node, terms, node, node, split))
        if values:
            branch.sites.append(Site("tokens", live, values, node, node, split))
        return None

    def _elsewhere(self, node: fx.Node, branch: Branch, terms: tuple[Term, ...], live: fx.Node) -> bool:
        """Whether an attention reads a stream that has no other way on."""
        reads = [own.residual.read for own in _chain(branch) if own.residual]
        if branch.residual is None or self.paths.bypasses(live, reads):
            return True
        try:
            return (_selects(node, live, terms) and self._leaves(branch)) or self._alone(branch)
        except Irregular:
            return False  # the trunk beside it cannot be followed either

    def _leaves(self, branch: Branch) -> bool:
        """Whether the trunk beside a branch hands on only some of the positions that the branch may read."""
        assert branch.residual is not None
        read = branch.residual.read
        reached = next((terms for node, terms in self._descent(branch) if node is read), [])
        for place, extent in enumerate(extents_of(read)):
            channel = any(set(term.axes[place].indices) & term.channel for term in reached)
            if reached and not extent.batch and not channel and len(_positions(reached, place)) < extent.size:
                return True
        return False

    def _alone(self, branch: Branch) -> bool:
        """Whether all that the trunk beside a branch hands on is a token that is still a weight, while the branch
        reads a residual stream as well: that stream has no way on but this attention.
        """
        residual = branch.residual
        if residual is None or not self.paths.has_residual(residual.read):
            return False
        return all(
            node.op == "call_function" and node not in self.paths.residuals and row(node).linear
            for node, _ in self._descent(branch)
        )

    def _descent(self, branch: Branch) -> Iterator[tuple[fx.Node, list[Term]]]:
        """The trunk beside a branch, followed down by the rules: image-dependent nodes, last first, with what of them
        is handed on.
        """
        assert branch.residual is not None
        pending: dict[fx.Node, list[Term]] = {branch.residual.trunk: list(branch.trunk)}
        while pending:
            node = max(pending, key=self.graph.order.__getitem__)
            terms = pending.pop(node)
            yield node, terms
            if not row(node).linear:
                continue
            for source, term in self._reads(node, tuple(terms), self.paths.live(node)):
                if isinstance(source, fx.Node) and self.graph.image_dependent(source):
                    pending.setdefault(source, []).append(term)

    def _slope(self, node: fx.Node, branch: Branch, terms: tuple[Term, ...]) -> None:
        """A nonlinearity on the trunk as a gate: `f(x) = x * (f(x) / x)`, the quotient held."""
        source = self.paths.inputs(node)[0]

        def slope(value: Tensor, result: Tensor, _: object) -> Tensor:
            return (result / value).nan_to_num(0.0, 0.0, 0.0)

        factor = Runtime("slope", node, (source, node), slope)
        self._lump(node, branch, "passed as a gate x * (f(x) / x) held at its value: an approximation of another kind")
        for term in terms:
            moved = term.unanchored().times(Operand(factor, term.axes))
            self._push(source, *self._scoped(source, branch, moved))

    def _constant(self, source: fx.Node | Constant, branch: Branch, term: Term, via: fx.Node) -> None:
        held = source if isinstance(source, Constant) else Constant.of(source)
        axes = tuple(Axis() if axis.extent.batch else axis for axis in term.axes)
        if any(own.residual and own.residual.read is source for own in _chain(branch)):
            self._stop("read", held, branch, (replace(term.read(axes), anchor=None),), via)
            return
        term = replace(term.read(axes), anchor=None, kept=())
        token = operation(via) in ("aten.cat", "aten.stack", "aten.expand") or (
            operation(via) in ("aten.add", "aten.sub") and len(held.shape) > 1
        )
        embeds = branch is self.root and token  # a token or positions that enter the trunk later than the patches
        self._stop("embed" if embeds else "bias", held, branch, (term,), via)

    def _stop(
        self,
        role: Role,
        source: fx.Node | Constant,
        branch: Branch,
        terms: tuple[Term, ...],
        via: fx.Node | None = None,
    ) -> None:
        branch.sites.append(Site(role, source, terms, via if via is not None else source))  # type: ignore[arg-type]

    def _end(self, node: fx.Node, branch: Branch, terms: tuple[Term, ...], reason: str, *, loud: bool = False) -> None:
        """No way on: inside a branch this is its nonlinearity, on the trunk a lump."""
        known = (rule := find(node)) is not None and (rule.kind == "source" or bool(rule.product))
        if branch is self.root or loud or not known:
            self._lump(node, branch, reason)
        embeds = branch is self.root and not self.paths.has_residual(node)
        self._stop("embed" if embeds else "lumped" if branch is self.root else "source", node, branch, terms)

    def _lump(self, node: fx.Node, branch: Branch, reason: str) -> None:
        unknown = node.op == "call_function" and find(node) is None
        where = "trunk" if branch is self.root else "branch"
        self.lumps.append(
            Lump(
                operation(node) if node.op == "call_function" else "the images themselves",
                self.graph.module(node),
                line_of(node),
                reason,
                missing(node) if unknown and hasattr(node.target, "_schema") else "",
                where,  # type: ignore[arg-type]
            )
        )

    def _reason(self, node: fx.Node, rule: Row | None) -> str:
        if node.op != "call_function":
            return "the walk reached the images"
        return "it has no rule" if rule is None else "it is not linear"


def _heads(node: fx.Node, term: Term, value: Term | None) -> Indices:
    """The head indices of an attention's output: its batch-like axes that come from the channels of the projection
    after it.
    """
    batch = [index for axis in term.axes[:-2] for index in axis.indices]
    if value is not None and operation(node) != "aten.scaled_dot_product_attention":
        weights, values = set(value.factors[-1].indices), set(value.indices)
        batch = [index for index in term.indices if index in weights and index in values]
    return tuple(index for index in batch if index in term.channel)


def _selects(node: fx.Node, live: fx.Node, terms: Sequence[Term]) -> bool:
    """Whether an attention writes to fewer tokens than it reads, all of which matter, as a class attention does."""
    rows, keys = extents_of(node)[-2], extents_of(live)[-2]
    return rows.size < keys.size and all(term.axes[-2].extent == rows and term.axes[-2].take is None for term in terms)


def _positions(terms: Sequence[Term], place: int) -> set[int]:
    """The positions along an axis that any of the terms reads."""
    return {int(at) for term in terms for at in term.axes[place].positions()}


def _own_positions(terms: Sequence[Term], trunk: Sequence[Term]) -> tuple[tuple[Term, ...], tuple[Term, ...]]:
    """A branch's reading of the trunk, split into the positions that the trunk itself hands on and those that it does
    not.
    """
    own: list[Term] = []
    beyond: list[Term] = []
    for term in terms:
        for place, axis in enumerate(term.axes):
            if axis.extent.batch or set(axis.indices) & term.channel:
                continue
            covered = _positions(trunk, place)
            if _positions([term], place) - covered:
                for part, inside in ((own, True), (beyond, False)):
                    places = [at if (at in covered) == inside else None for at in range(axis.extent.size)]
                    moved = term.taken(place, places, axis.extent.size)
                    part += [moved] if moved is not None else []
                break
        else:
            own.append(term)
    return tuple(own), tuple(beyond)


def _depth(branch: Branch) -> int:
    return sum(1 for _ in _chain(branch))


def _chain(branch: Branch | None) -> Iterator[Branch]:
    while branch is not None:
        yield branch
        branch = branch.parent


def convolves(node: fx.Node) -> bool:
    """Whether an operation mixes neighbouring positions."""
    if row(node).mixes != "window":
        return False
    return not row(node).affine or any(extent.size > 1 for extent in extents_of(arguments(node)["weight"])[2:])
