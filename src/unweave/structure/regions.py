"""A model's readout with its pooling taken over: what it would make of some of its tokens, in place of what it pools.

A model makes its representation of a map of tokens: it picks a class token, or takes a mean, and does what is left to
do (a norm, a projection). Here the picking is replaced by a sum over tokens with weights that are given at run time,
so that the same graph says what the model makes of any region of an image:

    representation = rest(sum over t of w[t] x[t])      w: the model's own pooling weights
    of a region    = rest(sum over t of r[t] x[t])      r: the region's

Nothing is known of any model: the tokens are the last value that every path goes through and whose entries lie at
several places of the image, and the pooling is what, tried on numbers, weighs them alike in all channels. Where what
follows the tokens does not (attention pooling, a maximum), regions are read at the tokens themselves.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from unweave.components import Grid
from unweave.errors import CaptureError
from unweave.graph.graph import Extent, Graph, extents_of, line_of, operation
from unweave.graph.interpret import applied, interpret, length
from unweave.operations.regions import pool
from unweave.operations.table import row
from unweave.structure.labels import differs, lengths
from unweave.structure.places import cells
from unweave.structure.residual import Paths

aten = torch.ops.aten
_AGREE = 1e-5


@dataclass(frozen=True, eq=False)
class Tokens:
    """Where a model's tokens are, and how it pools them.

    Attributes:
        node: The value that holds them.
        axes: Its axes that tokens lie along; the others, but for the images, are channels.
        count: How many there are.
        grid: Where they lie in the image, axes in order; None where that is lost.
        pooled: The node of what the model pools of them; None where it does not weigh them alike in all channels.
        weights: What it weighs each token by, `[token]`; None likewise.
    """

    node: fx.Node
    axes: tuple[int, ...]
    count: int
    grid: Grid | None
    pooled: fx.Node | None = None
    weights: Tensor | None = None


def tokens_of(graph: Graph) -> Tokens:
    """The tokens that a model makes its representation of.

    Raises:
        CaptureError: There are none, or it cannot be told which axis of a value they lie along.
    """
    paths = Paths(graph)
    narrow: list[fx.Node] = []
    held: list[Tokens] = []
    for node in _bottlenecks(graph):
        tokens = _pooled(graph, node, narrow)
        if tokens is not None:
            held, narrow = [tokens], [node for node in (tokens.pooled,) if node is not None]
            continue
        if held and held[-1].weights is not None:
            break  # what lies before is not pooled alike: these are all the tokens there are
        axes = _token_axes(paths, node)
        if axes:
            held.append(Tokens(node, axes, *_laid(graph, node, axes)))
            narrow = []  # tried on the last tokens alone: before those nothing but more is done
        elif held:
            break
        elif axes is None:
            raise CaptureError(
                f"It cannot be told which axis of {operation(node)} tokens lie along.",
                where=line_of(node) or None,
                cure="plan without regions",
            )
        elif isinstance(node.meta["val"], Tensor):
            narrow.append(node)
    if held:
        return _streamed(paths, held)
    raise CaptureError(
        "The model makes its representation of no tokens that every path goes through.",
        where=line_of(graph.output) or None,
        cure="plan without regions",
    )


def _pooled(graph: Graph, node: fx.Node, narrow: Sequence[fx.Node]) -> Tokens | None:
    """A value as tokens that the model pools, if one of these is nothing but a weighted sum along some of its axes."""
    wide = _wide(node)
    shape = lengths(node, 1) if wide else []
    for pooled in narrow if wide else ():
        size = prod(lengths(pooled, 1))
        for channels in (one for count in range(1, len(wide)) for one in combinations(wide, count)):
            axes = tuple(dim for dim in wide if dim not in channels)
            if prod(shape[dim] for dim in channels) == size:
                weights = _weights(graph, node, axes, pooled)
                if weights is not None:
                    return Tokens(node, axes, *_laid(graph, node, axes), pooled, weights)
    return None


def _laid(graph: Graph, node: fx.Node, axes: tuple[int, ...]) -> tuple[int, Grid | None]:
    """How many tokens lie along axes of a value, and where in the image."""
    shape = lengths(node, 1)
    return prod(shape[dim] for dim in axes), cells(graph, node, [dim for dim in range(len(shape)) if dim not in axes])


def _wide(node: fx.Node) -> list[int]:
    """The axes of more than one entry, beside the images; none where the images are not alone on the first."""
    extents = extents_of(node) if isinstance(node.meta["val"], Tensor) else ()
    if not extents or extents[0] != Extent(1, batch=True):
        return []
    return [dim for dim in range(1, len(extents)) if extents[dim].size > 1]


def _streamed(paths: Paths, held: Sequence[Tokens]) -> Tokens:
    """Of values that hold tokens, the last first, the one that the residual stream ends with, normed as it may be."""
    place = next((place for place, tokens in enumerate(held) if paths.residuals.get(tokens.node)), 0)
    while place and (row(held[place - 1].node).norm or row(held[place - 1].node).relayout):
        place -= 1
    return held[place]


def regional(graph: Graph, tokens: Tokens, count: int) -> Graph:
    """The same model with so many regions in place of its pooling: its output is `[image, region, dim]`, and its second
    input their weights, `[image, region, token]`.

    Raises:
        CaptureError: What follows the pooling cannot be done for several regions at once.
    """
    copies: dict[fx.Node, fx.Node] = {}
    new = fx.Graph()
    new.graph_copy(graph.graph, copies)
    surgery = _Surgery(new, graph, copies, count)
    regions, output = surgery.output(tokens)
    for node in reversed(list(new.nodes)):
        if node.op == "call_function" and not node.users and node is not output:
            new.erase_node(node)
    tensors = {copies[node]: tensor for node, tensor in graph.tensors.items()}
    return Graph(
        new,
        copies[graph.input],
        output,
        tensors,
        {copies[node]: name for node, name in graph.names.items()},
        graph.prefix,
        graph.conditions,
        generation=graph.generation,
        regions=regions,
        whole=(graph, {copy: node for node, copy in copies.items() if node in graph.tensors}),
    )


class _Surgery:
    def __init__(self, new: fx.Graph, graph: Graph, copies: dict[fx.Node, fx.Node], count: int) -> None:
        self.new, self.graph, self.copies, self.count = new, graph, copies, count

    def output(self, tokens: Tokens) -> tuple[fx.Node, fx.Node]:
        """The node of the regions' weights, and that of what is made of them."""
        images, source = self.copies[self.graph.input].meta["val"], self.copies[tokens.node]
        value = source.meta["val"]
        with self.new.inserting_after(self.copies[self.graph.input]):
            regions = self.new.placeholder("regions")
        with images.fake_mode:
            regions.meta = {"val": value.new_empty((images.shape[0], self.count, tokens.count))}
        others = [dim for dim in range(1, value.dim()) if dim not in tokens.axes]
        channels = prod(int(value.shape[dim]) for dim in others)
        flat = self._made(aten.permute.default, source, [0, *tokens.axes, *others])
        flat = self._made(aten.reshape.default, flat, [-1, tokens.count, channels])
        each = self._made(pool, regions, flat)
        if tokens.pooled is not None:
            each = self._made(aten.reshape.default, each, [-1, *tokens.pooled.meta["val"].shape[1:]])
            each = self._rest(tokens.pooled, each)
        return regions, self._made(aten.reshape.default, each, [-1, self.count, each.meta["val"].shape[-1]])

    def _rest(self, pooled: fx.Node, each: fx.Node) -> fx.Node:
        """What the model does with what it pooled, done with every region as if it were an image."""
        made = {pooled: each}
        for node in self.graph.nodes:
            if node is pooled or not self.graph.depends(node, pooled):
                continue
            try:
                args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda one: self._input(one, made))
                made[node] = self._made(node.target, *args, meta=node.meta, **kwargs)
            except Exception as error:
                raise CaptureError(
                    f"{operation(node)} cannot be done for several regions at once.",
                    where=line_of(node) or None,
                    cure="plan without regions",
                ) from error
        return made[self.graph.output]

    def _input(self, node: fx.Node, made: dict[fx.Node, fx.Node]) -> fx.Node:
        if node in made:
            return made[node]
        copy = self.copies[node]
        if isinstance(copy.meta.get("val"), torch.SymInt):  # a number of images, which is one of regions now
            made[node] = self._made(operator.mul, copy, self.count)
            return made[node]
        return copy

    def _made(self, target: Any, *args: Any, meta: dict[str, Any] | None = None, **kwargs: Any) -> fx.Node:
        node = self.new.call_function(target, args, kwargs)
        with self.copies[self.graph.input].meta["val"].fake_mode:
            value = applied(node, lambda source: source.meta["val"])
        node.meta = {**{name: own for name, own in (meta or {}).items() if name != "extents"}, "val": value}
        return node


def _bottlenecks(graph: Graph) -> Sequence[fx.Node]:
    """The values that every path from the images goes through, from the representation on back."""
    found, awaited = [], {graph.output}
    for node in reversed(graph.nodes):
        if node in awaited:
            if len(awaited) == 1:
                found.append(node)
            awaited.remove(node)
            awaited.update(graph.varying(node))
    return found


def _token_axes(paths: Paths, node: fx.Node) -> tuple[int, ...] | None:
    """The axes that tokens lie along: what differs there are places, elsewhere channels; None where that is unknown."""
    wide = _wide(node)
    if len(wide) < 2:
        return ()

    def lies_apart(dim: int) -> bool:
        grid = cells(paths.graph, node, [other for other in range(len(extents_of(node))) if other != dim])
        return grid is not None and len({*zip(grid.cells, grid.times or grid.cells, strict=True)}) > 1

    placed = tuple(dim for dim in wide if lies_apart(dim))
    if placed and len(placed) < len(wide):
        return placed
    origin = paths.origins.of(node)
    if origin is None:
        return None
    positions = tuple(dim for dim in wide if differs(origin.positions, dim))
    channels = [dim for dim in wide if differs(origin.channels, dim)]
    apart = tuple(dim for dim in positions if dim not in channels)
    return apart or (None if len(positions) == len(wide) else positions)


def _weights(graph: Graph, node: fx.Node, axes: tuple[int, ...], pooled: fx.Node) -> Tensor | None:
    """What each token is weighed by, where a value is nothing but a sum of tokens with weights that are the same in all
    channels and for all images; tried on numbers.
    """
    shape = lengths(node, 1)
    order = [0, *axes, *(dim for dim in range(1, len(shape)) if dim not in axes)]
    count = prod(shape[dim] for dim in axes)
    channels = prod(shape) // count
    value, drawn = node.meta["val"], torch.randn(3, count, channels, generator=torch.Generator().manual_seed(0))
    laid = drawn.reshape([-1, *(shape[dim] for dim in order[1:])]).permute(
        [order.index(dim) for dim in range(len(order))]
    )
    laid = laid.to(value.device, value.dtype).requires_grad_()
    values: dict[fx.Node, Any] = {node: laid}
    between = [
        own for own in graph.nodes if own is not node and graph.depends(own, node) and graph.depends(pooled, own)
    ]
    for source in (source for own in between for source in own.all_input_nodes):
        if source not in values and source not in between:
            number = source.meta["val"]
            values[source] = graph.value(source) if isinstance(number, Tensor) else length(number, len(drawn))
    try:
        with torch.enable_grad():
            result = interpret(between, values)[pooled]
            (slopes,) = torch.autograd.grad(result.sum(), laid)
    except (RuntimeError, TypeError, IndexError):
        return None
    weights = slopes.permute(order).reshape(len(drawn), count, channels).float().cpu()[0].mean(1)
    expected = torch.einsum("t,itc->ic", weights, drawn)
    apart = (result.detach().float().cpu().reshape(len(drawn), channels) - expected).norm()
    return weights if bool(apart <= _AGREE * expected.norm()) else None
