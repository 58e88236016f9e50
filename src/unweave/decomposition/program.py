"""A plan's program: its instructions, run on batches.

Nothing of the user's module is touched: its graph is interpreted over its own weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from math import prod

import torch
from torch import Tensor

from unweave.adjoint.operand import BATCH, Axis, Constant, Index, Indices, Operand, Runtime
from unweave.decomposition.contraction import Contractions, Emission
from unweave.decomposition.pieces import Job
from unweave.decomposition.schedule import Environment, Instruction, bytes_per_image, scheduled
from unweave.decomposition.weights import Weights, kept_constants
from unweave.graph.following import follow
from unweave.graph.graph import Graph, extents_of
from unweave.graph.precision import exact

_INSEPARABLE = ("winners", "slope", "value", "inverse")
"""Kinds of runtime factors that may have an entry for each channel."""


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
        *regions, dim = [extent.size for extent in extents_of(graph.output)[1:]]
        self.regions = prod(regions)
        self.width = self.regions * (dim if directions is None else directions)
        self.contractions = Contractions()
        self._weights: Weights | None = None
        self.emissions = tuple(emission for job in jobs for emission in self._emissions(job))

    # -- building --------------------------------------------------------------------------------------------------

    def _emissions(self, job: Job) -> Iterator[Emission]:
        for reading in job.readings:
            operands, out = list(reading.operands), reading.out
            if self.directions is not None:
                new: Indices = (Index(self.directions),) if self.directions > 1 else ()
                places = range(prod(index.size for index in reading.kept)) if job.chosen is None else job.chosen
                along, sets = _followed(reading.kept, places, [self._sets[column] for column in job.columns])
                regions, dim = _parted(reading.out, self.regions)
                shape = (*(index.size for index in (*along, *dim)), self.directions)
                make = partial(_direction_values, sets, shape)
                constant = Constant(shape, (), make, ("directions", sets, shape))
                axes = (*(Axis((index,)) for index in (*along, *dim)), Axis(new))
                operands.append(Operand(constant, axes))
                out = regions + new
            wanted = (BATCH, *reading.kept, *out)
            value, indices = self.contractions.contract(operands, wanted)
            order = tuple(indices.index(index) if index in indices else -1 for index in wanted)
            sizes = tuple(-1 if index is BATCH else index.size for index in wanted)
            count = prod(index.size for index in reading.kept)
            yield Emission(value, order, sizes, job.columns, job.chosen, reading.scale, count)

    @cached_property
    def instructions(self) -> tuple[Instruction, ...]:
        """Every step of a batch, in order."""
        return scheduled(self.graph, self.contractions.values, self.emissions)

    # -- running ---------------------------------------------------------------------------------------------------

    def run(
        self, images: Tensor, directions: Tensor | None = None, regions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One batch.

        Args:
            images: `[image, channel, height, width]`.
            directions: For scores, `[set, direction, dim]`.
            regions: Weights of tokens, `[image, region, token]`, where the graph pools by them.

        Returns:
            The result, `[image, column, width]`, and the representation, `[image, dim]`; of regions `[image, column,
            region * width]` and `[image, region, dim]`.
        """
        self.graph.check(len(images))
        with exact(images.device):
            weights = self._ready(images, directions)
            result = torch.zeros(len(images), self.columns, self.width, dtype=weights.dtype, device=images.device)
            environment: Environment = dict(zip(self.graph.inputs, (images, regions), strict=False))
            representation: Tensor | None = None
            for instruction in self.instructions:
                instruction.run(environment, weights)
                for emission in instruction.emits:
                    _emit(emission, environment[emission.value], result)
                if instruction.output:
                    representation = environment[self.graph.output]
                for name in instruction.frees:
                    del environment[name]
            for emission in self.emissions:
                if emission.value.constant:
                    _emit(emission, weights.constants[emission.value.number], result)
        assert representation is not None
        return result, representation

    def _ready(self, images: Tensor, directions: Tensor | None) -> Weights:
        """The weight-only values for the module's present weights, made when they or the directions have changed."""
        generation, weights = follow(self.graph), self._weights
        if weights is None or (weights.generation, weights.device) != (generation, images.device):
            weights = Weights(self.graph, self.contractions.values, self._kept, images, directions)
        elif directions is not None and (weights.directions is None or not torch.equal(directions, weights.directions)):
            weights = Weights(self.graph, self.contractions.values, self._kept, images, directions, weights)
        self._weights = weights  # a local name as well: another thread may ask for other directions
        return weights

    @property
    def generation(self) -> int | None:
        """Of the weights that the weight-only values were last made of."""
        return None if self._weights is None else self._weights.generation

    # -- what it takes ---------------------------------------------------------------------------------------------

    @cached_property
    def _kept(self) -> frozenset[int]:
        return kept_constants(self.contractions.values, self.emissions)

    @property
    def _itemsize(self) -> int:
        return 8 if self.graph.input.meta["val"].dtype == torch.float64 else 4

    @cached_property
    def bytes_per_image(self) -> int:
        """Bytes that one image adds at the peak beside the model's own forward pass: values kept for the
        contractions, and the result.
        """
        return bytes_per_image(self.instructions, self._itemsize) + self.columns * self.width * self._itemsize

    @cached_property
    def constant_bytes(self) -> int:
        """Bytes of the weight-only values that stay once the program has run."""
        return sum(self.contractions.values[number].elements() * self._itemsize for number in self._kept)

    @cached_property
    def dense(self) -> tuple[int, ...]:
        """Columns whose pending map depends on the image in the channels too, so that weights and image cannot be
        told apart.
        """
        columns: set[int] = set()
        for job in self.jobs:
            for reading in job.readings:
                weights = {index for operand in reading.operands if operand.constant for index in operand.indices}
                for operand in reading.operands[1:]:
                    source, indices = operand.source, set(operand.indices)
                    inseparable = isinstance(source, Runtime) and source.kind in _INSEPARABLE
                    if inseparable and len(indices) > 1 and weights & indices - {BATCH}:
                        columns.update(job.columns)
        return tuple(sorted(columns))


def _direction_values(sets: Sequence[int], shape: Sequence[int], directions: Tensor) -> Tensor:
    return directions[list(sets)].transpose(1, 2).reshape(shape)


def _parted(out: Indices, regions: int) -> tuple[Indices, Indices]:
    """The indices that run over regions, and those that run over the representation of each."""
    count, size = 0, 1
    while size < regions:
        size *= out[count].size
        count += 1
    return out[:count], out[count:]


def _followed(kept: Indices, places: Sequence[int], sets: Sequence[int]) -> tuple[Indices, tuple[int, ...]]:
    """The leading kept indices along which the set of directions changes, and the set for each of their entries: heads
    differ, tokens of a head do not.
    """
    for leading in range(len(kept) + 1):
        block = prod(index.size for index in kept[leading:])
        of_entry: dict[int, int] = {}
        pairs = zip(places, sets, strict=True)
        if all(of_entry.setdefault(place // block, chosen) == chosen for place, chosen in pairs):
            break
    entries = prod(index.size for index in kept[:leading])
    return kept[:leading], tuple(of_entry.get(entry, sets[0]) for entry in range(entries))


def _emit(emission: Emission, tensor: Tensor, result: Tensor) -> None:
    """Adds a value to its columns of the result."""
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
