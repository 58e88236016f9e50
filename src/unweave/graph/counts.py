"""For which numbers of images a graph is right.

A forward may decide by the batch size (`if x.shape[0] > 64`): what it decided while it was captured is a condition on
that number. Or it makes a Python number of it (`len(x)`, `int(x.shape[0])`), which is then written into the graph. Such
a module is captured at two sizes, and what is proportional to the size in both graphs follows it; where they differ in
any other way, the forward is another program for each number of images.
"""

from __future__ import annotations

import operator
from dataclasses import replace
from pathlib import Path
from traceback import FrameSummary
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from unweave.graph.graph import Condition, Extent, Graph, line_of

SIZES = (2, 3)
"""The numbers of images at which a module is captured that makes a Python number of it."""

TORCH = str(Path(torch.__file__).parent)


NOT_ONE = Condition(sympy.Ne(sympy.Symbol("images"), 1), "")
"""Torch traces with several images, and takes it that one is no special case."""


def conditions_of(program: torch.export.ExportedProgram) -> tuple[Condition, ...]:
    """What an exported program assumes of the number of images; none where it assumes nothing.

    Where a Python number was made of it, one is that it be the size at which the module was exported.
    """
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"]
    images = next(value for value in reversed(values) if isinstance(value, Tensor))
    guards = images.fake_mode.shape_env.guards  # type: ignore[attr-defined]
    lines = [(guard.expr, guard.sloc.framework_loc) for guard in guards]
    return tuple(
        Condition(expression, _line(frame)) for expression, frame in lines if len(expression.free_symbols) == 1
    )


def _line(frame: object) -> str:
    if not isinstance(frame, FrameSummary) or frame.filename.startswith(TORCH):
        return ""
    return f"{frame.filename}:{frame.lineno} in {frame.name}: {frame.line}"


class Differs(Exception):
    """Two captures differ in more than what is proportional to the number of images; its text is the line, if known."""


class Merging:
    """One graph for any number of images, out of two that were captured of the same module at `SIZES`.

    Args:
        first, second: The two; the first is rewritten.
        count: The number of images, as a symbol.
    """

    def __init__(self, first: Graph, second: Graph, count: torch.SymInt) -> None:
        self.first, self.second, self.count = first, second, count
        self.twins: dict[fx.Node, fx.Node] = {}
        self.lengths: dict[int, fx.Node] = {}

    def run(self) -> Graph:
        """The graph.

        Raises:
            Differs: They differ in more than what is proportional to the number of images.
        """
        pairs = list(zip(self.first.graph.nodes, self.second.graph.nodes, strict=False))
        for node, twin in pairs:
            if node.op != twin.op or (node.op == "call_function" and node.target != twin.target):
                raise Differs(line_of(twin))  # the larger program's: of one image more
            tensors = self.first.tensors.get(node), self.second.tensors.get(twin)
            if tensors[0] is not tensors[1] and not _same(*tensors):
                raise Differs(line_of(node))
            self.twins[node] = twin
            node.args = tuple(self.argument(*both, node) for both in zip(node.args, twin.args, strict=True))
            node.kwargs = {name: self.argument(value, twin.kwargs[name], node) for name, value in node.kwargs.items()}
            if isinstance(node.meta.get("val"), Tensor):
                shapes = zip(node.meta["val"].shape, twin.meta["val"].shape, strict=True)
                node.meta["extents"] = tuple(self.extent(int(one), int(other), node) for one, other in shapes)
        if len(self.first.graph.nodes) - len(self.lengths) != len(self.second.graph.nodes):
            raise Differs("")
        return replace(self.first, conditions=())

    def argument(self, first: Any, second: Any, node: fx.Node) -> Any:
        """An argument for any number of images."""
        if isinstance(first, fx.Node) and self.twins.get(first) is second:
            return first
        if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)) and len(first) == len(second):
            return [self.argument(*both, node) for both in zip(first, second, strict=True)]
        if type(first) is type(second) and first == second:
            return first
        if type(first) is int and type(second) is int:
            return self.length(self.extent(first, second, node).size)
        raise Differs(line_of(node))

    @staticmethod
    def extent(first: int, second: int, node: fx.Node) -> Extent:
        """A length that is the same for both, or proportional to the number of images."""
        if first == second:
            return Extent(first)
        if first % SIZES[0] or first * SIZES[1] != second * SIZES[0]:
            raise Differs(line_of(node))
        return Extent(first // SIZES[0], True)

    def length(self, times: int) -> fx.Node:
        """The node of a multiple of the number of images."""
        graph = self.first.graph
        if 1 not in self.lengths:
            with graph.inserting_before(next(node for node in graph.nodes if node.op == "call_function")):
                self.lengths[1] = graph.call_function(torch.ops.aten.sym_size.int, (self.first.input, 0))
            self.lengths[1].meta = {"val": self.count}
        if times not in self.lengths:
            with graph.inserting_after(self.lengths[1]):
                self.lengths[times] = graph.call_function(operator.mul, (self.lengths[1], times))
            self.lengths[times].meta = {"val": self.count * times}
        return self.lengths[times]


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return False
    return first.dtype == second.dtype and first.device == second.device and torch.equal(first, second)
