"""The residual stream, found from the graph alone: trunk and branches.

Where values are added (in any spelling: `a + b`, `a - b`, `lerp`, `addcmul`, a mean of a stack, a linear layer over a
concatenation), one of them may be a branch of another: the trunk is a linear image of some node, and the branch is
computed from that node by something with weights or a nonlinearity. So in `x + f(x)` and in `P x + f(x)`, and in
`(x + f(x)) + g(x)`, where both are branches of `x`. Two values that are both trunk and branch to each other are two
streams that meet; of these, one that reaches the node without weights is the trunk.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import fx

from unweave.graph.graph import Graph, arguments, extents_of, operation, reached
from unweave.structure.labels import floating, lengths
from unweave.structure.products import Products, remembered


@dataclass(frozen=True)
class Residual:
    """A branch that is added to the trunk.

    Attributes:
        node: Where it is added.
        trunk, branch: What is added there.
        read: The node of the trunk that the branch is computed from.
    """

    node: fx.Node
    trunk: fx.Node
    branch: fx.Node
    read: fx.Node


class Paths(Products):
    """The paths of a graph: where branches leave the trunk and come back, and what is followed on the way."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.residuals  # noqa: B018  (in execution order, so that what is asked later is asked of few nodes)

    @cached_property
    def residuals(self) -> dict[fx.Node, tuple[Residual, ...]]:
        """Every node where branches are added to the trunk, with its branches."""
        return {node: branches for node in self.graph.nodes if (branches := self._branches(node))}

    @cached_property
    def _residual_mask(self) -> int:
        return sum(1 << self.graph.order[node] for node in self.residuals)

    def adds_branches(self, node: fx.Node) -> bool:
        """Whether branches are added to the residual stream at a node."""
        return bool(self._branches(node))

    def has_residual(self, node: fx.Node) -> bool:
        """Whether a branch is added to the trunk at or below this node."""
        return bool(self.graph.ancestors[node] & self._residual_mask)

    @cached_property
    def shortcuts(self) -> frozenset[fx.Node]:
        """The nodes of projected shortcuts: between what a branch reads and the trunk that it is added to."""
        return frozenset(
            node
            for branches in self.residuals.values()
            for residual in branches
            if residual.trunk is not residual.read
            for node in self._linear_way(residual)
        )

    def relays(self, residual: Residual) -> bool:
        """Whether a branch only relays what it reads: linear in it, gates and statistics held."""
        way = reached(residual.branch, lambda node: self._toward(node, residual.read))
        return all(self.follows(node) and not self.is_attention(node) for node in way)

    def _toward(self, node: fx.Node, read: fx.Node) -> list[fx.Node]:
        """What a node is a linear image of that lies between it and another."""
        return [source for source in self.follows(node) if source is not read and self.graph.depends(source, read)]

    def between(self, read: fx.Node, branch: fx.Node) -> list[fx.Node]:
        """The nodes computed from `read` that `branch` is computed from."""
        nodes, order = self.graph.nodes, self.graph.order
        first = bisect_right(nodes, order[read], key=order.__getitem__)
        last = bisect_right(nodes, order[branch], key=order.__getitem__)
        return [
            node for node in nodes[first:last] if self.graph.depends(branch, node) and self.graph.depends(node, read)
        ]

    def bypasses(self, node: fx.Node, reads: Iterable[fx.Node]) -> bool:
        """Whether a node depends on the image other than through these, or through the stream that they are on."""
        stream = {value for read in reads for value in self._stream_of(read)}
        return self.graph.input in reached(node, lambda value: () if value in stream else self.graph.varying(value))

    @remembered
    def _stream_of(self, node: fx.Node) -> frozenset[fx.Node]:
        """All that a node is a linear image of, short of attention."""
        stream = reached(node, lambda value: () if self.is_attention(value) else self.follows(value))
        return frozenset(stream) - {self.graph.input}

    # -- branches --------------------------------------------------------------------------------------------------

    @remembered
    def _branches(self, node: fx.Node) -> tuple[Residual, ...]:
        """The branches among what is added at a node."""
        addends, branches = self._addends(node), []
        for branch in addends:
            best: Residual | None = None
            for trunk in addends:
                read = self._read(trunk, branch) if trunk is not branch else None
                if read is not None and (best is None or self.graph.order[read] > self.graph.order[best.read]):
                    best = Residual(node, trunk, branch, read)
            if best is not None:
                branches.append(best)
        return tuple(branches)

    def _addends(self, node: fx.Node) -> Sequence[fx.Node]:
        """What is added at a node; none where it adds nothing."""
        known = self.row(node)
        if not known.linear or known.norm:
            return ()
        if known.adds and len(node.all_input_nodes) == 2:
            token = next((source for source in node.all_input_nodes if not self.graph.image_dependent(source)), None)
            if token is not None and self._carries(token, node):
                return node.all_input_nodes
        following = self.follows(node)
        if len(following) < 2 or (known.moves and not self._joins(node)):
            return ()
        return following

    def _carries(self, token: fx.Node, node: fx.Node) -> bool:
        """Whether an operand that is a weight is a token, and what is added to it is computed from it."""
        other = next(source for source in node.all_input_nodes if source is not token)
        return self.graph.depends(other, token) and token.meta["val"].dim() > 1

    @remembered
    def _joins(self, node: fx.Node) -> bool:
        """Whether tensors laid side by side are summed afterwards, over the very axis that they are laid along."""
        if "dim" not in (given := arguments(node)) or "tensors" not in given:
            return False
        rank = len(extents_of(node))
        dim = int(given["dim"]) % rank
        pending, summed = list(node.users), 0
        while pending:
            user = pending.pop()
            known = self.row(user)
            if known.entries == "same" or (known.entries == "made" and not known.mixes) or known.norm:
                if not known.linear or len(extents_of(user)) != rank:
                    return False
                pending += user.users
            elif known.linear and self._sums(user, node, dim):
                summed += 1
            else:
                return False
        return summed > 0

    def _sums(self, user: fx.Node, node: fx.Node, dim: int) -> bool:
        """Whether an operation sums over one axis of a value of this shape."""
        known, rank = self.row(user), len(extents_of(node))
        if known.affine:
            return known.contracts and dim == (rank - 1 if known.mixes == "last" else 1)
        return bool(known.mixes) and self.origins.sums(user, lengths(node, 1), dim)

    def _read(self, trunk: fx.Node, branch: fx.Node) -> fx.Node | None:
        """The node that one addend is a linear image of, and another a branch from; None where it is not so."""
        if self.graph.depends(trunk, branch):
            return None
        if self.graph.depends(branch, trunk):
            read = trunk
        else:
            here, there = self._reached(trunk, branch), self._reached(branch, trunk)
            if not here or (there and self._rank(trunk, branch) <= self._rank(branch, trunk)):
                return None  # the other is the trunk, or neither is
            read = max(here, key=self.graph.order.__getitem__)
        if not self._works(read, branch) or (self._carries_on(branch, read) and not self._puts_back(branch, read)):
            return None  # or two streams meet
        return read

    def _carries_on(self, branch: fx.Node, read: fx.Node) -> bool:
        """Whether what would be a branch is the stream itself."""
        return any(self._ways(branch, lambda value: value is read).values())

    def _puts_back(self, branch: fx.Node, read: fx.Node) -> bool:
        """Whether a branch lays what it computes beside positions that it leaves as they are, as an MLP of the class
        token alone is laid beside the patches.
        """
        value = branch
        while len(following := self.follows(value)) == 1 and self._is_plain(value):
            value = following[0]
        return self.row(value).moves and any(
            self.graph.depends(source, read) and self._works(read, source) and not self._carries_on(source, read)
            for source in following
        )

    def _rank(self, node: fx.Node, other: fx.Node) -> int:
        """How much a value is the trunk, of two that are both linear images of what the other is computed from: most
        if it is the stream itself, less if it is a projection of it and nothing else.
        """
        if any(self._reached(node, other).values()):
            return 2

        def shared(value: fx.Node) -> bool:
            return self.graph.depends(other, value)

        below = reached(node, lambda value: () if shared(value) else self.follows(value))
        return int(all(shared(value) or (self.follows(value) and not self.is_attention(value)) for value in below))

    @remembered
    def _reached(self, node: fx.Node, other: fx.Node) -> dict[fx.Node, bool]:
        """The nodes that a value is a linear image of (see `_ways`), of those that `other` is computed from by
        something that works.
        """
        ways = self._ways(node, lambda value: self.graph.depends(other, value))
        return {value: stream for value, stream in ways.items() if self._works(value, other)}

    def _ways(self, node: fx.Node, ends: Callable[[fx.Node], bool]) -> dict[fx.Node, bool]:
        """The nodes, of those where it ends, that a value is a linear image of; and whether it is the stream itself
        that comes from there: without weights or gates, or through a place where branches are added to it, with no
        matrix behind that.
        """

        def below(state: tuple[fx.Node, bool, bool, bool]) -> list[tuple[fx.Node, bool, bool, bool]]:
            value, plain, bare, stream = state
            if ends(value) or self.is_attention(value):
                return []
            plain = plain and self._is_plain(value)
            stream = stream or (bare and (self.adds_branches(value) or self._joined(value)))
            bare = bare and not self.row(value).contracts
            return [(source, plain, bare, stream) for source in self.follows(value)]

        ways: dict[fx.Node, bool] = {}
        for value, plain, _, stream in reached((node, True, True, False), below):
            if ends(value):
                ways[value] = ways.get(value, False) or plain or stream
        return ways

    def _joined(self, node: fx.Node) -> bool:
        """Whether a layer sums what was laid side by side, and branches are added to the stream so."""
        following = self.follows(node) if self.row(node).contracts else ()
        return any(self.row(source).moves and self.adds_branches(source) for source in following)

    def _is_plain(self, node: fx.Node) -> bool:
        """Whether an operation only moves its input, adds to it, or multiplies it by a number."""
        known, factors = self.row(node), self.factors(node)
        weights = [source for source in node.all_input_nodes if source not in factors] if known.product else []
        scales = all(math.prod(extent.size for extent in extents_of(source)) == 1 for source in weights)
        return known.moves or (known.elementwise and not known.norm and len(factors) < 2 and scales)

    def _linear_way(self, residual: Residual) -> Iterator[fx.Node]:
        """The nodes by which a trunk is a linear image of what its branch reads."""
        return reached(
            residual.trunk, lambda node: () if self.is_attention(node) else self._toward(node, residual.read)
        )

    @remembered
    def _works(self, read: fx.Node, branch: fx.Node) -> bool:
        """Whether anything between has weights or is not linear."""
        for node in self.between(read, branch):
            known = self.row(node)
            weighs = any(floating(source) and not self.graph.image_dependent(source) for source in node.all_input_nodes)
            if weighs or not known.linear or known.norm or len(self.factors(node)) > 1:
                return True
        return False

    # -- what enters -----------------------------------------------------------------------------------------------

    def swallowed(self, entry: fx.Node) -> str:
        """Why what enters the residual stream is more than a stem: an attention, an MLP, or a block that the walk does
        not see; an empty text where it is a stem (patches, a chain of convolutions and activations, tokens).
        """
        attention = next((node for node in self.attention if self.graph.depends(entry, node)), None)
        if attention is not None:
            return (
                f"what enters the residual stream holds an attention, in {self.graph.module(attention) or 'the model'}"
            )

        def below(state: tuple[fx.Node, bool]) -> list[tuple[fx.Node, bool]]:
            node, weighted = state
            weighted = weighted or (self.row(node).contracts and self.row(node).mixes != "window")
            return [(source, weighted) for source in self.follows(node) or self.graph.varying(node)]

        for node, weighted in reached((entry, False), below):
            inputs = [] if self.follows(node) else self.graph.varying(node)
            if (weighted and any(self._weighs(source) for source in inputs)) or self._meets(inputs):
                where = self.graph.module(node) or "the model"
                return f"what enters the residual stream holds a nonlinear block, at {operation(node)} in {where}"
        return ""

    def _weighs(self, node: fx.Node, other: fx.Node | None = None) -> bool:
        """Whether a value is made by weights that are no convolution (and that another is not made by)."""
        return any(
            self.row(source).contracts
            and (self.row(source).mixes != "window" if other is None else not self.graph.depends(other, source))
            for source in self.graph.nodes
            if self.graph.depends(node, source) and self.graph.image_dependent(source)
        )

    def _meets(self, inputs: Sequence[fx.Node]) -> bool:
        """Whether two values meet of which one is made by weights that the other is not made by."""
        return any(self._weighs(first, second) for first in inputs for second in inputs if first is not second)
