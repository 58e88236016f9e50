"""Where the tokens of a layer lie in the image, read off the graph.

A convolution or pooling lays out a grid: every place of its output gets a number, row by row. The numbers are then
    sent through the very operations
that the model applies to its tokens (views, permutations, window partitions, rolls, concatenations with class
tokens), and read where they come out. Nothing is assumed about how many prefix tokens there are or where windows begin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx

from unweave.components import Grid
from unweave.graph.capture import Graph, extents_of, operation

PREFIX = -1
_MOVES = frozenset(
    f"aten.{name}"
    for name in [
        "view",
        "reshape",
        "_unsafe_view",
        "_reshape_copy",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "permute",
        "transpose",
        "swapaxes",
        "movedim",
        "t",
        "numpy_T",
        "expand",
        "select",
        "slice",
        "narrow",
        "roll",
        "flip",
        "cat",
        "stack",
        "index_select",
        "index",
        "constant_pad_nd",
        "pad",
        "clone",
        "contiguous",
        "detach",
        "alias",
        "repeat",
        "pixel_shuffle",
        "pixel_unshuffle",
        "expand_as",
        "view_as",
        "reshape_as",
    ]
)
_WINDOWS = frozenset(
    f"aten.{name}" for name in ("conv2d", "convolution", "avg_pool2d", "max_pool2d", "adaptive_avg_pool2d")
)
_MIXES_LAST = frozenset(f"aten.{name}" for name in ("linear", "layer_norm", "rms_norm", "mm", "addmm"))
_PASSES = frozenset(
    f"aten.{name}"
    for name in [
        "dropout",
        "to",
        "_to_copy",
        "gelu",
        "relu",
        "silu",
        "sigmoid",
        "tanh",
        "hardswish",
        "batch_norm",
        "group_norm",
        "mul",
        "div",
        "sub",
        "neg",
        "add",
        "leaky_relu",
        "elu",
        "softplus",
        "clamp",
        "type_as",
    ]
)


@dataclass(frozen=True)
class _Places:
    """Cell numbers for every entry of a node (one image), on a grid of this size; `PREFIX` for entries of no cell."""

    numbers: Tensor
    height: int
    width: int


_known: WeakKeyDictionary[Graph, dict[fx.Node, _Places | None]] = WeakKeyDictionary()


def cells(graph: Graph, node: fx.Node, channels: Sequence[int]) -> Grid | None:
    """The grid that the positions of a node lie on.

    Args:
        graph: The captured model.
        node: A node with token axes.
        channels: Its axes that are not positions (beside the images).

    Returns:
        The grid, with one cell for each flat position (axes in order), or None where it cannot be told.
    """
    try:
        places = _places(graph, node)
    except (RuntimeError, IndexError, TypeError, ValueError):  # an operation that does not take whole numbers
        return None
    if places is None:
        return None
    numbers = places.numbers
    extents = extents_of(node)
    index = tuple(
        0 if dim in channels or extent == type(extent)(1, True) else slice(None) for dim, extent in enumerate(extents)
    )
    found, prefix = [], 0
    for number in numbers[index].flatten().tolist():
        if number < 0:
            prefix += 1
            found.append(-prefix)
        else:
            found.append(int(number))
    if max(found, default=-1) < 0:
        return None
    return Grid(places.height, places.width, tuple(found))


def _places(graph: Graph, node: fx.Node) -> _Places | None:
    """Numbers the entries of a node, and of what they come from, without recursion (graphs are deep)."""
    known = _known.setdefault(graph, {})
    stack = [node]
    while stack:
        own = stack[-1]
        if own in known:
            stack.pop()
            continue
        origin = [source for source in _origins(graph, own) if source not in known]
        if origin:
            stack += origin
            continue
        known[own] = _numbered(graph, own, known)
        stack.pop()
    return known[node]


def _origins(graph: Graph, node: fx.Node) -> list[fx.Node]:
    """The inputs whose places the node's places follow."""
    if node.op != "call_function":
        return []
    inputs = [source for source in node.all_input_nodes if graph.image_dependent(source)]
    name = operation(node)
    if name in _MOVES:
        return inputs
    if name == "aten.add" and len(inputs) == 2:
        return [
            inputs[0] if graph.depends(inputs[1], inputs[0]) or not graph.depends(inputs[0], inputs[1]) else inputs[1]
        ]
    if name == "aten.scaled_dot_product_attention":
        return [node.args[0]]  # type: ignore[list-item]
    return inputs[:1] if name in _WINDOWS | _MIXES_LAST | _PASSES else []


def _numbered(graph: Graph, node: fx.Node, known: dict[fx.Node, _Places | None]) -> _Places | None:
    origins = _origins(graph, node)
    shape = [extent.size for extent in extents_of(node)] if node.op == "call_function" and _tensor(node) else []
    name = operation(node) if node.op == "call_function" else ""
    before = known.get(origins[0]) if origins else None
    if name in _WINDOWS and len(shape) == 4:
        height, width = shape[-2:]
        if before is not None and (before.height, before.width) == (height, width):
            return _Places(before.numbers[:, :1].expand(shape), height, width)
        return _Places(torch.arange(height * width).view(1, 1, height, width).expand(shape), height, width)
    if before is None:
        located = [known[origin] for origin in origins if known.get(origin) is not None]
        if name != "aten.cat" or not located:
            return None
        before = located[0]
    assert before is not None
    if name in _MOVES:
        return _Places(_moved(graph, node, known), before.height, before.width)
    if name in _MIXES_LAST:
        return _merged(before, shape)
    if name == "aten.scaled_dot_product_attention":
        return _Places(before.numbers[..., :1].expand(shape), before.height, before.width)
    return _Places(before.numbers.expand(shape), before.height, before.width)


def _tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _moved(graph: Graph, node: fx.Node, known: dict[fx.Node, _Places | None]) -> Tensor:
    """The operation applied to place numbers, for one image."""

    def given(source: fx.Node) -> Any:
        if not _tensor(source):
            value = source.meta["val"]
            if not isinstance(value, torch.SymInt):
                return value
            expression = value.node.expr
            return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))
        places = known.get(source)
        if places is not None:
            return places.numbers
        if not graph.image_dependent(source) and not source.meta["val"].is_floating_point():
            return graph.value(source)
        return torch.full([extent.size for extent in extents_of(source)], PREFIX)

    target: Callable[..., Tensor] = node.target  # type: ignore[assignment]
    moved: Any = fx.map_arg((node.args, dict(node.kwargs)), given)
    args, kwargs = moved
    if operation(node) in ("aten.constant_pad_nd", "aten.pad"):
        return torch.nn.functional.pad(args[0], list(args[1]), value=PREFIX)
    return target(*args, **kwargs)


def _merged(before: _Places, shape: list[int]) -> _Places:
    """Places after a layer that mixes the last axis: tokens merged into its channels make a coarser grid."""
    numbers = before.numbers
    first = numbers[..., :1]
    if bool((numbers == first).all()):
        return _Places(first.expand(shape), before.height, before.width)
    rows, columns = first.clamp_min(0) // before.width, first.clamp_min(0) % before.width
    own_rows, row = torch.unique(rows, return_inverse=True)
    own_columns, column = torch.unique(columns, return_inverse=True)
    merged = torch.where(first < 0, first, row * len(own_columns) + column)
    return _Places(merged.expand(shape), len(own_rows), len(own_columns))
