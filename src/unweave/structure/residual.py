"""Trunk and branches, found from the graph alone.

At an addition of `a` and `b = f(a)`, `a` is the trunk (the residual stream) and `b` a branch that reads it. A
shortcut that is itself a linear projection of what the branch reads is the trunk as well. A branch must do something:
a sum with a fixed linear function of `a` without weights (subtracting a mean) is no branch. Which operand of a
product is followed, and which held at its value, is decided here too: attention weights and gates are held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property

from torch import fx

from unweave.graph.capture import Graph, operation
from unweave.operations.table import row


@dataclass(frozen=True)
class Residual:
    """An addition of a branch to the trunk.

    Attributes:
        node: The addition.
        trunk, branch: Its operands.
        read: The node of the trunk that the branch is computed from.
    """

    node: fx.Node
    trunk: fx.Node
    branch: fx.Node
    read: fx.Node


class Paths:
    """The paths of a graph: which additions are residual, which operand of a product is followed.

    Args:
        graph: The captured model.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def inputs(self, node: fx.Node) -> list[fx.Node]:
        """The image-dependent inputs of a node, each once."""
        return [source for source in node.all_input_nodes if self.graph.image_dependent(source)]

    def varying(self, node: fx.Node) -> int:
        """How many of a node's operands depend on the image; one that is given twice counts twice."""
        given: list[fx.Node] = []
        fx.map_arg((node.args, dict(node.kwargs)), lambda source: given.append(source))
        return sum(self.graph.image_dependent(source) for source in given)

    @cached_property
    def residuals(self) -> dict[fx.Node, Residual]:
        """Every residual addition of the graph."""
        found = {}
        for node in self.graph.nodes:
            if operation(node) in ("aten.add", "aten.sub") and (residual := self._residual(node)):
                found[node] = residual
        return found

    @cached_property
    def _residual_mask(self) -> int:
        mask = 0
        for node in self.residuals:
            mask |= 1 << self.graph.order[node]
        return mask

    def has_residual(self, node: fx.Node) -> bool:
        """Whether a residual addition lies at or below this node."""
        return bool(self.graph.ancestors[node] & self._residual_mask)

    @cached_property
    def attention(self) -> tuple[fx.Node, ...]:
        """The attention layers: every product of attention weights with values."""
        return tuple(node for node in self.graph.nodes if self.is_attention(node))

    def is_attention(self, node: fx.Node) -> bool:
        """Whether a node is a product of attention weights with values: a sum over keys, not an elementwise choice
        between streams.
        """
        if operation(node) == "aten.scaled_dot_product_attention":
            return True
        inputs = self.inputs(node)
        if len(inputs) != 2 or not row(node).product or row(node).elementwise:
            return False
        return self._weights(inputs[0]) != self._weights(inputs[1])

    @cache  # noqa: B019  (a Paths lives as long as its plan is made)
    def _weights(self, node: fx.Node) -> bool:
        """Whether a node is attention weights: a softmax, seen through anything but another product, norm or
        nonlinearity.
        """
        known = row(node)
        if known.softmax:
            return True
        inputs = self.inputs(node)
        if not known.linear or not inputs or known.norm:
            return False
        if len(inputs) > 1 and (known.product or operation(node) == "aten.scaled_dot_product_attention"):
            # weights scaled by a gate, or renormalised, are weights still
            return known.elementwise and any(self._weights(own) for own in inputs)
        if len(inputs) == 2 and (self.graph.depends(*inputs) or self.graph.depends(*inputs[::-1])):
            return False  # the residual stream
        return any(self._weights(own) for own in inputs)

    def live(self, node: fx.Node) -> fx.Node | None:
        """The operand of a product of two image-dependent values that is followed; None where neither may be held.

        Attention weights are held beside the values they weigh; a gate that is computed from the other operand by
        more than an elementwise function (squeeze-excite, a norm written out) is held beside it. `x * sigmoid(x)` and
        `silu(g) * u` are not products of that sort.
        """
        if operation(node) == "aten.scaled_dot_product_attention":
            return node.args[2]  # type: ignore[return-value]
        inputs = self.inputs(node)
        if len(inputs) != 2:
            return inputs[0] if inputs and len(node.all_input_nodes) > 1 else None
        first, second = inputs
        if self._weights(first) != self._weights(second):
            return second if self._weights(first) else first
        inner = [self._attends(own) for own in inputs]
        if inner[0] != inner[1]:  # linear attention: what weighs the tokens' sum is held, the sum is followed
            return inputs[0] if inner[0] else inputs[1]
        if operation(node) == "aten.div":
            first, second = node.args[0], node.args[1]  # type: ignore[assignment]
            return first if self._mixes(second, lambda own: not self.graph.depends(first, own)) else None
        if operation(node) != "aten.mul":
            return None
        for own, gate in ((first, second), (second, first)):
            if self._mixes(gate, self._above(self._origin(own))):
                return own
        return None

    @cache  # noqa: B019
    def _attends(self, node: fx.Node) -> bool:
        """Whether a node is an attention's output, moved or scaled by a weight at most."""
        if self.is_attention(node):
            return True
        inputs = self.inputs(node)
        moves = row(node).relayout or (row(node).product and row(node).elementwise)
        return bool(moves) and len(inputs) == 1 and self._attends(inputs[0])

    def _mixes(self, node: fx.Node, inside: Callable[[fx.Node], bool]) -> bool:
        """Whether any operation on the way down to a value, over the nodes that are `inside`, is not elementwise."""
        pending, seen = [node], set()
        while pending:
            own = pending.pop()
            if own in seen or not inside(own):
                continue
            seen.add(own)
            if row(own).mixes:
                return True
            pending += self.inputs(own)
        return False

    def _above(self, origin: fx.Node) -> Callable[[fx.Node], bool]:
        """Whether a node is computed from another."""
        return lambda own: own is not origin and self.graph.depends(own, origin)

    def _origin(self, node: fx.Node) -> fx.Node:
        """What a value is a mere relayout of."""
        while row(node).relayout and len(inputs := self.inputs(node)) == 1:
            node = inputs[0]
        return node

    @cached_property
    def shortcuts(self) -> frozenset[fx.Node]:
        """The nodes of projected shortcuts: between what a branch reads and the trunk's operand of its addition."""
        return frozenset(
            node
            for residual in self.residuals.values()
            if residual.trunk is not residual.read
            for node in self.between(residual.read, residual.trunk)
        )

    def relays(self, residual: Residual) -> bool:
        """Whether a branch only relays what it reads: linear in it, gates and statistics held."""
        pending, seen = [residual.branch], {residual.read}
        while pending:
            own = pending.pop()
            if own in seen or not self.graph.depends(own, residual.read):
                continue
            seen.add(own)
            if not row(own).linear or self.is_attention(own):
                return False
            live = self.live(own) if row(own).product and len(self.inputs(own)) > 1 else None
            if row(own).product and len(self.inputs(own)) > 1 and live is None:
                return False
            pending += [live] if live is not None else self.inputs(own)
        return True

    def between(self, read: fx.Node, branch: fx.Node) -> list[fx.Node]:
        """The nodes computed from `read` that `branch` is computed from."""
        mask = self.graph.ancestors[branch]
        return [
            node
            for node in self.graph.nodes
            if mask >> self.graph.order[node] & 1 and node is not read and self.graph.depends(node, read)
        ]

    def bypasses(self, node: fx.Node, reads: Iterable[fx.Node]) -> bool:
        """Whether a node depends on the image other than through these."""
        pending, seen = [node], set(reads)
        while pending:
            own = pending.pop()
            if own in seen:
                continue
            seen.add(own)
            if own is self.graph.input:
                return True
            pending += self.inputs(own)
        return False

    def _residual(self, node: fx.Node) -> Residual | None:
        given = [own for own in node.args[:2] if isinstance(own, fx.Node)]
        operands = [own for own in given if self.graph.image_dependent(own)]
        if len(given) == 2 and len(operands) == 1:  # a class token that is still a weight, and what is added to it
            token = given[0] if given[1] is operands[0] else given[1]
            reads = self.graph.depends(operands[0], token) and token.meta["val"].dim() > 1
            return Residual(node, token, operands[0], token) if reads and self._works(token, operands[0]) else None
        if len(operands) != 2 or operands[0] is operands[1]:
            return None
        for trunk, branch in (operands, operands[::-1]):
            if self.graph.depends(branch, trunk):
                return Residual(node, trunk, branch, trunk) if self._works(trunk, branch) else None
        reads = [self._linear_read(own, other) for own, other in (operands, operands[::-1])]
        if (reads[0] is None) == (reads[1] is None):
            return None
        place = 0 if reads[0] is not None else 1
        trunk, branch, read = operands[place], operands[1 - place], reads[place]
        return Residual(node, trunk, branch, read) if read is not None and self._works(read, branch) else None

    def _works(self, read: fx.Node, branch: fx.Node) -> bool:
        """Whether anything between has weights or is not linear."""
        for node in self.between(read, branch):
            held = any(
                not self.graph.image_dependent(source) and source.meta["val"].is_floating_point()
                for source in node.all_input_nodes
                if hasattr(source.meta.get("val"), "is_floating_point")
            )
            if held or not row(node).linear or row(node).norm or (row(node).product and len(self.inputs(node)) > 1):
                return True
        return False

    def _linear_read(self, node: fx.Node, other: fx.Node) -> fx.Node | None:
        """The last node that `other` depends on from which `node` is computed by linear operations alone; None where
        there is none.
        """
        pending, reached, seen = [node], [], set()
        while pending:
            own = pending.pop()
            if own in seen:
                continue
            seen.add(own)
            if self.graph.depends(other, own):
                reached.append(own)
                continue
            inputs = self.inputs(own)
            if not row(own).linear or not inputs or (len(inputs) > 1 and (row(own).product or self.is_attention(own))):
                return None
            pending += inputs
        return max(reached, key=self.graph.order.__getitem__) if reached else None
