"""A captured model as plain records, and what can be asked of it: shapes, arguments, names, source lines, and what is
computed from what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from unweave.errors import CaptureError
from unweave.graph.interpret import interpret
from unweave.graph.watch import Watch

T = TypeVar("T")


@dataclass(frozen=True)
class Extent:
    """The length of one axis: `size`, times the number of images if `batch`."""

    size: int
    batch: bool = False

    def __mul__(self, other: Extent) -> Extent:
        return Extent(self.size * other.size, self.batch or other.batch)

    def __repr__(self) -> str:
        return f"{self.size}*b" if self.batch else str(self.size)


@dataclass(frozen=True)
class Condition:
    """What a forward decided by the number of images while it was captured.

    Attributes:
        expression: True of the numbers of images for which it decides the same (a sympy expression in one symbol).
        line: Where.
    """

    expression: Any
    line: str

    def allows(self, images: int) -> bool:
        """Whether the forward decides the same for so many images."""
        return bool(self.expression.subs(dict.fromkeys(self.expression.free_symbols, images)))


@dataclass(frozen=True, eq=False)
class Origin:
    """What a graph was captured from.

    Attributes:
        module: Images to representation.
        images: Those that it was captured with.
        watch: The module as the graph knows it.
    """

    module: nn.Module
    images: Tensor
    watch: Watch


@dataclass(eq=False)
class Graph:
    """A captured model; all but its tensors stays as it is.

    Attributes:
        graph: The operations, in execution order.
        input: The node of the images.
        output: The node of the representation, `[image, dim]`.
        tensors: The value of every parameter, buffer and constant node; they share the model's memory.
        names: What the module calls them.
        prefix: The module path that every operation of the model shares (a wrapper's), left out of names.
        conditions: What was decided by the number of images while it was captured.
        origin: What it was captured from.
        versions: Of the tensors, when they were last looked at.
        generation: Grows when a tensor has changed, so that what was made of them is made anew.
        regions: The node of the weights of regions, `[image, region, token]`, where tokens are pooled by them.
        whole: The graph that this one was made from, and of each tensor its node there.
    """

    graph: fx.Graph
    input: fx.Node
    output: fx.Node
    tensors: dict[fx.Node, Tensor]
    names: dict[fx.Node, str]
    prefix: str = ""
    conditions: tuple[Condition, ...] = ()
    origin: Origin | None = None
    versions: list[tuple[int, int]] = field(default_factory=list)
    generation: int = 0
    regions: fx.Node | None = None
    whole: tuple[Graph, dict[fx.Node, fx.Node]] | None = None
    _values: dict[fx.Node, Tensor] = field(default_factory=dict, init=False)
    _positions: dict[fx.Node, Tensor] = field(default_factory=dict, init=False)
    """Values that may have decided which entries are read, as they were first seen."""

    def check(self, images: int) -> None:
        """Refuses a number of images for which the model computes something else than the graph.

        Raises:
            CaptureError: Names the line that decides so, and a number of images for which it does not.
        """
        refusing = [condition for condition in self.conditions if images and not condition.allows(images)]
        if refusing:
            others = (*range(images - 1, 0, -1), *range(images + 1, images + 9))
            right = next((n for n in others if all(condition.allows(n) for condition in self.conditions)), None)
            raise CaptureError(
                f"Of {images} image{'s' if images > 1 else ''} the model computes something else than it was captured "
                "as: it decides by their number.",
                where=refusing[0].line or None,
                cure=f"give it {right} images at a time" if right else "take that decision out of its forward",
            )

    @cached_property
    def nodes(self) -> tuple[fx.Node, ...]:
        """The operations that the representation depends on, in execution order."""
        return tuple(node for node in self.graph.nodes if node.op == "call_function")

    @cached_property
    def order(self) -> dict[fx.Node, int]:
        """The place of every node in execution order."""
        return {node: place for place, node in enumerate(self.graph.nodes)}

    @cached_property
    def ancestors(self) -> dict[fx.Node, int]:
        """For every node, the set of nodes it is computed from (itself included), as a bit mask over `order`."""
        masks: dict[fx.Node, int] = {}
        for node, place in self.order.items():
            mask = 1 << place
            # a length is no value: what is shaped like the batch is not computed from the images
            if not _is_length(node):
                for source in node.all_input_nodes:
                    mask |= masks[source]
            masks[node] = mask
        return masks

    def depends(self, node: fx.Node, on: fx.Node) -> bool:
        """Whether `node` is computed from `on` (or is it)."""
        return bool(self.ancestors[node] >> self.order[on] & 1)

    def image_dependent(self, node: fx.Node) -> bool:
        """Whether the node's value is computed from the images, or from regions of them (a shape that follows their
        number is not).
        """
        return any(self.depends(node, given) for given in self.inputs)

    def varying(self, node: fx.Node) -> list[fx.Node]:
        """The image-dependent inputs of a node, each once."""
        return [source for source in node.all_input_nodes if self.image_dependent(source)]

    @property
    def inputs(self) -> tuple[fx.Node, ...]:
        """The nodes of what each batch brings."""
        return (self.input,) if self.regions is None else (self.input, self.regions)

    @cached_property
    def per_batch(self) -> frozenset[fx.Node]:
        """The operations that are computed for every batch: they depend on the images or on their number."""
        computed: set[fx.Node] = set()
        for node in self.nodes:
            sources = node.all_input_nodes
            if (
                self.image_dependent(node)
                or any(_is_length(source) for source in (node, *sources))
                or not computed.isdisjoint(sources)
            ):
                computed.add(node)
        return frozenset(computed)

    def value(self, node: fx.Node) -> Tensor:
        """The value of an image-independent node. An axis that is as long as the batch comes out with length one.

        Raises:
            CaptureError: The value differs from image to image.
        """
        if node not in self._values:
            self._values[node] = value = self._evaluated(node)
            if not value.is_floating_point():
                self._positions.setdefault(node, value.clone())
        return self._values[node]

    def forget(self) -> None:
        """Forgets what was computed of the tensors, as one has changed.

        Raises:
            CaptureError: Whole numbers or truth values (which entries an operation picks) are no longer what they were,
                and a plan is built on them.
        """
        if self.whole is not None:
            self.whole[0].forget()
        self.forget_values()

    def forget_values(self) -> None:
        """The same, of this graph alone.

        Raises:
            CaptureError: As for `forget`.
        """
        self._values.clear()
        self.generation += 1
        for node, value in self._positions.items():
            if not torch.equal(self.value(node), value):
                raise CaptureError(
                    f"The values of {self.names.get(node, operation(node))} have changed since it was planned.",
                    where=line_of(node) or None,
                    cure="plan again",
                )

    def _evaluated(self, node: fx.Node) -> Tensor:
        if node in self.tensors:
            return self.tensors[node]
        images = self.input.meta["val"]
        example = torch.empty((2, *images.shape[1:]), dtype=images.dtype, device="meta")
        with torch.no_grad():
            needed = reached(node, lambda source: source.all_input_nodes)  # lengths included
            operations = [source for source in needed if source.op == "call_function"]
            operations.sort(key=self.order.__getitem__)
            value = interpret(operations, {**self.tensors, self.input: example})[node]
        for dim, extent in enumerate(extents_of(node)):
            if extent.batch:
                if extent.size != 1 or not torch.equal(value.select(dim, 0), value.select(dim, 1)):
                    raise CaptureError("A constant differs from image to image.", where=line_of(node))
                value = value.narrow(dim, 0, 1)
        return value

    def module(self, node: fx.Node) -> str:
        """The path of the module that ran this operation, as the model names it."""
        stack = module_stack(node)
        path = stack[-1] if stack else ""
        return path.removeprefix(self.prefix).removeprefix(".") if self.prefix else path


def reached(start: T, onward: Callable[[T], Iterable[T]]) -> Iterator[T]:
    """A node (or a node and what is known of the way to it), and all that it leads on to, each once; what one leads on
    to is asked after it was looked at.
    """
    pending, seen = [start], {start}
    while pending:
        one = pending.pop()
        yield one
        following = dict.fromkeys(other for other in onward(one) if other not in seen)
        seen.update(following)
        pending += following


def _is_length(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (int, torch.SymInt))


def module_stack(node: fx.Node) -> list[str]:
    """Paths of the modules around an operation, outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return [path for path, _ in stack.values() if not path.startswith("_empty")]


def passes_of(node: fx.Node) -> dict[str, int]:
    """How often each module around an operation had run before it, for those that had."""
    stack = node.meta.get("nn_module_stack") or {}
    calls = {path: key.rpartition("@")[2] for key, (path, _) in stack.items() if "@" in key}
    return {path: int(number) for path, number in calls.items() if number.isdigit()}


def line_of(node: fx.Node) -> str:
    """The source line of an operation: `file.py:123 in forward: code`, or an empty text."""
    trace = (node.meta.get("stack_trace") or "").strip().splitlines()
    if len(trace) < 2:
        return ""
    place = trace[-2].strip().removeprefix("File ").replace('", line ', ":").replace('"', "").replace(", in ", " in ")
    return f"{place}: {trace[-1].strip()}"


def arguments(node: fx.Node) -> dict[str, Any]:
    """An operation's arguments by the names of its schema, defaults filled in."""
    schema = node.target._schema  # type: ignore[union-attr]
    bound: dict[str, Any] = {}
    for place, argument in enumerate(schema.arguments):
        if place < len(node.args) and not argument.kwarg_only:
            bound[argument.name] = node.args[place]
        elif argument.name in node.kwargs:
            bound[argument.name] = node.kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value
    return {("input" if name == "self" else name): value for name, value in bound.items()}


def operation(node: fx.Node) -> str:
    """The operation's name without its overload: `aten.linear`."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target._schema.name).replace("::", ".")
    name = getattr(target, "__name__", str(target))
    return operation(node.args[0]) if name == "getitem" and isinstance(node.args[0], fx.Node) else name


def extents_of(node: fx.Node) -> tuple[Extent, ...]:
    """The shape of a node, as multiples of the number of images where it depends on it.

    Raises:
        CaptureError: A length is neither fixed nor a multiple of the number of images.
    """
    extents = node.meta.get("extents")
    if extents is None:
        extents = node.meta["extents"] = tuple(_extent(length, node) for length in node.meta["val"].shape)
    return extents


def _extent(length: int | torch.SymInt, node: fx.Node) -> Extent:
    if isinstance(length, int):
        return Extent(length)
    expression = length.node.expr
    if expression.is_Integer:
        return Extent(int(expression))
    symbols = sorted(expression.free_symbols, key=str)
    if len(symbols) == 1:
        two, six, ten = (expression.subs(symbols[0], value) for value in (2, 6, 10))
        if two.is_Integer and 3 * two == six and 5 * two == ten and int(two) % 2 == 0:
            return Extent(int(two) // 2, True)
    raise CaptureError(
        f"The shape of {operation(node)} depends on the images in a way other than their number ({expression}).",
        where=line_of(node),
        cure="make the module's shapes depend on the image size only",
    )
