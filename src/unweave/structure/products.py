"""Products of values that vary with the image: which operand is followed, which is held, and what is attention.

A pending map goes through a product only if one operand is held at its value. Of a contraction (`weights @ values`)
the weights are held: they are a softmax, or they are not linear in what the values are a linear image of. It is an
attention layer if it weighs tokens, or if its weights compare tokens with each other (channel attention); a product
that weighs experts is not. Of an elementwise product the gate is held: attention weights; whatever stands beside an
attention's output; what is computed from the other operand by more than an elementwise function (squeeze-excite, a
norm written out); and a bare activation beside a branch that has ended already (a highway's gate).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from torch import fx

from unweave.graph.graph import Graph, arguments, reached
from unweave.operations.table import NOTHING, Row, row
from unweave.structure.labels import Origins

P = ParamSpec("P")
T = TypeVar("T")


def remembered(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """A method whose answers each instance keeps, and takes along when it goes."""

    @wraps(method)
    def ask(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        answers: dict[object, T] = self.__dict__.setdefault("_answers", {})
        key = (method.__name__, args)
        if key not in answers:
            answers[key] = method(self, *args, **kwargs)
        return answers[key]

    return ask


class Products(ABC):
    """What is followed through a graph.

    Args:
        graph: The captured model.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.origins = Origins(graph, self.values, self.follows)

    @remembered
    def row(self, node: fx.Node) -> Row:
        """What is known of a node's operation, given which of its arguments vary with the image."""
        known = row(node)
        given = arguments(node) if known.fixed else {}
        fixed = [given[name] for name in known.fixed if isinstance(given[name], fx.Node)]
        varies = any(self.graph.image_dependent(source) for source in fixed)
        if varies or (known.pools and not self.origins.over_positions(node)):
            return replace(known, kind="source", entries="made", reads=None)
        return known

    @remembered
    def factors(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The operands of a product that vary with the image; a value that is given twice counts twice."""
        given = arguments(node) if self.row(node).product else {}
        operands: list[fx.Node] = []
        for name in self.row(node).product:
            fx.map_arg(given[name], operands.append)
        return tuple(source for source in operands if self.graph.image_dependent(source))

    @remembered
    def follows(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The inputs that a pending map is handed to."""
        known = self.row(node)
        if not known.linear or not known.reads:
            return ()
        factors = self.factors(node)
        held = {source for source in factors if source is not self.live(node)} if len(factors) > 1 else set()
        given = arguments(node) if known.held or known.like else {}
        held |= {given[name] for name in (*known.held, *((known.like,) if known.like else ()))}
        if known.attends:  # the values, though they may be the queries as well
            return tuple(source for source in self.graph.varying(node) if source is given[known.attends[2]])
        return tuple(source for source in self.graph.varying(node) if source not in held)

    @abstractmethod
    def adds_branches(self, node: fx.Node) -> bool:
        """Whether branches are added to the residual stream at a node."""

    # -- attention -------------------------------------------------------------------------------------------------

    @cached_property
    def attention(self) -> tuple[fx.Node, ...]:
        """The attention layers: every product of weights with values that is not itself what another weighs."""
        inner: set[fx.Node] = set()
        layers = [node for node in self.graph.nodes if self.is_attention(node)]
        for node in layers:
            inner.update(self.weighed(node))
        return tuple(node for node in layers if node not in inner)

    @remembered
    def is_attention(self, node: fx.Node) -> bool:
        """Whether a node is a product of attention weights with values."""
        if self.row(node).attends:
            return self.graph.image_dependent(node)
        pair = self._pair(node)
        if pair is None:
            return False
        weights, values = pair
        compares = any(self._compares(held, values) for held in weights)
        if compares or self._attends(values) or self.origins.sums_positions(node, values):
            return True
        return any(self._weights(held) for held in weights) and self.origins.sums_nothing(node, values)

    def weighed(self, node: fx.Node) -> Iterator[fx.Node]:
        """The products that an attention's values are, moved or scaled at most: all one attention layer, as in linear
        attention, `q (k^T v)`.
        """
        live = self.live(node)
        while live is not None:
            if self.is_attention(live):
                yield live
                live = self.live(live)
            else:
                following = self.follows(live)
                plain = self.row(live).relayout or (self.row(live).elementwise and self.row(live).product)
                live = following[0] if plain and len(following) == 1 else None

    def values(self, node: fx.Node) -> fx.Node | None:
        """What is weighed, where a node is a product of weights with values of any sort."""
        attends = self.row(node).attends
        if attends:
            return arguments(node)[attends[2]]
        pair = self._pair(node)
        return pair and pair[1]

    def unresolved(self) -> Iterator[fx.Node]:
        """Products over tokens of two values that vary, of which neither could be told to be the weights."""
        weights = [source for node in self.attention for source in self._weighing(node)]
        for node in self.graph.nodes:
            if not self.row(node).contracts or len(set(self.factors(node))) != 2 or self._pair(node):
                continue
            if any(self.graph.depends(held, node) for held in weights):
                continue
            first, second = self.factors(node)
            if self._image(first, second) and self._image(second, first):
                continue  # second moments of one value
            if any(self.origins.sums_positions(node, source) for source in (first, second)):
                yield node

    def _weighing(self, node: fx.Node) -> list[fx.Node]:
        """What is held of an attention layer: its weights, or what they are made of."""
        held: list[fx.Node] = []
        for product in (node, *self.weighed(node)):
            held += [source for source in self.graph.varying(product) if source is not self.live(product)]
        return held

    @remembered
    def _pair(self, node: fx.Node) -> tuple[tuple[fx.Node, ...], fx.Node] | None:
        """The weights and the values of a contraction of values that vary; None where they cannot be told apart."""
        factors = self.factors(node)
        if not self.row(node).contracts or len(set(factors)) < max(2, len(factors)):
            return None
        tells: tuple[Callable[[fx.Node], bool], ...] = (
            self._weights,
            lambda value: not self._attends(value),
            lambda value: not all(self._image(value, other) for other in factors if other is not value),
        )
        for tell in tells:
            values = [value for value in factors if not tell(value)]
            if len(values) == 1:
                return tuple(value for value in factors if value is not values[0]), values[0]
        return None

    @remembered
    def _weights(self, node: fx.Node) -> bool:
        """Whether a node is attention weights: a softmax, seen through anything but another product, norm or
        nonlinearity.
        """
        known = self.row(node)
        if known.softmax:
            return True
        inputs = self.graph.varying(node)
        if not known.linear or not inputs or known.norm:
            return False
        if len(inputs) > 1 and (known.product or known.attends):
            # weights scaled by a gate, or renormalised, are weights still
            return known.elementwise and any(self._weights(source) for source in inputs)
        if len(inputs) == 2 and (self.graph.depends(*inputs) or self.graph.depends(*inputs[::-1])):
            return False  # the residual stream
        return any(self._weights(source) for source in inputs)

    def _image(self, node: fx.Node, other: fx.Node) -> bool:
        """Whether a value is a linear image of what another is computed from too (frozen factors held)."""

        def ends(value: fx.Node) -> bool:
            return self.graph.depends(other, value) or self.adds_branches(value)

        below = reached(node, lambda value: () if ends(value) else self.follows(value))
        return all(ends(value) or self.follows(value) for value in below)

    def _compares(self, weights: fx.Node, values: fx.Node) -> bool:
        """Whether weights are made of products of values that vary, which what they weigh is not made of."""

        def apart(node: fx.Node) -> bool:
            return not self.graph.depends(values, node) and not self.adds_branches(node)

        below = reached(weights, lambda node: filter(apart, self.graph.varying(node)))
        return apart(weights) and any(len(self.factors(node)) > 1 and self.row(node).contracts for node in below)

    # -- gates -----------------------------------------------------------------------------------------------------

    @remembered
    def live(self, node: fx.Node) -> fx.Node | None:
        """The operand of a product of image-dependent values that is followed; None where none may be held."""
        if self.row(node).attends or self.row(node).contracts:
            factors = self.factors(node)
            return self.values(node) if len(factors) != 1 else factors[0]
        factors = self.factors(node)
        if len(factors) < 2:
            return factors[0] if factors else None
        first, second = factors
        if first is second:
            return None
        for tell in (self._weights, lambda value: not self._attends(value)):
            told = [tell(value) for value in factors]
            if told[0] != told[1]:
                return second if told[0] else first
        if self.row(node).divides:
            return (
                first if self._mixes(second, lambda value: not self.graph.depends(first, value), picks=True) else None
            )
        for value, gate in ((first, second), (second, first)):
            if any(self._mixes(gate, self._above(origin)) for origin in self._stream(value)):
                return value
        for value, gate in ((first, second), (second, first)):
            if self._bare(gate) and self._ended(value, gate):
                return value
        return None

    @remembered
    def _attends(self, node: fx.Node) -> bool:
        """Whether a node is an attention's output, moved or scaled by a weight at most."""
        if self.is_attention(node):
            return True
        inputs, known = self.graph.varying(node), self.row(node)
        moves = known.relayout or (known.product and known.elementwise)
        return bool(moves) and len(inputs) == 1 and self._attends(inputs[0])

    def _mixes(self, node: fx.Node, inside: Callable[[fx.Node], bool], *, picks: bool = False) -> bool:
        """Whether any operation on the way down to a value, over the nodes that are `inside`, is not elementwise.

        Args:
            node: The value.
            inside: Which nodes count.
            picks: Whether to count operations that pick entries from other places as well.
        """

        def mixing(known: Row) -> bool:
            return bool(known.mixes and known is not NOTHING) or (picks and known.entries == "picked")

        below = reached(node, lambda value: filter(inside, self.graph.varying(value)))
        return inside(node) and any(mixing(self.row(value)) for value in below)

    def _above(self, origin: fx.Node) -> Callable[[fx.Node], bool]:
        """Whether a node is computed from another."""
        return lambda node: node is not origin and self.graph.depends(node, origin)

    def _stream(self, node: fx.Node) -> list[fx.Node]:
        """What a value is a mere relayout, sum or scaling of, itself last."""

        def below(value: fx.Node) -> tuple[fx.Node, ...]:
            known = self.row(value)
            mere = known.relayout or (known.elementwise and known.linear and not known.norm)
            return self.follows(value) if mere else ()

        return list(reached(node, below))[::-1]

    def _ended(self, node: fx.Node, gate: fx.Node) -> bool:
        """Whether a value is projected by weights from nonlinear values alone: the output of a branch."""

        def passed(value: fx.Node) -> bool:
            nonlinear = not self.follows(value) and value is not node and value.op == "call_function"
            return not nonlinear and not self.is_attention(value)

        weighted = False
        for value in reached(node, lambda value: self.follows(value) if passed(value) else ()):
            if self.graph.depends(gate, value) or self.adds_branches(value):
                return False
            weighted |= self.row(value).contracts and passed(value)
        return weighted

    def _bare(self, node: fx.Node) -> bool:
        """Whether a value is a nonlinearity's output, moved or scaled at most."""
        known, following = self.row(node), self.follows(node)
        if known.kind == "source":
            return known.elementwise
        plain = known.moves or (known.elementwise and not known.norm)
        return plain and len(following) == 1 and self._bare(following[0])
