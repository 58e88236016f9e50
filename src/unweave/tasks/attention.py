"""A model's attention probabilities, and what a score has for a gradient at them, from the graph of its operations.

The model is captured as for a decomposition, and its graph is interpreted, so no module is hooked: an attention layer
is what the decomposition takes for one, and fused attention shows its probabilities because they are computed beside
it. Where tokens lie is read off the graph as well, windows undone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, fx, nn

from unweave.components import Grid
from unweave.decomposition.walk import walk
from unweave.graph.following import follow, graph_of
from unweave.graph.graph import arguments, extents_of
from unweave.graph.interpret import ValueOf, applied, interpret
from unweave.operations.attention import probabilities
from unweave.operations.table import row
from unweave.structure.places import cells


@dataclass(frozen=True, eq=False)
class Layer:
    """One attention layer.

    Attributes:
        node: Where its weights meet its values.
        path: Its module.
        windows: How many windows the image has there, 1 for none.
        queries, keys: Where its tokens lie; None where that is not known.
    """

    node: fx.Node
    path: str
    windows: int
    queries: Grid | None
    keys: Grid | None


@dataclass(frozen=True, eq=False)
class Trace:
    """One batch.

    Attributes:
        representation: `[image, dim]`.
        probabilities: For each layer.
        gradients: Of the score, likewise; zero where it does not depend on a layer.
        read: For each layer, which queries the score depends on at its output.
        values: Every value on the way, by its node.
    """

    representation: Float[Tensor, "image dim"]
    probabilities: tuple[Float[Tensor, "image _window _head _query _key"], ...]
    gradients: tuple[Float[Tensor, "image _window _head _query _key"], ...]
    read: tuple[Bool[Tensor, "image _window _query"], ...]
    values: Mapping[fx.Node, Any]


class Attention:
    """The attention of a captured model.

    Args:
        module: Images to representation, `[image, dim]`; it is not modified.
        example: Images of the size that it will be given.

    Raises:
        CaptureError: The module does not export.
    """

    def __init__(self, module: nn.Module, example: Float[Tensor, "image channel height width"]) -> None:
        found = walk(graph_of(module, example))
        self.graph, self.paths = found.graph, found.paths

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The attention layers that the representation depends on, in order."""
        graph = self.graph
        return tuple(self._layer(node) for node in self.paths.attention if graph.depends(graph.output, node))

    def _layer(self, node: fx.Node) -> Layer:
        value = self.paths.live(node)
        assert value is not None
        attends = row(node).attends
        query = arguments(node)[attends[0]] if attends else node
        dims = len(extents_of(node))
        apart = [dim for dim in (dims - 3, dims - 1) if dim > 0]
        grids = [cells(self.graph, own, apart) for own in (query, value) if isinstance(own, fx.Node)]
        windows = extents_of(node)[0].size if dims > 3 else 1
        return Layer(node, self.graph.module(node), windows, grids[0], grids[-1])

    def trace(
        self,
        images: Float[Tensor, "image channel height width"],
        score: Callable[[Tensor], Float[Tensor, " image"]],
    ) -> Trace:
        """One batch, with the gradients of a score.

        Memory: all activations of a forward and a backward pass.

        Args:
            images: Preprocessed.
            score: The representations to one number for each image.
        """
        weights: dict[fx.Node, Tensor] = {}
        follow(self.graph)
        with torch.enable_grad():
            values = self._values(images.detach().clone().requires_grad_(), weights)
            representation = values[self.graph.output]
            outputs = [values[layer.node] for layer in self.layers]
            asked = [*(weights[layer.node] for layer in self.layers), *outputs]
            found = torch.autograd.grad(score(representation).sum(), asked, allow_unused=True)
        count = len(self.layers)
        gradients = [torch.zeros_like(own) if one is None else one for own, one in zip(asked, found, strict=True)]
        shaped = [self._shaped(layer, own, len(images)) for layer, own in zip(self.layers, asked[:count], strict=True)]
        steep = [self._shaped(layer, own, len(images)) for layer, own in zip(self.layers, gradients, strict=False)]
        read = [
            self._shaped(layer, own, len(images)).ne(0).any(-1).any(2)
            for layer, own in zip(self.layers, gradients[count:], strict=True)
        ]
        kept = {node: own.detach() if isinstance(own, Tensor) else own for node, own in values.items()}
        return Trace(representation.detach(), tuple(own.detach() for own in shaped), tuple(steep), tuple(read), kept)

    def _values(self, images: Tensor, weights: dict[fx.Node, Tensor]) -> dict[fx.Node, Any]:
        """The model, operation by operation; notes the weights of every attention."""
        attends = {layer.node for layer in self.layers}

        def noted(node: fx.Node, value_of: ValueOf) -> Any:
            if node not in attends:
                return applied(node, value_of)
            if not row(node).attends:
                live = self.paths.live(node)
                weights[node] = value_of(
                    next(factor for factor in self.paths.graph.varying(node) if factor is not live)
                )
                return applied(node, value_of)
            given: dict[str, Any] = fx.map_arg(arguments(node), value_of)
            weights[node] = probabilities(**given)
            value = given["value"]
            repeats = weights[node].shape[-3] // value.shape[-3] if given["enable_gqa"] else 1
            return weights[node] @ (value.repeat_interleave(repeats, -3) if repeats > 1 else value)

        tensors = {node: tensor.detach() for node, tensor in self.graph.tensors.items()}
        return interpret(self.graph.nodes, {**tensors, self.graph.input: images}, noted)

    def _shaped(self, layer: Layer, tensor: Tensor, images: int) -> Tensor:
        """`[image, window, head, query, ...]`."""
        if tensor.dim() == 3:  # heads lie beside the images
            return tensor.unflatten(0, (images, 1, -1))
        return tensor.reshape(images, layer.windows, *tensor.shape[-3:])

    def normed(self) -> fx.Node | None:
        """The last norm that the values of the last attention are computed from."""
        node: fx.Node | None = self.paths.live(self.layers[-1].node) if self.layers else None
        while node is not None and not row(node).norm:
            below = self.paths.graph.varying(node)
            node = max(below, key=self.graph.order.__getitem__) if below and node is not self.graph.input else None
        return node

    def grid(self, node: fx.Node) -> Grid | None:
        """Where the positions of a value lie whose channels come last."""
        return cells(self.graph, node, [len(extents_of(node)) - 1])

    def module(self, node: fx.Node) -> str:
        """The path of an operation's module in the module that was captured."""
        return ".".join(part for part in (self.graph.prefix, self.graph.module(node)) if part)
