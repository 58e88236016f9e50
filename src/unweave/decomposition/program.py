"""A plan's program: the model's own operations and the contractions between them, in one list, each value freed at
its last use.

Contractions run as early as their inputs are there, so that what is kept across the forward pass is the smaller of a
value and what is needed of it: rows of a class token, not the token tensor; inner products with a direction, not the
values they are taken of. Nothing of the user's module is touched: its graph is interpreted over its own weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from unweave.adjoint.merge import read_positions
from unweave.adjoint.pending import BATCH, Axis, Constant, Index, Indices, Operand, Runtime
from unweave.decomposition.contraction import NOMINAL_BATCH, Contractions, Value, arranged, multiplied
from unweave.decomposition.pieces import Reading
from unweave.graph.capture import Graph, arguments, extents_of, operation


@dataclass(frozen=True)
class Emission:
    """Where a value goes in the result.

    Attributes:
        value: The contraction's result.
        order: Its axes in the order (batch, kept, out); -1 for one along which it is the same everywhere.
        sizes: The length of each of these; -1 for the batch.
        columns: The result's columns.
        chosen: Which of the value's columns those are; None for all.
        scale: A factor.
        count: How many columns the value has.
    """

    value: Value
    order: tuple[int, ...]
    sizes: tuple[int, ...]
    columns: tuple[int, ...]
    chosen: tuple[int, ...] | None
    scale: float
    count: int


@dataclass(frozen=True)
class Job:
    """Columns of the result and the readings that add up to them.

    Attributes:
        readings: The summands.
        columns: The columns of the result that they are added to.
        chosen: Which of the readings' columns those are; None for all.
    """

    readings: tuple[Reading, ...]
    columns: tuple[int, ...]
    chosen: tuple[int, ...] | None = None


class Program:
    """Operations and contractions in execution order.

    Args:
        graph: The captured model.
        jobs: What to compute.
        columns: How many columns the result has.
        directions: For scores, how many directions; None for vectors.
        sets: For scores, which set of directions each column is measured along; all along the first if not given.
    """

    def __init__(
        self,
        graph: Graph,
        jobs: Sequence[Job],
        columns: int,
        directions: int | None = None,
        sets: Sequence[int] | None = None,
    ) -> None:
        self.graph, self.jobs, self.columns, self.directions = graph, tuple(jobs), columns, directions
        self._sets = tuple(sets) if sets is not None else (0,) * columns
        self.contractions = Contractions()
        self._held: Tensor | None = None
        self._state: _State | None = None
        self.emissions = tuple(emission for job in jobs for emission in self._emissions(job))
        self.width = directions if directions is not None else extents_of(graph.output)[1].size

    # -- building --------------------------------------------------------------------------------------------------

    def _emissions(self, job: Job) -> Sequence[Emission]:
        found = []
        for reading in job.readings:
            operands, out = list(reading.operands), reading.out
            if self.directions is not None:
                new: Indices = (Index(self.directions),) if self.directions > 1 else ()
                places = range(prod(index.size for index in reading.kept)) if job.chosen is None else job.chosen
                along, sets = _followed(reading.kept, places, [self._sets[column] for column in job.columns])
                shape = (*(index.size for index in (*along, *reading.out)), self.directions)
                make = partial(self._direction_values, sets, shape)
                constant = Constant(shape, (), make, ("directions", sets, shape))
                axes = (*(Axis((index,)) for index in (*along, *reading.out)), Axis(new))
                operands.append(Operand(constant, axes))
                out = new
            wanted = (BATCH, *reading.kept, *out)
            value, own = self.contractions.contract(operands, wanted)
            order = tuple(own.index(index) if index in own else -1 for index in wanted)
            sizes = tuple(-1 if index is BATCH else index.size for index in wanted)
            count = prod(index.size for index in reading.kept)
            found.append(Emission(value, order, sizes, job.columns, job.chosen, reading.scale, count))
        return found

    def _direction_values(self, sets: Sequence[int], shape: Sequence[int]) -> Tensor:
        assert self._held is not None
        return self._held[list(sets)].transpose(1, 2).reshape(shape)

    @cached_property
    def instructions(self) -> tuple[_Instruction, ...]:
        """Every step of a batch, in order."""
        return _scheduled(self)

    # -- running ---------------------------------------------------------------------------------------------------

    def run(self, images: Tensor, directions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One batch.

        Args:
            images: `[image, channel, height, width]`.
            directions: For scores, `[set, direction, dim]`.

        Returns:
            The result, `[image, column, width]`, and the representation, `[image, dim]`.
        """
        with torch.no_grad():
            state = self._ready(images, directions)
            result = torch.zeros(len(images), self.columns, self.width, dtype=state.dtype, device=images.device)
            environment: dict[object, Any] = {self.graph.input: images}
            representation: Tensor | None = None
            for instruction in self.instructions:
                instruction.run(environment, state)
                for emission in instruction.emits:
                    _emit(emission, _value_of(emission.value, environment, state), result)
                if instruction.output:
                    representation = environment[self.graph.output]
                for name in instruction.frees:
                    del environment[name]
            for emission in self.emissions:
                if emission.value.constant:
                    _emit(emission, state.constants[emission.value.number], result)
        assert representation is not None
        return result, representation

    def _ready(self, images: Tensor, directions: Tensor | None) -> _State:
        """The weight-only values for the model's present weights, made when they or the directions have changed."""
        versions = tuple((tensor.data_ptr(), _version(tensor)) for tensor in self.graph.tensors.values())
        key = (versions, images.device)
        if self._state is None or self._state.key != key:
            self._held = directions
            self._state = _State(self, key, images)
        elif directions is not None and (self._held is None or not torch.equal(self._held, directions)):
            self._held = directions
            self._state.redirect()
        return self._state

    @cached_property
    def bytes_per_image(self) -> int:
        """Bytes that one image adds at the peak beside the model's own forward pass: values kept for the
        contractions, and the result.
        """
        itemsize = 8 if self.graph.input.meta["val"].dtype == torch.float64 else 4
        live = peak = plain = plain_peak = 0
        last: dict[object, int] = {}
        for number, instruction in enumerate(self.instructions):
            for node in instruction.makes:
                for source in node.all_input_nodes if isinstance(node, fx.Node) else ():
                    last[source] = number
        sizes: dict[object, int] = {}
        for number, instruction in enumerate(self.instructions):
            for name in instruction.makes:
                sizes[name] = _bytes(name, itemsize)
                live += sizes[name]
                plain += sizes[name] if isinstance(name, fx.Node) else 0
            peak, plain_peak = max(peak, live), max(plain_peak, plain)
            live -= sum(sizes.get(name, 0) for name in instruction.frees)
            plain -= sum(sizes.get(name, 0) for name, at in last.items() if at == number)
        return max(0, peak - plain_peak) + self.columns * self.width * itemsize

    @cached_property
    def constant_bytes(self) -> int:
        """Bytes of the weight-only values that stay once the program has run."""
        itemsize = 8 if self.graph.input.meta["val"].dtype == torch.float64 else 4
        used = _runtime_constants(self)
        return sum(value.elements() * itemsize for value in self.contractions.values if value.number in used)

    @cached_property
    def dense(self) -> tuple[int, ...]:
        """Columns whose pending map depends on the image in the channels too, so that weights and image cannot be
        told apart.
        """
        found: set[int] = set()
        for job in self.jobs:
            for reading in job.readings:
                weights = {index for operand in reading.operands if operand.constant for index in operand.indices}
                for operand in reading.operands[1:]:
                    if isinstance(operand.source, Runtime) and operand.source.kind in (
                        "winners",
                        "slope",
                        "value",
                        "inverse",
                    ):
                        shared = weights & set(operand.indices)
                        if any(len(set(operand.indices)) > 1 and index is not BATCH for index in shared):
                            found.update(job.columns)
        return tuple(sorted(found))

    def drop(self) -> None:
        """Forgets the weight-only values; the next run makes them again."""
        self._state = None


def _version(tensor: Tensor) -> int:
    """Changes when a tensor is written to; tensors made in inference mode do not count."""
    return 0 if tensor.is_inference() else tensor._version


class _State:
    """The weight-only values of a program on a device and dtype."""

    def __init__(self, program: Program, key: object, images: Tensor) -> None:
        self.key, self.program = key, program
        self.dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
        self.device = images.device
        self.folded: dict[fx.Node, Tensor] = {}
        needed = program.graph
        for node in _outer_constants(program.graph):
            self.folded[node] = needed.value(node) if node not in needed.tensors else needed.tensors[node]
        self.constants: dict[int, Tensor] = {}
        self.arranged: dict[tuple[int, int], Tensor] = {}
        self._fold(lambda value: True)

    def redirect(self) -> None:
        """Makes the values that depend on the directions anew."""
        self._fold(lambda value: _directed(value))

    def _fold(self, chosen: Callable[[Value], bool]) -> None:
        values = self.program.contractions.values
        memo: dict[object, Tensor] = {}
        used = _runtime_constants(self.program)
        uses: dict[int, int] = {}
        for value in values:
            if value.constant:
                for inner in value.inputs:
                    uses[inner.number] = uses.get(inner.number, 0) + 1
        live: dict[int, Tensor] = {}

        def made(value: Value) -> Tensor:
            if value.number in live:
                return live[value.number]
            if value.operand is not None:
                tensor = _laid_out(self._constant(value.operand.source, memo), value.operand)
            else:
                assert value.pairing is not None
                first, second = (made(inner) for inner in value.inputs)
                tensor = _paired(first, second, value)
            live[value.number] = tensor
            return tensor

        for value in values:
            if value.constant and value.number in used and chosen(value):
                self.constants[value.number] = made(value)
        for value in values:
            if value.constant or value.pairing is None:
                continue
            for place, inner in enumerate(value.inputs):
                if inner.constant and chosen(inner):
                    laid = arranged(self.constants[inner.number], value.pairing, place == 0)
                    self.arranged[value.number, place] = laid.contiguous() if laid.numel() < 2**27 else laid

    def _constant(self, source: object, memo: dict[object, Tensor]) -> Tensor:
        assert isinstance(source, Constant)
        if source in memo:
            return memo[source]
        inputs = []
        for inner in source.inputs:
            if isinstance(inner, Constant):
                inputs.append(self._constant(inner, memo))
            else:
                inputs.append(self.program.graph.value(inner).to(self.device, self.dtype))
        tensor = source.make(*inputs).to(self.device, self.dtype)
        memo[source] = tensor
        return tensor


def _directed(value: Value) -> bool:
    """Whether a weight-only value depends on the directions."""
    if value.operand is not None:
        source = value.operand.source
        return isinstance(source, Constant) and isinstance(source.key, tuple) and source.key[:1] == ("directions",)
    return any(_directed(inner) for inner in value.inputs)


def _runtime_constants(program: Program) -> set[int]:
    """Weight-only values that a runtime product or the result reads."""
    used = {emission.value.number for emission in program.emissions if emission.value.constant}
    for value in program.contractions.values:
        if not value.constant:
            used |= {inner.number for inner in value.inputs if inner.constant}
    return used


def _laid_out(tensor: Tensor, operand: Operand, skip: Sequence[int] = ()) -> Tensor:
    """A tensor read as an operand says, with one axis for each atomic index."""
    takes = [None if place in skip else axis.take for place, axis in enumerate(operand.axes)]
    tensor = read_positions(tensor, takes)
    images = 0
    shape: list[int] = []
    for place, axis in enumerate(operand.axes):
        if BATCH in axis.indices:
            rest = 1
            for index in axis.indices:
                rest *= index.size if index is not BATCH else 1
            images = tensor.shape[place] // rest
        shape += [images if index is BATCH else index.size for index in axis.indices]
    tensor = tensor.reshape(shape)
    indices = operand.indices
    if len(set(indices)) < len(indices):  # an index that runs along two axes at once: their diagonal
        own = tuple(dict.fromkeys(indices))
        tensor = torch.einsum(tensor, [own.index(index) for index in indices], list(range(len(own))))
    return tensor


def _paired(first: Tensor, second: Tensor, value: Value) -> Tensor:
    pairing = value.pairing
    assert pairing is not None
    product = multiplied(arranged(first, pairing, True), arranged(second, pairing, False), pairing)
    return product.reshape([size or -1 for size in value.sizes])


def _followed(kept: Indices, places: Sequence[int], sets: Sequence[int]) -> tuple[Indices, tuple[int, ...]]:
    """The leading kept indices along which the set of directions changes, and the set for each of their entries: heads
    differ, tokens of a head do not.
    """
    for leading in range(len(kept) + 1):
        block = prod(index.size for index in kept[leading:])
        found: dict[int, int] = {}
        if all(found.setdefault(place // block, own) == own for place, own in zip(places, sets, strict=True)):
            break
    entries = prod(index.size for index in kept[:leading])
    return kept[:leading], tuple(found.get(entry, sets[0]) for entry in range(entries))


def _value_of(value: Value, environment: dict[object, Any], state: _State) -> Tensor:
    return state.constants[value.number] if value.constant else environment[value]


def _emit(emission: Emission, tensor: Tensor, result: Tensor) -> None:
    tensor = tensor.permute([place for place in emission.order if place >= 0])
    for axis, place in enumerate(emission.order):
        tensor = tensor.unsqueeze(axis) if place < 0 else tensor
    tensor = tensor.expand(emission.sizes).reshape(len(tensor), emission.count, result.shape[2])
    if emission.chosen is not None:
        tensor = tensor[:, list(emission.chosen)]
    columns = emission.columns
    if len(columns) == 1 or columns[-1] - columns[0] == len(columns) - 1:
        result[:, columns[0] : columns[-1] + 1].add_(tensor, alpha=emission.scale)
    else:
        result[:, list(columns)] += tensor * emission.scale


def _outer_constants(graph: Graph) -> list[fx.Node]:
    """Image-independent nodes that an operation on images reads, and that need not be computed for every batch."""
    found: dict[fx.Node, None] = {}
    for node in graph.nodes:
        if _runs(graph, node):
            for source in node.all_input_nodes:
                if not _runs(graph, source) and source is not graph.input:
                    found[source] = None
    return list(found)


def _runs(graph: Graph, node: fx.Node) -> bool:
    """Whether a node is computed for every batch: it depends on the images or on their number."""
    if node.op != "call_function":
        return False
    known = node.meta.get("runs")
    if known is None:
        known = graph.image_dependent(node) or any(
            isinstance(source.meta.get("val"), (int, torch.SymInt)) or _runs(graph, source)
            for source in node.all_input_nodes
        )
        known = known or isinstance(node.meta.get("val"), (int, torch.SymInt))
        node.meta["runs"] = known
    return bool(known)


# -- scheduling ----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Instruction:
    """One step: computes something into the environment."""

    run: Callable[[dict[object, Any], _State], None]
    makes: tuple[object, ...]
    reads: tuple[object, ...]
    emits: tuple[Emission, ...] = ()
    frees: tuple[object, ...] = ()
    output: bool = False


def _scheduled(program: Program) -> tuple[_Instruction, ...]:
    graph = program.graph
    nodes = [node for node in graph.nodes if _runs(graph, node)]
    place = {node: number for number, node in enumerate(nodes)}
    values = [value for value in program.contractions.values if not value.constant]
    statistics = {
        value.operand.source.node: value
        for value in values
        if value.operand is not None
        and isinstance(value.operand.source, Runtime)
        and value.operand.source.kind == "rstd"
        and operation(value.operand.source.node) == "aten.layer_norm"
    }
    when: dict[Value, int] = {}
    for value in values:
        when[value] = max((_when(source, when, place) for source in _sources(value)), default=-1)
    consumers: dict[Value, int] = {}
    for value in values:
        for inner in value.inputs:
            if not inner.constant:
                consumers[inner] = min(consumers.get(inner, when[value]), when[value])
    for value in values:  # what grows when it is read waits until it is needed
        if value.operand is not None and value in consumers and _grows(value):
            when[value] = max(when[value], consumers[value])
    order = {value: number for number, value in enumerate(values)}
    instructions: list[_Instruction] = []
    by_place: dict[int, list[Value]] = {}
    for value in values:
        by_place.setdefault(when[value], []).append(value)
    emissions: dict[Value, list[Emission]] = {}
    for emission in program.emissions:
        if not emission.value.constant:
            emissions.setdefault(emission.value, []).append(emission)
    last_forward: dict[fx.Node, int] = {}
    for node in nodes:
        for source in node.all_input_nodes:
            last_forward[source] = place[node]

    def add(value: Value) -> None:
        instructions.append(
            _Instruction(_reader(program, value), (value,), tuple(_sources(value)), tuple(emissions.get(value, ())))
        )

    for value in sorted(by_place.get(-1, ()), key=order.__getitem__):
        add(value)
    later: set[fx.Node] = {
        source
        for value in values
        for source in _sources(value)
        if isinstance(source, fx.Node) and when[value] > max(last_forward.get(source, -1), place.get(source, -1))
    }
    for number, node in enumerate(nodes):
        instructions.append(_forward(program, node, node in statistics, node in later))
        instructions[-1].output = node is graph.output
        for value in sorted(by_place.get(number, ()), key=order.__getitem__):
            add(value)
    last: dict[object, int] = {}
    held = {graph.input, *(name for instruction in instructions for name in instruction.makes)}
    for number, instruction in enumerate(instructions):
        for name in held.intersection((*instruction.makes, *instruction.reads)):  # the rest is the same for every image
            last[name] = number
    frees: dict[int, list[object]] = {}
    for name, number in last.items():
        frees.setdefault(number, []).append(name)
    for number, names in frees.items():
        instructions[number].frees = tuple(names)
    return tuple(instructions)


def _sources(value: Value) -> list[object]:
    """What a runtime value is computed from: nodes, statistics, or other runtime values."""
    if value.operand is None:
        return [inner for inner in value.inputs if not inner.constant]
    source = value.operand.source
    if isinstance(source, Runtime):
        if source.kind == "rstd" and operation(source.node) == "aten.layer_norm":
            return [("rstd", source.node)]
        return list(source.inputs)
    return [source]


def _when(source: object, when: dict[Value, int], place: dict[fx.Node, int]) -> int:
    if isinstance(source, Value):
        return when[source]
    node = source[1] if isinstance(source, tuple) else source
    return place.get(node, -1)  # type: ignore[arg-type]


def _bytes(name: object, itemsize: int) -> int:
    """The size of one image's share of a value."""
    if isinstance(name, Value):
        return name.elements(1) * itemsize
    if isinstance(name, tuple):
        return 0  # a norm's statistic
    value = name.meta.get("val")  # type: ignore[attr-defined]
    return value.element_size() * _size(name, 1) if isinstance(value, Tensor) else 0  # type: ignore[arg-type]


def _grows(value: Value) -> bool:
    """Whether a leaf is larger than what it is read from."""
    assert value.operand is not None
    source = value.operand.source
    if not isinstance(source, Runtime):
        return all(axis.take is None for axis in value.operand.axes)
    inputs = sum(_size(node) for node in source.inputs)
    return value.elements() > inputs


def _size(node: fx.Node, batch: int = NOMINAL_BATCH) -> int:
    """The number of entries of a node's value."""
    return prod(extent.size * (batch if extent.batch else 1) for extent in extents_of(node))


def _reader(program: Program, value: Value) -> Callable[[dict[object, Any], _State], None]:
    """The instruction that makes a runtime value."""
    if value.operand is None:
        first, second = value.inputs
        pairing = value.pairing
        assert pairing is not None
        sizes = value.sizes
        one_fixed, two_fixed = first.constant, second.constant

        def multiply(environment: dict[object, Any], state: _State) -> None:
            left = state.arranged[value.number, 0] if one_fixed else arranged(environment[first], pairing, True)
            right = state.arranged[value.number, 1] if two_fixed else arranged(environment[second], pairing, False)
            environment[value] = multiplied(left, right, pairing).reshape([size or -1 for size in sizes])

        return multiply
    operand = value.operand
    source = operand.source
    if isinstance(source, Runtime):
        positions = [axis.take for axis in operand.axes]
        skip = [len(positions) + dim for dim in source.reads]
        partial = any(take is not None for take in positions)
        names = _sources(value)
        given = names[0] if len(names) == 1 and isinstance(names[0], tuple) else None
        inputs, make = source.inputs, source.make

        def compute(environment: dict[object, Any], state: _State) -> None:
            if given is not None:
                tensor = environment[given]
            else:
                tensor = make(
                    *(
                        _node_value(node, environment, state).to(state.dtype)
                        if node.meta["val"].is_floating_point()
                        else _node_value(node, environment, state)
                        for node in inputs
                    ),
                    positions,
                )
            laid = _laid_out(tensor.to(state.dtype), operand, skip)
            environment[value] = laid.clone() if partial else laid  # or what was not read would stay alive

        return compute
    assert isinstance(source, fx.Node)
    copies = any(axis.take is not None for axis in operand.axes)

    def read(environment: dict[object, Any], state: _State) -> None:
        tensor = _laid_out(_node_value(source, environment, state), operand)
        if tensor.dtype != state.dtype:
            tensor = tensor.to(state.dtype)
        elif copies:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        environment[value] = tensor

    return read


def _node_value(node: fx.Node, environment: dict[object, Any], state: _State) -> Any:
    return (
        environment[node]
        if node in environment
        else state.folded[node]
        if node in state.folded
        else state.program.graph.value(node)
    )


def _forward(program: Program, node: fx.Node, statistic: bool, kept: bool) -> _Instruction:
    """The instruction that runs one of the model's own operations."""
    graph = program.graph
    reads = tuple(source for source in node.all_input_nodes if _runs(graph, source) or source is graph.input)
    makes: tuple[object, ...] = (node,)
    target: Callable[..., Any] = node.target  # type: ignore[assignment]
    args, kwargs = node.args, node.kwargs
    if statistic:
        given = arguments(node)
        target = torch.ops.aten.native_layer_norm.default
        args = tuple(given[name] for name in ("input", "normalized_shape", "weight", "bias", "eps"))
        kwargs = {}
        makes = (node, ("rstd", node))
        count = len(given["normalized_shape"])
        name = ("rstd", node)

        def normalise(environment: dict[object, Any], state: _State) -> None:
            values = fx.map_arg(args, lambda source: _node_value(source, environment, state))
            environment[node], _, rstd = target(*values)
            environment[name] = rstd.reshape(rstd.shape[:-count])

        return _Instruction(normalise, makes, reads)

    def run(environment: dict[object, Any], state: _State) -> None:
        values, named = fx.map_arg((args, dict(kwargs)), lambda source: _node_value(source, environment, state))
        result = target(*values, **named)
        if kept and result.untyped_storage().nbytes() > 1.5 * result.numel() * result.element_size():
            result = result.contiguous() if not result.is_contiguous() else result.clone()
        environment[node] = result

    return _Instruction(run, makes, reads)
