"""Labels sent through a graph in place of values: where entries go, and what are channels and what are positions.

An operation that only moves entries is run on labels as it is on values (views, permutations, window partitions,
rolls, concatenations), so nothing is assumed about layouts. What else is known of an operation stands in its row: one
that is elementwise, or normalises, or mixes the last axis leaves every place where it was; one that reads windows lays
out a grid, whose places are numbered row by row.

A label is a whole number above zero; `OTHER` marks an entry that comes from elsewhere (a class token), `FILLED` one
that was filled in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from unweave.graph.graph import Graph, arguments, extents_of
from unweave.graph.interpret import length
from unweave.operations.table import row

OTHER, FILLED = -1, 0
NO_LABELS = (RuntimeError, TypeError, IndexError)
"""What an operation raises that does not take labels for values."""
_TINY = 1e-9


# -- one operation -----------------------------------------------------------------------------------------------------


def lengths(node: fx.Node, images: int) -> list[int]:
    """The shape of a node for so many images."""
    return [extent.size * (images if extent.batch else 1) for extent in extents_of(node)]


def moved(graph: Graph, node: fx.Node, labels: Mapping[fx.Node, Tensor | None], images: int, other: int) -> Tensor:
    """An operation that only moves entries, applied to labels.

    Args:
        graph: The captured model.
        node: The operation.
        labels: The labels of its inputs, where they are known.
        images: For how many images there are labels.
        other: The label of entries of all other inputs.

    Raises:
        RuntimeError, TypeError, IndexError: The operation does not take such numbers (`NO_LABELS`).
    """

    def given(source: fx.Node) -> Any:
        value = source.meta.get("val")
        label = labels.get(source)
        if label is not None:
            return label.contiguous()  # as a view of the values may need
        if not isinstance(value, Tensor):
            return length(value, images)
        if not graph.image_dependent(source) and not value.is_floating_point():
            return graph.value(source).cpu()
        return torch.full(lengths(source, images), float(other), dtype=torch.float64)

    bound = arguments(node)
    if row(node).entries == "same":
        return given(bound["input"])
    schema = node.target._schema  # type: ignore[union-attr]
    args, kwargs = [], {}
    for argument, (name, value) in zip(schema.arguments, bound.items(), strict=True):
        filled = FILLED if name == "value" and isinstance(value, (int, float)) else fx.map_arg(value, given)
        if argument.kwarg_only:
            kwargs[argument.name] = filled
        else:
            args.append(filled)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def sent(
    graph: Graph, start: fx.Node, labels: Tensor, images: int, *, scaled: bool = False
) -> tuple[dict[fx.Node, Tensor], list[fx.Node]]:
    """Sends labels from a node through all that merely moves its entries.

    Args:
        graph: The captured model.
        start: Where they begin.
        labels: For each of its entries, for so many images; zero comes to mean any other entry.
        images: For how many.
        scaled: Whether to go on where entries are multiplied by weights.

    Returns:
        The labels wherever they come, and the operations that read them and do not merely move.
    """
    reached: dict[fx.Node, Tensor] = {start: labels.double()}
    readers: list[fx.Node] = []
    for node in graph.nodes:
        like = arguments(node).get(row(node).like) if row(node).like else None
        sources = [source for source in node.all_input_nodes if source in reached and source is not like]
        if not sources or not isinstance(node.meta.get("val"), Tensor):
            continue
        others = [source for source in node.all_input_nodes if source is not sources[0]]
        if row(node).moves:
            try:
                reached[node] = moved(graph, node, reached, images, FILLED)
            except NO_LABELS:
                readers.append(node)
        elif (
            scaled
            and row(node).product
            and row(node).elementwise
            and not any(graph.image_dependent(source) for source in others)
        ):
            reached[node] = reached[sources[0]].expand(lengths(node, images)).contiguous()
        else:
            readers.append(node)
    return {node: labels.long() for node, labels in reached.items()}, readers


# -- channels and positions --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Origin:
    """What the entries of a value (of one image) come from: two random numbers for each.

    Attributes:
        channels: Equal for entries that are the same channels of the last weights, or of the last norm.
        positions: Equal for entries at the same place of what those were given.
    """

    channels: Tensor
    positions: Tensor


class Origins:
    """Channels and positions of the values of a graph.

    Random numbers go through the operations in place of values. A layer with weights gives its output new channels:
    what differs where the weights are random and the input is all ones. What differs where it is the input that is
    random are its positions. Attention reads all tokens alike, so what differs at its output are channels and windows.

    Args:
        graph: The captured model.
        values: What a product weighs, if it is a product of weights with values.
        follows: The inputs that a pending map is handed to.
    """

    def __init__(
        self,
        graph: Graph,
        values: Callable[[fx.Node], fx.Node | None],
        follows: Callable[[fx.Node], Sequence[fx.Node]],
    ) -> None:
        self.graph, self._values, self._follows = graph, values, follows
        self._traced: dict[fx.Node, Origin | None] = {}

    def of(self, node: fx.Node) -> Origin | None:
        """Where the entries of a node come from; None where it cannot be told."""
        chain = [node]
        while chain[-1] not in self._traced and (below := self._below(chain[-1])) is not None:
            chain.append(below)
        for current in reversed(chain):
            if current not in self._traced:
                with suppress(*NO_LABELS):
                    self._traced[current] = self._origin(current)
                self._traced.setdefault(current, None)
        return self._traced[node]

    def sums_positions(self, node: fx.Node, values: fx.Node) -> bool:
        """Whether a product sums over positions of one of its operands (tokens, not channels or experts)."""
        origin = self.of(values)
        if origin is None:
            return False
        with suppress(*NO_LABELS):
            total = self._uniform(node, values, torch.ones_like(origin.positions))
            mean = self._uniform(node, values, origin.positions) / total
            square = self._uniform(node, values, origin.positions.square()) / total
            return bool((square - mean.square() > _TINY).any())
        return False

    def sums_nothing(self, node: fx.Node, values: fx.Node) -> bool:
        """Whether a product sums over an axis of one entry, of which it cannot be told what it is (a single token)."""
        with suppress(*NO_LABELS):
            return bool((self._uniform(node, values, torch.ones(lengths(values, 1), dtype=torch.float64)) == 1).all())
        return False

    def sums(self, node: fx.Node, shape: Sequence[int], dim: int) -> bool:
        """Whether an operation on its first varying input, of this shape, sums over one axis of it."""
        value = next(source for source in node.all_input_nodes if self.graph.image_dependent(source))
        along = torch.arange(1, shape[dim] + 1).double().reshape(_along(dim, len(shape)))
        with suppress(*NO_LABELS):
            labels = self._uniform(node, value, along.expand(list(shape)))
            return bool((labels - labels.mean()).abs().max() < _TINY * labels.abs().max())
        return False

    def over_positions(self, node: fx.Node) -> bool:
        """Whether a reduction runs over positions (of tokens, windows), as far as it can be told."""
        given = arguments(node)
        origin = self.of(given["input"])
        dims = list(given["dim"] if isinstance(given["dim"], (list, tuple)) else [given["dim"]])
        dims = dims or list(range(len(extents_of(given["input"]))))
        return origin is None or any(differs(origin.positions, int(dim)) for dim in dims)

    def _below(self, node: fx.Node) -> fx.Node | None:
        """The input that a node's origin follows, where it has no weights of its own."""
        inputs = self.graph.varying(node)
        known = row(node)
        values = self._values(node)
        if values is not None or not inputs or not isinstance(node.meta.get("val"), Tensor):
            return values
        apart = known.norm and len(extents_of(node)) > 3  # a norm of each head
        stays = known.moves or known.softmax or not known.mixes or apart
        return min(self._follows(node) or inputs, key=self.graph.order.__getitem__) if stays else None

    def _origin(self, node: fx.Node) -> Origin | None:
        below, known = self._below(node), row(node)
        if below is None:
            return self._made(node)
        before = self._traced.get(below)
        if before is None:
            return None
        pair = (before.channels, before.positions)
        if self._values(node) is not None:
            total = self._uniform(node, below, torch.ones_like(before.channels))
            return Origin(*(self._uniform(node, below, labels) / total for labels in pair))
        if known.moves:
            traced = {source: self.of(source) for source in self.graph.varying(node)}
            channels = {source: origin.channels for source, origin in traced.items() if origin}
            positions = {source: origin.positions for source, origin in traced.items() if origin}
            return Origin(*(moved(self.graph, node, labels, 1, FILLED) for labels in (channels, positions)))
        return Origin(*(labels.expand(lengths(node, 1)) for labels in pair))

    def _made(self, node: fx.Node) -> Origin | None:
        """New channels: of a layer with weights, or of what normalises the last axis; positions stay what they were."""
        known = row(node)
        varying = self.graph.varying(node)
        if not isinstance(node.meta.get("val"), Tensor) or not varying:
            return None
        shape = lengths(node, 1)
        axis = len(shape) - 1 if known.mixes == "last" else 1 if known.mixes in ("window", "grid") else None
        if axis is not None and len(shape) > axis:
            sizes = [1 if dim == axis else size for dim, size in enumerate(shape)]
            channels = _random([shape[axis]], self.graph.order[node])
            channels = channels.reshape(_along(axis, len(shape)))
            positions = _random(sizes, self._places(node))
            if (
                known.mixes != "last" and shape[0] > 1
            ):  # beside the images lie heads, or windows: they stay what they are
                before = self.of(varying[0])
                if before is None:
                    return None
                others = list(range(1, before.channels.dim()))
                lead = [
                    labels.mean(others).reshape([-1] + [1] * (len(shape) - 1))
                    for labels in (before.channels, before.positions)
                ]
                channels, positions = channels + lead[0], positions[:1] + lead[1]
            return Origin(channels.expand(shape), positions.expand(shape))
        if not known.contracts or len(varying) > 1:
            return None
        weights = [source for source in node.all_input_nodes if source is not varying[0] and floating(source)]
        tensors = [varying[0], *weights]
        ones = {source: torch.ones(lengths(source, 1), dtype=torch.float64) for source in tensors}
        drawn = {source: _random(lengths(source, 1), self.graph.order[node]) for source in tensors}
        channels = moved(self.graph, node, {**drawn, varying[0]: ones[varying[0]]}, 1, FILLED)
        drawn[varying[0]] = _random(lengths(varying[0], 1), self._places(node))
        positions = moved(self.graph, node, {**ones, varying[0]: drawn[varying[0]]}, 1, FILLED)
        for dim in range(len(shape)):  # an axis that input and weights share (experts, heads) is no position
            if differs(channels, dim):
                positions = positions.mean(dim, keepdim=True).expand(shape)
        return Origin(channels, positions)

    def _places(self, node: fx.Node) -> int:
        """A number that is the same for all values whose positions are those of one value: seeds their labels."""
        while True:
            inputs = self.graph.varying(node)
            known = row(node)
            if not inputs or known.moves or known.mixes not in ("", "last", "window"):
                return self.graph.order[node]
            node = min(inputs, key=self.graph.order.__getitem__)

    def _uniform(self, node: fx.Node, values: fx.Node, labels: Tensor) -> Tensor:
        """A product of labels with weights that are all alike."""
        alike: dict[fx.Node, Tensor | None] = {}
        if row(node).contracts:
            alike = {
                source: torch.ones(lengths(source, 1), dtype=torch.float64)
                for source in node.all_input_nodes
                if source is not values and floating(source)
            }
        return moved(self.graph, node, {**alike, values: labels}, 1, FILLED)


def differs(labels: Tensor, dim: int) -> bool:
    """Whether labels differ along an axis."""
    return labels.shape[dim] > 1 and bool((labels.amax(dim) - labels.amin(dim)).max() > _TINY)


def _along(dim: int, rank: int) -> list[int]:
    """The shape of numbers that lie along one axis."""
    return [-1 if axis == dim else 1 for axis in range(rank)]


def _random(sizes: Sequence[int], seed: int) -> Tensor:
    return torch.rand(tuple(sizes), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def floating(node: fx.Node) -> bool:
    """Whether a node is a tensor of floating-point numbers."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()
