"""The reverse walk: from the representation back along the trunk, into every branch, to the places where
contributions are read. Read this file first; the others explain its words.

A model's representation z is linear in what its branches write, once a few statistics are held at their values. So the
walk starts at z with the identity, and hands a *pending map* (how a value still reaches z) from node to node, last
operation first:

    z = norm(x1)             the map of x1: centre, times 1/std (held), times the norm's weight
    x1 = x0 + f(x0)          a branch: f's output and x0 get the same map; f(x0) is walked in a scope of its own
    f = fc2(gelu(fc1(x0)))   through fc2 the map gains a matrix; gelu is not linear: the MLP's contribution is read here
    x0 = patches(images)     nothing residual lies below: the embedding is read here

How one operation hands on a map stands in the table of operations (`operations/`), which additions have a branch and
which factor of a product is held in `structure/`. The walk names no operation and no model. It decides only where to
stop:

* where branches are added, each gets a scope of its own, and is not followed past the point where it reads the trunk;
* at an operation that is not linear (inside a branch: its MLP or convolution; on the trunk: what lies below is one
  component);
* at an attention's output, whose heads are components; at token level the map goes on through the held weights;
* where nothing residual lies below: the embedding; and at every constant: the biases.

Where a layer reads another stream only by attention (class attention, attention pooling), that attention is held and
passed through (`passing.py`).
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import zip_longest

from torch import Tensor, fx

from unweave.adjoint.merge import merged as merged_terms
from unweave.adjoint.operand import BATCH, Axis, Constant, Irregular, Operand, Runtime, fresh
from unweave.adjoint.term import Term
from unweave.decomposition.branches import FREEZE, Branch, Lump, Role, Site, Walk
from unweave.decomposition.heads import agreed, heads_of, is_merged, keys_of, laid_apart
from unweave.decomposition.passing import divided, passes
from unweave.graph.graph import Graph, arguments, extents_of, line_of, operation
from unweave.operations.table import Row, find, handed, missing, row
from unweave.structure.residual import Paths, Residual

TERM_LIMIT = 64
"""Summands of one node's pending map beyond which the walk stops there."""


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
        *regions, dim = (fresh(extent.size) for extent in extents_of(self.graph.output)[1:])
        axes = tuple(Axis(indices) for indices in ((BATCH,), *regions, dim))
        out = tuple(index for axis in axes[1:] for index in axis.indices)
        start = Term(axes, (), out, channel=frozenset(dim))
        self._push(self.graph.output, self.root, start)
        while self.queue:
            _, node = heapq.heappop(self.queue)
            scopes = self.pending.pop(node)
            for branch in sorted(scopes, key=lambda branch: -len(branch.reads)):  # the innermost first
                terms = merged_terms(scopes[branch])
                if branch.passed and branch.residual and branch.residual.read is node and branch.parent in scopes:
                    # what a class attention reads of tokens that have no path of their own goes on with the trunk
                    terms, beyond = divided(terms, scopes[branch.parent])
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
        residuals = self.paths.residuals.get(node, ())
        if node in branch.reads:
            branch.sites.append(Site("read", node, anchored, node))
        elif branch is self.root and not self.paths.has_residual(node) and node not in self.paths.shortcuts:
            self._enter(node, anchored)
        elif len(terms) > TERM_LIMIT:
            self._end(node, branch, anchored, f"the pending map has {len(terms)} summands here")
        elif residuals and not (branch.residual and all(self.paths.relays(residual) for residual in residuals)):
            self._split(residuals, branch, terms)
        else:
            self._pass(node, branch, anchored)

    def _enter(self, node: fx.Node, terms: tuple[Term, ...]) -> None:
        """Where nothing residual lies below: what enters the stream, unless it holds more than a stem."""
        if not self.paths.has_residual(self.graph.output):
            reason = "the model has no residual stream: its output is one component"
        else:
            reason = self.paths.swallowed(node)
        self.root.sites.append(Site("lumped" if reason else "embed", node, terms, node))
        if reason:
            self._lump(node, self.root, reason)

    def _split(self, residuals: tuple[Residual, ...], branch: Branch, terms: tuple[Term, ...]) -> None:
        """Where branches are added: the trunk goes on in its scope, each branch in one of its own."""
        node = residuals[0].node
        scopes = {residual.branch: Branch(residual, branch) for residual in residuals}
        self.branches += scopes.values()
        for source, term in self._handed(node, tuple(term.unanchored() for term in terms)):
            if isinstance(source, fx.Node) and source in scopes:
                scopes[source].entry += (term,)
                self._push(source, scopes[source], replace(term, kept=()))
            elif isinstance(source, fx.Node) and (
                self.graph.image_dependent(source) or source in {residual.trunk for residual in residuals}
            ):
                for scope in scopes.values():
                    scope.trunk += (term,)
                self._push(source, *self._scoped(source, branch, term))
            else:
                self._constant(source, branch, term, node)

    def _pass(self, node: fx.Node, branch: Branch, terms: tuple[Term, ...]) -> None:
        """Hands the map on to the inputs, or stops where there is no way on."""
        known = find(node) and self.paths.row(node)
        if known is None or known.kind == "source":
            if self.freeze and self._is_gate(node, known, branch):
                self._slope(node, branch, terms)
            else:
                self._end(node, branch, terms, self._reason(node, known, branch))
            return
        live, factors = self.paths.live(node), self.paths.factors(node)
        if self.paths.is_attention(node) and live is not None:
            through = self._attend(node, branch, terms, live)
            if through is None:
                return
            terms = through
        elif len(factors) > 1 and live is None:
            self._end(node, branch, terms, "a product of two values that both vary; neither is a gate")
            return
        try:
            reads = list(self._handed(node, terms))
        except Irregular as reason:
            self._end(node, branch, terms, str(reason), loud=True)
            return
        self.fired[node] = known
        if branch.projection is None and len(factors) < 2 and known.contracts:
            branch.projection = node
        branch.convolves |= convolves(node)
        for source, term in reads:
            if isinstance(source, Constant) or not self.graph.image_dependent(source):
                self._constant(source, branch, term, node)
            else:
                self._push(source, *self._scoped(source, branch, term))

    def _handed(self, node: fx.Node, terms: tuple[Term, ...]) -> Iterator[tuple[fx.Node | Constant, Term]]:
        """The pending maps of a node's inputs, by its rule."""
        return handed(node, self.graph, self.paths.live(node), terms)

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
        terms = laid_apart(self.paths, node, terms)
        try:
            values = tuple(term for _, term in self._handed(node, terms))
        except Irregular:
            values = ()
        split = agreed(terms, [heads_of(self.paths, node, live, *pair) for pair in zip_longest(terms, values)])
        if self.passing and values and passes(self.paths, node, branch, terms):
            branch.passed, branch.attention = True, node
            if branch.residual is None:
                return terms
            # what of it reads the branch's own trunk stays split by head
            return tuple(replace(term, kept=heads) for term, heads in zip(terms, split, strict=True))
        keys = keys_of(self.paths, node, live, terms[0], split[0])
        merged = is_merged(self.paths, node, terms[0], split[0])
        branch.sites.append(Site("attention", node, terms, node, node, split, keys, merged))
        if values:
            kept = tuple(replace(term, kept=heads) for term, heads in zip(terms, split, strict=True))
            inner, tokens = self._values(node, kept)
            heads = tuple(term.kept for term in tokens)
            read = tuple(replace(term, kept=()) for term in tokens)
            branch.sites.append(Site("tokens", inner, read, node, node, heads, keys))
        return None

    def _values(self, node: fx.Node, terms: tuple[Term, ...]) -> tuple[fx.Node, tuple[Term, ...]]:
        """The tokens' values of an attention, through all its products (linear attention is `q (k^T v)`), with what is
        kept of each term: its heads.
        """
        products = [node, *self.paths.weighed(node)]
        value = node
        while products:
            products = [product for product in products if product is not value]
            try:
                reads = list(self._handed(value, terms))
            except Irregular:
                break
            value = self.paths.follows(value)[0]
            terms = tuple(term for source, term in reads if source is value)
        return value, terms

    def _is_gate(self, node: fx.Node, known: Row | None, branch: Branch) -> bool:
        """Whether a nonlinearity on the trunk can be held at its slope: it makes each entry from one of its input."""
        inputs = self.graph.varying(node)
        alone = branch is self.root and known is not None and known.elementwise and len(inputs) == 1
        return alone and extents_of(inputs[0]) == extents_of(node)

    def _slope(self, node: fx.Node, branch: Branch, terms: tuple[Term, ...]) -> None:
        """A nonlinearity on the trunk as a gate: `f(x) = x * (f(x) / x)`, the quotient held."""
        source = self.graph.varying(node)[0]

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
        if source in branch.reads:
            branch.sites.append(Site("read", held, (term.read(axes).unanchored(),), via))
            return
        term = replace(term.read(axes).unanchored(), kept=())
        known = row(via)
        shaped = sum(size > 1 for size in held.shape) > 1 and known.elementwise and not known.product
        token = shaped or (known.moves and len(held.shape) > 1)
        embeds = branch is self.root and token  # a token or positions that enter the trunk later than the patches
        branch.sites.append(Site("embed" if embeds else "bias", held, (term,), via))

    def _end(self, node: fx.Node, branch: Branch, terms: tuple[Term, ...], reason: str, *, loud: bool = False) -> None:
        """No way on: inside a branch this is its nonlinearity, on the trunk a lump."""
        expected = (known := find(node)) is not None and (known.kind == "source" or known.fixed or known.product)
        if branch is self.root or loud or not expected:
            self._lump(node, branch, reason)
        embeds = branch is self.root and not self.paths.has_residual(node)
        role: Role = "embed" if embeds else "lumped" if branch is self.root else "source"
        branch.sites.append(Site(role, node, terms, node))

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

    def _reason(self, node: fx.Node, known: Row | None, branch: Branch) -> str:
        if node.op != "call_function":
            return "the walk reached the images"
        if known is None:
            return "it has no rule"
        return "it is not linear" + (f"; {FREEZE}" if self._is_gate(node, known, branch) else "")


def convolves(node: fx.Node) -> bool:
    """Whether an operation mixes neighbouring positions."""
    if row(node).mixes != "window":
        return False
    return not row(node).affine or any(extent.size > 1 for extent in extents_of(arguments(node)["weight"])[2:])
