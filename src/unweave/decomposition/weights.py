"""What a program makes of weights alone: made once, kept for every batch, made anew when a weight has changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from unweave.adjoint.operand import Constant
from unweave.decomposition.contraction import Emission, Value, arranged, laid_out, multiplied
from unweave.graph.graph import Graph


class Weights:
    """The weight-only values of a program, on a device and dtype and for some directions; they never change.

    Args:
        graph: The captured model.
        values: Every intermediate tensor, inputs before what is made of them.
        kept: The numbers of the weight-only values that a batch needs (see `kept_constants`).
        images: A batch, for its device and dtype.
        directions: For scores, `[set, direction, dim]`.
        before: Those of the same weights for other directions; what does not depend on them is taken from there.

    Attributes:
        generation: Of the graph that they are made of.
        directions: As given.
        dtype: What contractions are computed in.
        constants: Weight-only values by their number.
        arranged: The same, laid out for the product that reads them: by its number, and which factor of it.
    """

    def __init__(
        self,
        graph: Graph,
        values: Sequence[Value],
        kept: frozenset[int],
        images: Tensor,
        directions: Tensor | None,
        before: Weights | None = None,
    ) -> None:
        self.generation, self.directions, self.device = graph.generation, directions, images.device
        self.dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
        self._graph, self._values, self._kept = graph, values, kept
        self.constants: dict[int, Tensor] = {}
        self.arranged: dict[tuple[int, int], Tensor] = {}
        self._read: dict[fx.Node, Tensor] = _read_per_batch(graph) if before is None else before._read
        if before is not None:
            self.constants.update(before.constants)
            self.arranged.update(before.arranged)
        self._fold(_directed if before is not None else lambda value: True)

    def value(self, node: fx.Node) -> Tensor:
        """The value of a node that is the same for every batch."""
        return self._read[node] if node in self._read else self._graph.value(node)

    def _fold(self, chosen: Callable[[Value], bool]) -> None:
        sources: dict[Constant, Tensor] = {}
        live: dict[int, Tensor] = {}

        def made(value: Value) -> Tensor:
            if value.number not in live:
                if value.operand is not None:
                    live[value.number] = laid_out(self._constant(value.operand.source, sources), value.operand)
                else:
                    assert value.pairing is not None
                    left, right = (
                        arranged(made(factor), value.pairing, place == 0) for place, factor in enumerate(value.inputs)
                    )
                    live[value.number] = multiplied(left, right, value.pairing).reshape(value.shape)
            return live[value.number]

        for value in self._values:
            if value.constant and value.number in self._kept and chosen(value):
                self.constants[value.number] = made(value)
        for value in self._values:
            if value.constant or value.pairing is None:
                continue
            for place, factor in enumerate(value.inputs):
                if factor.constant and chosen(factor):
                    laid = arranged(self.constants[factor.number], value.pairing, place == 0)
                    self.arranged[value.number, place] = laid.contiguous() if laid.numel() < 2**27 else laid

    def _constant(self, source: object, made: dict[Constant, Tensor]) -> Tensor:
        assert isinstance(source, Constant)
        if source not in made:
            inputs = (
                self._constant(part, made)
                if isinstance(part, Constant)
                else self._graph.value(part).to(self.device, self.dtype)
                for part in source.inputs
            )
            given = (self.directions,) if _is_direction(source) else inputs
            made[source] = source.make(*given).to(self.device, self.dtype)
        return made[source]


def kept_constants(values: Sequence[Value], emissions: Sequence[Emission]) -> frozenset[int]:
    """The numbers of the weight-only values that a runtime product or the result reads."""
    read = [emission.value for emission in emissions]
    read += [factor for value in values if not value.constant for factor in value.inputs]
    return frozenset(value.number for value in read if value.constant)


def _directed(value: Value) -> bool:
    """Whether a weight-only value depends on the directions."""
    if value.operand is not None:
        return _is_direction(value.operand.source)
    return any(_directed(factor) for factor in value.inputs)


def _is_direction(source: object) -> bool:
    return isinstance(source, Constant) and isinstance(source.key, tuple) and source.key[:1] == ("directions",)


def _read_per_batch(graph: Graph) -> dict[fx.Node, Tensor]:
    """The values of image-independent nodes that an operation of every batch reads."""
    return {
        source: graph.value(source)
        for node in graph.nodes
        if node in graph.per_batch
        for source in node.all_input_nodes
        if source not in graph.per_batch and source not in graph.inputs
    }
