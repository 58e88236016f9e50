"""Where in the image the entries of a node lie: labels that are numbers of places, sent through the graph.

Whatever lays out a grid (the image, a convolution) numbers its places row by row, those of a clip frame by frame; what
follows moves the numbers, keeps them, or merges them to those of a coarser grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx

from unweave.components import PADDING, Grid
from unweave.graph.graph import Graph, arguments, extents_of
from unweave.operations.table import row
from unweave.structure.labels import FILLED, OTHER, floating, lengths, moved


@dataclass(frozen=True)
class _Places:
    """For every entry of a node (of one image) the number of its place on a grid of this size, counted from one; the
    places of a clip's next frames are numbered on.
    """

    numbers: Tensor
    height: int
    width: int


_placed: WeakKeyDictionary[Graph, dict[fx.Node, _Places | None]] = WeakKeyDictionary()


def cells(graph: Graph, node: fx.Node, channels: Sequence[int]) -> Grid | None:
    """The grid that the positions of a node lie on.

    Args:
        graph: The captured model.
        node: A node with token axes.
        channels: Its axes that are not positions (beside the images).

    Returns:
        The grid, with one cell for each flat position (axes in order), or None where it cannot be told.
    """
    places = _places(graph, node)
    if places is None:
        return None
    index = tuple(
        0 if dim in channels or (extent.batch and extent.size == 1) else slice(None)
        for dim, extent in enumerate(extents_of(node))
    )
    numbers, times, prefix, frame = [], [], 0, places.height * places.width
    for number in places.numbers[index].flatten().long().tolist():
        prefix += number == OTHER
        numbers.append((number - 1) % frame if number > 0 else PADDING if number == FILLED else -prefix)
        times.append((number - 1) // frame if number > 0 else 0)
    if max(numbers, default=-1) < 0:
        return None
    return Grid(places.height, places.width, tuple(numbers), tuple(times) if any(times) else ())


def lost(graph: Graph, node: fx.Node) -> fx.Node:
    """Where it can no longer be told where the entries of a node without a grid lie in the image."""
    placed = _placed.setdefault(graph, {})
    while (origins := _origins(graph, node)) and not any(placed.get(source) for source in origins):
        node = origins[0]
    return node


def _places(graph: Graph, node: fx.Node) -> _Places | None:
    """Numbers the entries of a node, and of what they come from, without recursion (graphs are deep)."""
    placed = _placed.setdefault(graph, {})
    stack = [node]
    while stack:
        current = stack[-1]
        missing = [source for source in _origins(graph, current) if source not in placed]
        if current in placed or not missing:
            stack.pop()
            if current not in placed:
                try:
                    placed[current] = _numbered(graph, current, placed)
                except (RuntimeError, IndexError, TypeError, ValueError):  # an operation that takes no such numbers
                    placed[current] = None
        stack += [] if current in placed else missing
    return placed[node]


def _origins(graph: Graph, node: fx.Node) -> list[fx.Node]:
    """The inputs whose places the node's places follow: of several the one that is computed first (the trunk of a sum,
    the queries of an attention).
    """
    known = row(node)
    inputs = graph.varying(node)
    if known.moves:
        return [source for source in inputs if source is not arguments(node).get(known.like)]
    if known.attends:
        return [arguments(node)[known.attends[0]]]
    if known.mixes in ("window", "grid", "last") or known.norm or _by_matrix(graph, node):
        return inputs[:1]
    return [min(inputs, key=graph.order.__getitem__)] if known.elementwise and inputs else []


def _numbered(graph: Graph, node: fx.Node, placed: Mapping[fx.Node, _Places | None]) -> _Places | None:
    if not isinstance(node.meta.get("val"), Tensor):
        return None
    known, shape = row(node), lengths(node, 1)
    located = [placed[source] for source in _origins(graph, node) if placed.get(source) is not None]
    before = located[0] if located else None
    if before is not None and known.mixes in ("window", "grid") and _patchwise(before, shape):
        merged = _merged(_Places(before.numbers.flatten(1), before.height, before.width), shape[:2])
        return _Places(merged.numbers.reshape(shape), merged.height, merged.width)
    if node is graph.input or (known.mixes in ("window", "grid") and len(shape) > 3):
        height, width = shape[-2:]
        if before is not None and (before.height, before.width) == (height, width) and len(shape) == 4:
            return _Places(before.numbers[:, :1].expand(shape), height, width)
        # Of the input, either axis may be the frames.
        frames = shape[-3] if len(shape) == 5 and node is not graph.input else 1
        numbers = torch.arange(1, frames * height * width + 1, dtype=torch.float64)
        return _Places(numbers.view(frames, height, width).expand(shape), height, width)
    if before is None or (known.mixes in ("window", "grid") and list(before.numbers.shape[2:]) != shape[2:]):
        return None
    if known.moves:
        labels = {source: places.numbers for source, places in placed.items() if places is not None}
        return _Places(moved(graph, node, labels, 1, OTHER), before.height, before.width)
    if known.mixes == "last" or _by_matrix(graph, node):
        return _merged(before, shape)
    if known.mixes == "window":
        return _Places(before.numbers[:, :1].expand(shape), before.height, before.width)
    if known.attends:
        return _Places(before.numbers[..., :1].expand(shape), before.height, before.width)
    numbers = before.numbers.expand(shape)
    for source in node.all_input_nodes if known.adds else ():
        if not graph.image_dependent(source) and floating(source):  # a token written where there was room for it
            filled = (numbers == FILLED) & (graph.value(source).cpu() != 0)
            numbers = torch.where(filled, float(OTHER), numbers)
    return _Places(numbers, before.height, before.width)


def _by_matrix(graph: Graph, node: fx.Node) -> bool:
    """Whether a value is multiplied by a matrix of weights from the right, as a linear layer does."""
    known = row(node)
    if not known.contracts or len(known.product) != 2:
        return False
    value, weights = (arguments(node).get(name) for name in known.product)
    if not isinstance(value, fx.Node) or not isinstance(weights, fx.Node) or graph.image_dependent(weights):
        return False
    sizes, matrix = lengths(value, 1), lengths(weights, 1)
    return graph.image_dependent(value) and len(matrix) == 2 and lengths(node, 1) == [*sizes[:-1], matrix[1]]


def _patchwise(before: _Places, shape: list[int]) -> bool:
    """Whether a convolution is given patches, one beside the other on the axis of images, and makes a token of each."""
    return shape[0] > 1 and before.numbers.shape[0] == shape[0] and all(length == 1 for length in shape[2:])


def _merged(before: _Places, shape: list[int]) -> _Places:
    """Places after a layer that mixes the last axis: tokens merged into its channels make a coarser grid."""
    first = before.numbers[..., :1].long()
    if bool((before.numbers == first).all()):
        return _Places(before.numbers[..., :1].expand(shape), before.height, before.width)
    rows, columns = (first - 1).clamp_min(0) // before.width, (first - 1).clamp_min(0) % before.width
    times, rows = rows // before.height, rows % before.height
    coarse_rows, down = torch.unique(rows, return_inverse=True)
    coarse_columns, across = torch.unique(columns, return_inverse=True)
    down += times * len(coarse_rows)
    merged = torch.where(first <= 0, first, down * len(coarse_columns) + across + 1).double()
    return _Places(merged.expand(shape), len(coarse_rows), len(coarse_columns))
