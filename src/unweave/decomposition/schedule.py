"""What runs when: the model's own operations and the contractions between them, in one list.

Contractions run as early as their inputs are there, so that what is kept across the forward pass is the smaller of a
value and what is needed of it: rows of a class token, not the token tensor; inner products with a direction, not the
values they are taken of. Every value is freed at its last use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from unweave.adjoint.operand import Runtime
from unweave.decomposition.contraction import Emission, Value, arranged, laid_out, multiplied
from unweave.decomposition.order import NOMINAL_BATCH
from unweave.decomposition.weights import Weights
from unweave.graph.graph import Graph, arguments, extents_of
from unweave.graph.interpret import applied
from unweave.operations.table import row

Environment: TypeAlias = "dict[object, Any]"
"""What is there during a batch: values of nodes, of contractions, and of norms' statistics (`("rstd", node)`)."""


@dataclass(eq=False)
class Instruction:
    """One step of a batch.

    Attributes:
        run: Computes something into the environment.
        makes, reads: What it computes, and from what.
        emits: Where that is added to the result.
        frees: What nothing later reads.
        output: Whether it computes the representation.
    """

    run: Callable[[Environment, Weights], None]
    makes: tuple[object, ...]
    reads: tuple[object, ...]
    emits: tuple[Emission, ...] = ()
    frees: tuple[object, ...] = ()
    output: bool = False


def scheduled(graph: Graph, values: Sequence[Value], emissions: Sequence[Emission]) -> tuple[Instruction, ...]:
    """Every step of a batch, in order."""
    nodes = [node for node in graph.nodes if node in graph.per_batch]
    place: dict[object, int] = {node: number for number, node in enumerate(nodes)}
    values = [value for value in values if not value.constant]
    when = _times(values, place)
    at: dict[int, list[Value]] = {}
    for value in values:
        at.setdefault(when[value], []).append(value)
    last_read = {source: place[node] for node in nodes for source in node.all_input_nodes}
    read_later: set[object] = set()  # nodes that a contraction reads when no operation does any more
    statistics: set[object] = set()
    emits: dict[Value, list[Emission]] = {}
    for value in values:
        for source in _sources(value):
            if isinstance(source, fx.Node) and when[value] > max(last_read.get(source, -1), place.get(source, -1)):
                read_later.add(source)
            elif isinstance(source, tuple):
                statistics.add(source[1])
    for emission in emissions:
        emits.setdefault(emission.value, []).append(emission)
    instructions: list[Instruction] = []
    for number in range(-1, len(nodes)):
        if number >= 0:
            node = nodes[number]
            reads = tuple(source for source in node.all_input_nodes if source in place or source in graph.inputs)
            if node in statistics:
                instructions.append(Instruction(_normalising(node), (node, ("rstd", node)), reads))
            else:
                instructions.append(Instruction(_operating(node, node in read_later), (node,), reads))
            instructions[-1].output = node is graph.output
        for value in at.get(number, ()):
            run = _reading(value) if value.operand is not None else _multiplying(value)
            instructions.append(Instruction(run, (value,), tuple(_sources(value)), tuple(emits.get(value, ()))))
    last: dict[object, Instruction] = {}
    varying = {*graph.inputs, *(name for instruction in instructions for name in instruction.makes)}
    for instruction in instructions:
        for name in varying.intersection((*instruction.makes, *instruction.reads)):
            last[name] = instruction
    for name, instruction in last.items():
        instruction.frees += (name,)
    return tuple(instructions)


def bytes_per_image(instructions: Sequence[Instruction], itemsize: int) -> int:
    """Bytes that one image adds at the peak beside the model's own forward pass: values kept for the contractions."""
    live = peak = plain = plain_peak = 0
    last: dict[object, int] = {}
    for number, instruction in enumerate(instructions):
        for node in instruction.makes:
            for source in node.all_input_nodes if isinstance(node, fx.Node) else ():
                last[source] = number
    sizes: dict[object, int] = {}
    for number, instruction in enumerate(instructions):
        for name in instruction.makes:
            sizes[name] = _bytes(name, itemsize)
            live += sizes[name]
            plain += sizes[name] if isinstance(name, fx.Node) else 0
        peak, plain_peak = max(peak, live), max(plain_peak, plain)
        live -= sum(sizes.get(name, 0) for name in instruction.frees)
        plain -= sum(sizes.get(name, 0) for name, at in last.items() if at == number)
    return max(0, peak - plain_peak)


# -- when --------------------------------------------------------------------------------------------------------------


def _times(values: Sequence[Value], place: Mapping[object, int]) -> dict[Value, int]:
    """After which operation each contraction runs; -1 for before the first."""
    when: dict[Value, int] = {}
    for value in values:
        names = (name[1] if isinstance(name, tuple) else name for name in _sources(value))
        when[value] = max((when[n] if isinstance(n, Value) else place.get(n, -1) for n in names), default=-1)
    needed: dict[Value, int] = {}
    for value in values:
        for factor in value.inputs:
            needed[factor] = min(needed.get(factor, when[value]), when[value])
    for value in values:  # what grows when it is read waits until it is needed
        if value.operand is not None and value in needed and _grows(value):
            when[value] = max(when[value], needed[value])
    return when


def _sources(value: Value) -> list[object]:
    """What a runtime value is computed from: nodes, statistics, or other runtime values."""
    if value.operand is None:
        return [factor for factor in value.inputs if not factor.constant]
    source = value.operand.source
    if isinstance(source, Runtime):
        if source.kind == "rstd" and row(source.node).statistic:
            return [("rstd", source.node)]
        return list(source.inputs)
    return [source]


def _grows(value: Value) -> bool:
    """Whether a leaf is larger than what it is read from."""
    assert value.operand is not None
    source = value.operand.source
    if not isinstance(source, Runtime):
        return all(axis.take is None for axis in value.operand.axes)
    return value.elements() > sum(_size(node) for node in source.inputs)


def _bytes(name: object, itemsize: int) -> int:
    """The size of one image's share of a value."""
    if isinstance(name, Value):
        return name.elements(1) * itemsize
    if not isinstance(name, fx.Node):
        return 0  # a norm's statistic
    value = name.meta.get("val")
    return value.element_size() * _size(name, 1) if isinstance(value, Tensor) else 0


def _size(node: fx.Node, batch: int = NOMINAL_BATCH) -> int:
    """The number of entries of a node's value."""
    return prod(extent.size * (batch if extent.batch else 1) for extent in extents_of(node))


# -- what an instruction does ------------------------------------------------------------------------------------------


def _operating(node: fx.Node, read_later: bool) -> Callable[[Environment, Weights], None]:
    """Runs one of the model's own operations; what is read later must not be a small part of something large."""

    def run(environment: Environment, weights: Weights) -> None:
        result = applied(node, lambda source: _value(source, environment, weights))
        if read_later and result.untyped_storage().nbytes() > 1.5 * result.numel() * result.element_size():
            result = result.contiguous() if not result.is_contiguous() else result.clone()
        environment[node] = result

    return run


def _normalising(node: fx.Node) -> Callable[[Environment, Weights], None]:
    """Runs a norm that gives its statistic as well."""
    given, both = arguments(node), row(node).statistic
    assert both is not None

    def run(environment: Environment, weights: Weights) -> None:
        values: dict[str, Any] = fx.map_arg(given, lambda source: _value(source, environment, weights))
        environment[node], environment["rstd", node] = both(**values)

    return run


def _multiplying(value: Value) -> Callable[[Environment, Weights], None]:
    """Multiplies two factors."""
    pairing = value.pairing
    assert pairing is not None

    def run(environment: Environment, weights: Weights) -> None:
        left, right = (
            weights.arranged[value.number, place]
            if factor.constant
            else arranged(environment[factor], pairing, place == 0)
            for place, factor in enumerate(value.inputs)
        )
        environment[value] = multiplied(left, right, pairing).reshape(value.shape)

    return run


def _reading(value: Value) -> Callable[[Environment, Weights], None]:
    """Reads a value, or what is made of several, as an operand says."""
    operand = value.operand
    assert operand is not None
    source, positions = operand.source, [axis.take for axis in operand.axes]
    partial = any(take is not None for take in positions)

    def read(environment: Environment, weights: Weights) -> None:
        assert isinstance(source, fx.Node)
        tensor = laid_out(_value(source, environment, weights), operand)
        if tensor.dtype != weights.dtype:
            tensor = tensor.to(weights.dtype)
        elif partial:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        environment[value] = tensor

    if not isinstance(source, Runtime):
        return read
    inputs, make = source.inputs, source.make
    skip = [len(positions) + dim for dim in source.reads]
    statistic = _sources(value)[0] if isinstance(_sources(value)[0], tuple) else None

    def compute(environment: Environment, weights: Weights) -> None:
        if statistic is not None:
            tensor = environment[statistic]
        else:
            values = (_value(node, environment, weights) for node in inputs)
            floats = (tensor.to(weights.dtype) if tensor.is_floating_point() else tensor for tensor in values)
            tensor = make(*floats, positions)
        laid = laid_out(tensor.to(weights.dtype), operand, skip)
        environment[value] = laid.clone() if partial else laid  # or what was not read would stay alive

    return compute


def _value(node: fx.Node, environment: Environment, weights: Weights) -> Any:
    return environment[node] if node in environment else weights.value(node)
